"""A slice of the evaluation of tool calls held to schemas, and that it would find a fault."""

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.load import load_proposer, load_target_for
from engine.policy import FixedPolicy
from engine.session import Finish
from engine.text.call_form import HERMES
from engine.text.chat import Chat
from engine.text.reply import ReplyReader
from evals.constrained_calls import Row, check, report, run
from tests.engine.drafters import spec
from tests.engine.embedded import MODEL, codec, grammars

CALLS = 6


@pytest.fixture(scope="module")
def target():
    return load_target_for(EngineConfig(str(MODEL), dtype="float64", pool_tokens=4096))


def rows(target, names):
    chat = Chat(codec())
    found = []
    for name in names:
        config = EngineConfig(str(MODEL), name if name == "none" else spec(name), pool_tokens=4096)
        engine = Engine(target, load_proposer(config, target), FixedPolicy(1 if name == "none" else 12))
        found.append(row := Row(name))
        run(row, engine, grammars(), chat, CALLS, 1.0)
    return found


def test_calls_are_valid_and_the_same_with_every_drafter(target):
    found = rows(target, ["none", "suffix", "recycling", "eagle3", "medusa", "mtp", "draft"])
    assert target.pool.pages_in_use == 0 and target.dtype is torch.float64
    for row in found:
        assert row.said == found[0].said and not row.faults
        assert row.valid + row.cut == row.calls == CALLS and row.valid >= CALLS - 1
        assert 0 < row.masked < row.seconds
    assert len(found[0].tools) > 1


@pytest.mark.parametrize(
    "said",
    ['{"name": "book_table", "arguments": {"guests": 3, "area": "roof", "time": "12:00"}}', '{"name": "nobody"}', "{"],
)
def test_a_call_that_is_not_valid_is_a_fault(said, capsys):
    row, reader = Row("none", steps=1, seconds=1.0), ReplyReader(codec(), calls=HERMES)
    for token in codec().encode(f"<tool_call>{said}</tool_call>"):
        reader.push(token)
    check(row, reader, Finish.STOP_TOKEN)
    assert row.valid == 0 and len(row.faults) == 1
    assert report([row], 1.0) == 1 and "FAULT: none" in capsys.readouterr().out
