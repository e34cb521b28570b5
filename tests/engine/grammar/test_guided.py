"""A grammar over draft trees: its masks are those of a matcher that walked to each node alone, whatever came before."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraint import ToolConstraint
from engine.grammar.guided import GuidedGrammar
from engine.text.call_form import HERMES
from engine.tree import FORCED, DraftTree
from tests.engine.embedded import codec, grammars

SCHEMA = {
    "type": "object",
    "properties": {"day": {"enum": ["Tuesday", "Thursday"]}, "name": {"type": "string", "maxLength": 9}},
    "required": ["day", "name"],
}
CONSTRAINT = ToolConstraint(HERMES, (("check", json.dumps(SCHEMA)), ("cancel", '{"type": "object"}')))
TEXTS = [
    "One < moment. ",
    'Sure.<tool_call>{"name": "check", "arguments": {"day": "Thursday", "name": "Ann"}}</tool_call>',
    '<tool_call>{"name": "cancel", "arguments": {"x": [1, {"y": null}]}}</tool_call>Done.',
]


def new() -> GuidedGrammar:
    grammar = grammars().grammar(CONSTRAINT)
    assert isinstance(grammar, GuidedGrammar)
    return grammar


def path(tree: DraftTree, node: int) -> list[int]:
    """Tokens from behind the root to the node."""
    tokens = []
    while node:
        tokens.append(int(tree.tokens[node]))
        node = int(tree.parents[node])
    return tokens[::-1]


def drafted(rng: random.Random, said: list[int], following: list[int]) -> DraftTree:
    """A tree along what follows, with other tokens beside and behind it."""
    tokens, parents = [said[-1]], [-1]
    at = 0
    for token in following[:6]:
        for other in rng.sample(range(2048), 2):
            if other != token:
                tokens.append(other)
                parents.append(rng.choice([at, len(tokens) - 2]))
        tokens.append(token)
        parents.append(at)
        at = len(tokens) - 1
    keep, seen = [], set()
    for node, edge in enumerate(zip(parents, tokens, strict=True)):
        if edge not in seen:  # siblings differ
            seen.add(edge)
            keep.append(node)
    if len(keep) < len(tokens):
        return DraftTree.chain(torch.tensor([said[-1], *following[:6]]))
    return DraftTree.of(tokens, parents, [1.0] * len(tokens), 0)


@given(st.sampled_from(TEXTS), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_masks_are_those_of_a_walk_to_each_node(text, seed):
    rng = random.Random(seed)
    ids = codec().encode(text)
    start = rng.randrange(len(ids))
    grammar, said = new(), [5, *ids[:start]]
    grammar.consume(ids[:start])
    tree = drafted(rng, said, ids[start:])
    for _ in range(2):  # the first leaves nothing behind
        mask = grammar.mask(tree)
        assert mask.shape == (len(tree), 2048)
        for node in range(len(tree)):
            alone, allowed = new(), True
            alone.consume(ids[:start])
            for token in path(tree, node):
                if not alone.mask(DraftTree.chain(tree.tokens[:1]))[0, token]:
                    allowed = False
                    break
                if token in codec().stop_tokens:
                    allowed = False  # nothing follows
                    break
                alone.consume([token])
            if allowed:
                assert torch.equal(mask[node], alone.mask(DraftTree.chain(tree.tokens[:1]))[0])
    grammar.consume(ids[start:])


@given(st.sampled_from(TEXTS), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_narrowed_tree_has_lost_what_may_not_come_and_gained_what_must(text, seed):
    rng = random.Random(seed)
    ids = codec().encode(text)
    start = rng.randrange(len(ids))
    grammar = new()
    grammar.consume(ids[:start])
    tree = drafted(rng, [5, *ids[:start]], ids[start:])
    mask = grammar.mask(tree)
    narrowed = grammar.narrow(tree, 64, 64)
    narrowed.check()
    before = {tuple(path(tree, node)) for node in range(len(tree))}
    possible = {
        tuple(path(tree, node))
        for node in range(1, len(tree))
        if all(mask[int(tree.parents[up]), int(tree.tokens[up])] for up in _up(tree, node))
    }
    after = {tuple(path(narrowed, node)): int(narrowed.source[node]) for node in range(1, len(narrowed))}
    assert possible <= set(after)
    assert all(tokens in before or source == FORCED for tokens, source in after.items())
    # Another spelling of what must come may be kept; what no text could go on with is not.
    for tokens in after:
        alone = new()
        alone.consume(ids[:start])
        ended = [at for at, token in enumerate(tokens) if token in codec().stop_tokens]
        assert ended in ([], [len(tokens) - 1])
        alone.consume(tokens[:-1] if ended else tokens)


def _up(tree: DraftTree, node: int) -> list[int]:
    nodes = []
    while node:
        nodes.append(node)
        node = int(tree.parents[node])
    return nodes


def test_tokens_that_must_come_are_drafted_by_nobody():
    grammar = new()
    grammar.consume(codec().encode('<tool_call>{"name": "check"'))
    chain = grammar.narrow(DraftTree.chain(torch.tensor([7])), 16, 30)
    assert codec().decode(chain.tokens[1:].tolist()).startswith(', "arguments": {"day": "')
    assert len(grammar.narrow(DraftTree.chain(torch.tensor([7])), 3, 30)) == 3
    assert len(grammar.narrow(DraftTree.chain(torch.tensor([7])), 16, 2)) == 3


def test_a_token_that_may_not_come_is_an_error():
    grammar = new()
    grammar.consume(codec().encode("<tool_call>"))
    with pytest.raises(ValueError, match="may not come"):
        grammar.consume(codec().encode("oops"))


def tool(name: str, *fields: str) -> tuple[str, str]:
    members = {field: {"type": "string"} for field in fields}
    return name, json.dumps({"type": "object", "properties": members, "required": [*fields]})


def test_what_may_come_of_one_tool_does_not_depend_on_another_that_was_looked_at():
    """A matcher that is rolled back remembers here what may end a string of the other tool."""
    booking = '<tool_call>{"name": "book_appointment", "arguments": {"date": "Th'
    finding = '<tool_call>{"name": "find_appointment", "arguments": {"phone": "88'
    tools = (tool("book_appointment", "date", "time"), tool("find_appointment", "phone"))
    looked, other = codec().encode(booking), codec().encode(finding)
    grammar, fresh = (grammars().grammar(ToolConstraint(HERMES, tools)) for _ in range(2))
    for each in (grammar, fresh):
        each.consume(other[:1])
    grammar.mask(DraftTree.chain(torch.tensor(looked)))
    for each in (grammar, fresh):
        each.consume(other[1:-2])
    tree = DraftTree.chain(torch.tensor(other[-3:]))
    assert torch.equal(grammar.mask(tree), fresh.mask(tree))
    closing = codec().encode('x", "y')[1]
    assert not fresh.mask(tree)[-1, closing], "there is nothing behind the only argument"
