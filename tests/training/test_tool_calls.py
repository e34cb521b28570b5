"""The tool-call evaluation's arithmetic, on calls worked by hand, and on a model that cannot be right."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from evals.tool_calls import Score, as_markdown, count, judge, said_call
from training import tokenizer as tokens
from training.data import _plain
from training.dialogues import dialogue
from training.llama import Llama, Shape
from training.target import save_model

GOLD = {"name": "move_appointment", "arguments": {"id": "K4821", "date": "Tuesday", "time": "3 pm"}}


def scored(said, text=""):
    score = Score()
    count(score, GOLD, said, text)
    return score


def test_a_right_call_is_right_in_every_field():
    score = scored(GOLD)
    assert (score.field_match, score.right_tool, score.whole_call, score.misses) == (1.0, 1, 1, [])


def test_one_wrong_field_costs_one_field():
    score = scored({"name": "move_appointment", "arguments": {"id": "K4821", "date": "Tuesday", "time": "4 pm"}})
    assert score.right == {"id": 1, "date": 1, "time": 0} and score.fields == {"id": 1, "date": 1, "time": 1}
    assert score.right_tool == 1 and score.whole_call == 0 and len(score.misses) == 1


def test_an_argument_too_many_is_an_error():
    score = scored({"name": "move_appointment", "arguments": {**GOLD["arguments"], "name": "Ann"}})
    assert score.fields["name"] == 1 and score.right["name"] == 0 and score.field_match == pytest.approx(3 / 4)


@pytest.mark.parametrize("said", [None, {"name": "cancel_appointment", "arguments": {"id": "K4821"}}])
def test_no_call_or_another_tool_has_every_gold_field_wrong(said):
    score = scored(said, "How can I help?")
    assert score.field_match == 0.0 and sum(score.fields.values()) == 3 and score.right_tool == 0
    assert score.valid_json == (said is not None)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call>', True),
        ('<tool_call>{"name": "a", "arguments": {"x": "y"}}', False),
        ('<tool_call>{"name": "a", "arguments": {"x": }}</tool_call>', False),
        ('<tool_call>{"name": "a", "arguments": "x"}</tool_call>', False),
        ('<tool_call>["a"]</tool_call>', False),
        ("Sure, one moment.", False),
    ],
)
def test_only_whole_valid_calls_are_read(text, valid):
    assert (said_call(text) is not None) == valid


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tokens.train(_plain(dialogue(seed) for seed in range(100))).save_pretrained(directory / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(directory / "tokenizer")
    torch.manual_seed(0)
    save_model(Llama(Shape(vocab=len(tokenizer), layers=1)), tokenizer, directory / "model")
    return directory / "model"


def test_an_untrained_model_scores_nothing_and_near_uniform_bits(untrained):
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    model = LlamaForCausalLM.from_pretrained(untrained, dtype=torch.float32)
    score, item = Score(), dialogue(30_000_003)
    judge(model, tokenizer, item, score)
    gold = [call["function"] for message in item.messages for call in message.get("tool_calls", [])]
    assert score.calls == len(gold) and score.whole_call == 0 and score.field_match == 0.0
    assert sum(score.fields.values()) == sum(len(call["arguments"]) for call in gold)
    spoken = [piece for piece in tokens.segments(item.messages, item.tools) if piece.kind == "text"]
    count_tokens = sum(len(tokenizer(piece.text, add_special_tokens=False)["input_ids"]) for piece in spoken)
    assert score.spoken_turns == len(spoken)
    assert score.gold_bits == pytest.approx(11 * count_tokens, rel=0.05), "2,048 tokens, all about as likely"


def test_the_tables_have_every_split_and_field():
    score = scored(GOLD)
    score.spoken_turns, score.gold_bits, score.sampled_bits = 2, 20.0, 9.0
    table = as_markdown({"held names and paraphrases": score})
    assert "| held names and paraphrases | 1 | 1.000 | 1.000 | 1.000 | 1.000 | 10.0 |" in table
    assert all(f"| {key} | 1.000 (1) |" in table for key in GOLD["arguments"]) and "9.0 bits" in table
