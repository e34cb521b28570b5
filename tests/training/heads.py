"""What the tests of every drafter's trainer share: small weights and conversations, drafting forced along a text, and a
run that is broken off.
"""

from argparse import Namespace

import numpy as np
import torch

from engine.interfaces import Window
from engine.tree import DraftTree
from tests.engine import checkpoints
from training.corpus import Corpus
from training.eagle3.rows import STEPS
from training.eagle3.train import PEAK_LR
from training.llama import Shape

SMALL = Shape(
    vocab=96, hidden=48, layers=8, heads=4, kv_heads=2, head_dim=16, intermediate=64, rope_theta=700.0, max_positions=64
)


LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
KINDS = {name: (name, {}) for name in checkpoints.CONFIGS if name != "mimo"} | {  # transformers knows no MiMo
    "biases of all projections": ("llama-tied", {"attention_bias": True}),
    "linear RoPE": ("llama-tied", {"rope_parameters": LINEAR}),
}
"""Of targets: a configuration, and what is changed in it."""


def asked(work):
    """A head trainer's arguments."""
    return Namespace(work=work, minutes=1.0, rate=PEAK_LR, seed=0, conversations=None, max_length=64, init=None)


def run_arguments(target, tmp_path, **more):
    """Of a whole run on the embedded model's examples, for an instant."""
    files = {"conversations": target / "examples.jsonl", "work": tmp_path / "work", "out": tmp_path / "head"}
    defaults = {"minutes": 0.01, "rate": PEAK_LR, "seed": 0, "device": "cpu", "max_length": 2048}
    return Namespace(target=target, **files, **(defaults | {"init": None, "draft_vocab": None} | more))


def randomise(module, seed):
    """Weights far from their beginnings, as bf16 holds them: constants would hide mistakes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=g)
            value = 1 + 0.3 * noise if name.endswith("norm.weight") else noise * weight.shape[-1] ** -0.5
            weight.copy_(value.bfloat16())
    return module.requires_grad_(False)


def corpus(count, seed, vocab=96):
    """Conversations of a repeating tune, the second half of each a reply."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(16, 40, count)
    ids = np.concatenate([np.resize(rng.integers(2, vocab, 5), length) for length in lengths]).astype(np.uint16)
    weights = np.concatenate([np.r_[np.zeros(n - n // 2), np.ones(n // 2)] for n in lengths]).astype(np.float16)
    return Corpus(ids, weights, np.cumsum([0, *lengths]))


def log_probs_of_training(head, teacher, ids, rows):
    """[B, M, steps, draft vocabulary]: what the trainer's unrolled forward predicts."""
    states = head(teacher(ids)[0], ids, teacher.target.embedding, rows)
    logits = [state @ head.output_rows(step, teacher.target).T for step, state in enumerate(states)]
    return torch.stack(logits, 2).log_softmax(-1)


def log_probs_of_drafting(target, proposer, ids, at):
    """[STEPS, draft vocabulary]: what the engine predicts after positions up to ``at``, forced along ``ids``."""
    cache, draft, known = target.new_cache(), proposer.start(), DraftTree.chain(torch.tensor(ids[: at + 1]))
    cache.reserve(len(known))
    draft_ids = proposer.head.to_target.tolist()
    forced = iter([draft_ids.index(token) for token in ids[at + 2 : at + 2 + STEPS]])
    predict, found = proposer.head.predict, []

    def forced_predict(x, noise=None):
        log_probs, fed = predict(x, noise)
        found.append(log_probs[0])
        wanted = torch.full_like(log_probs, -1000.0)
        wanted[0, next(forced)] = 0.0
        return wanted, fed

    proposer.head.predict = forced_predict
    with torch.inference_mode():
        features = target.forward([Window(cache, known, "none")], proposer.taps)[0].features
        proposer.observe(draft, known.tokens, features, None)
        tree = proposer.propose([draft], [ids[at + 1]], [None], STEPS + 1)[0]
    assert tree.tokens.tolist() == ids[at + 1 : at + 2 + STEPS]
    return torch.stack(found)


def broken_off_and_resumed(new_trainer, seen, broken_off_at):
    """(trainer, losses) of a run over the batches ``seen``; a second trainer goes on from where it was kept, and must
    say the same from there on.
    """
    whole = new_trainer()
    losses = [whole.train_step(*batch) for batch in seen[:broken_off_at]]
    whole.spent = 7.0
    whole.checkpoint()
    losses += [whole.train_step(*batch) for batch in seen[broken_off_at:]]
    resumed = new_trainer()
    assert (resumed.step, resumed.spent) == (broken_off_at, 7.0)
    assert [resumed.train_step(*batch) for batch in seen[broken_off_at:]] == losses[broken_off_at:]
    for ours, theirs in zip(resumed.head.parameters(), whole.head.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    return whole, losses


def assert_it_learns_and_goes_on(new_trainer, target, seen):
    """Every parameter moves, none of the target's, and the loss falls: ``seen`` is two batches, four times."""
    before = {name: value.clone() for name, value in new_trainer().head.named_parameters()}
    whole, losses = broken_off_and_resumed(new_trainer, seen, 6)
    assert losses[6] < losses[4] < losses[2] < losses[0]
    for name, value in whole.head.named_parameters():
        assert not torch.equal(value, before[name]), f"{name} is not learned"
    assert not any(value.requires_grad for value in target.parameters())
