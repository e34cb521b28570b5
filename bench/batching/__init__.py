"""Many replies in shared steps: tokens a second by way of drafting, and what the load policy chooses among them.

    python -m bench.batching [--calls N ...] [--texts "held out" "other style"] [--resume]

So many replies are always being made; where one ends another begins, read beforehand. No queue, no socket and no
prefill in the time that counts: this is what a way of drafting is worth at a load, and nothing else. What a drafter has
to read of a call's newest lines counts, for nobody else has to. The ways take turns within each round, in a random
order, so a machine that changes its pace does so for all of them.

Then the same with a draft head whose time counts as if its step took as large a part of a plain forward as on a GPU,
or a larger one: where a head is dear beside its target, or cheap, differs from machine to machine, and the policy goes
by it.
"""
