"""A target that does not fit one device: several processes of one host hold a share each (``engine.parallel``).

Rank 0 is the engine process: sessions, scheduler, drafter, sampling. The other ranks hold weights, pages and nothing
else. Rank 0 tells them of every forward and of every copy between pages, in order, and all of them do the same with
their own share; they meet in the sums inside of a forward. With one rank none of this exists.
"""
