"""Trains a draft model for the embedded target: a sixth of its size, with its tokenizer, on its corpus.

`python -m training.draft_model --data DIR --out DIR --minutes 20 --ranks 2`; `--data` is that of `training.data`, and
the model is in `model` under `--out`. Started again with the same `--out` it goes on where it stopped. Any target with
the same tokenizer can use it: `draft:OUT/model`.
"""

from training.llama import Shape
from training.target import main

SHAPE = Shape(hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, intermediate=384)
"""0.9 M parameters. Two layers copy, as in the target (`training.induction`). (Measured before the first step: these
heads give what followed before 0.073 of their attention, and 2 heads of 64 over one KV head 0.051.)
"""


if __name__ == "__main__":
    main(__doc__, SHAPE)
