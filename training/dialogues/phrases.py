"""Alternation templates ("spintax") and the seeded choices made from them.

Owns: parsing `{a|b|c}` (nested, empty options allowed) and the Zipf-weighted choice between options. Knows nothing of
what the phrases mean.

The first option of a list is the commonest: real wording is skewed too, and a skewed choice keeps the entropy of a
reply high while the likeliest reply stays clearly ahead of the others.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

ZIPF_EXPONENT = 0.9
HELD_OUT_EVERY = 5
"""Every fifth caller template of an act is never trained on."""

T = TypeVar("T")
Template = tuple["str | tuple[Template, ...]", ...]


@cache
def _cumulative_weights(count: int) -> tuple[float, ...]:
    total, sums = 0.0, []
    for rank in range(count):
        total += (rank + 1) ** -ZIPF_EXPONENT
        sums.append(total)
    return tuple(sums)


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`, the earlier ones more often (Zipf)."""
    return rng.choices(options, cum_weights=_cumulative_weights(len(options)))[0]


@cache
def parse(text: str) -> Template:
    """`text` as literals and alternations. Raises ValueError on unbalanced braces."""
    parts, end = _parse_sequence(text, 0, nested=False)
    if end != len(text):
        raise ValueError(f"unbalanced '}}' in template: {text!r}")
    return parts


def _parse_sequence(text: str, at: int, nested: bool) -> tuple[Template, int]:
    parts: list[str | tuple[Template, ...]] = []
    literal = ""
    while at < len(text):
        char = text[at]
        if char == "{":
            options: list[Template] = []
            while True:
                option, at = _parse_sequence(text, at + 1, nested=True)
                options.append(option)
                if at >= len(text):
                    raise ValueError(f"unbalanced '{{' in template: {text!r}")
                if text[at] == "}":
                    break
            parts += [literal, tuple(options)] if literal else [tuple(options)]
            literal, at = "", at + 1
        elif nested and char in "|}":
            break
        elif char in "|}":
            raise ValueError(f"stray {char!r} outside braces in template: {text!r}")
        else:
            literal += char
            at += 1
    return tuple([*parts, literal] if literal else parts), at


def evenly(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`, all alike: for what callers say, of which only variety is wanted."""
    return rng.choice(options)


Chooser = Callable[[random.Random, Sequence[Template]], Template]


def expand(rng: random.Random, text: str, choose: Chooser = pick) -> str:
    """`text` with every alternation chosen; slots `<slot>` are left in place."""
    return _expand(rng, parse(text), choose)


def _expand(rng: random.Random, parts: Template, choose: Chooser) -> str:
    return "".join(part if isinstance(part, str) else _expand(rng, choose(rng, part), choose) for part in parts)


def fill(text: str, slots: dict[str, str]) -> str:
    """`text` with `<slot>` replaced. Raises KeyError when a slot has no value."""
    out, at = [], 0
    while (start := text.find("<", at)) >= 0:
        end = text.index(">", start)
        out += [text[at:start], slots[text[start + 1 : end]]]
        at = end + 1
    return "".join(out) + text[at:]


def template_ids(count: int, held_out: bool) -> list[int]:
    """Indices of an act's templates that belong to the training (or the held-out) paraphrases."""
    return [i for i in range(count) if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]
