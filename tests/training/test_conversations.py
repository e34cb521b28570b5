"""Conversations in a target's own tokens: replies are marked exactly, under any chat template, and bad files are
refused by name.
"""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.engine.embedded import MODEL
from training import tokenizer as tokens
from training.conversations import HELD_OUT_EVERY, Encoder, load, read_lines, split
from training.corpus import Corpus
from training.dialogues import dialogue

QWEN = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
"""The form of ChatML: the end of a turn is followed by a line break that belongs to nobody."""
FORGETFUL = (
    "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}<|user|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
"""Shows the last reply alone, so that no earlier one stands behind what was there when it was made."""


@pytest.fixture(scope="module")
def encoder():
    return Encoder(MODEL)


def test_it_marks_what_the_embedded_models_own_encoding_marks(encoder):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for seed in range(20):
        call = dialogue(900_000 + seed)
        ids, weights = tokens.encode(tokenizer, call.messages, call.tools)
        found, said = encoder.encode({"messages": call.messages, "tools": call.tools})
        assert found.tolist() == ids.tolist()
        assert said.tolist() == (weights > 0).astype(int).tolist()


def test_arguments_written_as_text_are_read(encoder):
    call = next(item for item in map(dialogue, range(50)) if any("tool_calls" in m for m in item.messages))
    written = json.loads(json.dumps(call.messages))
    for message in written:
        for tool_call in message.get("tool_calls", []):
            tool_call["function"]["arguments"] = json.dumps(tool_call["function"]["arguments"])
    found = [encoder.encode({"messages": messages, "tools": call.tools})[0] for messages in (call.messages, written)]
    assert np.array_equal(*found)


@pytest.mark.parametrize(("template", "replies"), [(QWEN, ["one fine day", "two"]), (FORGETFUL, ["two"])])
def test_replies_under_another_template(template, replies):
    encoder = Encoder(MODEL)
    encoder.tokenizer.chat_template = template
    turns = [("user", "a"), ("assistant", "one fine day"), ("user", "b"), ("assistant", "two")]
    ids, said = encoder.encode({"messages": [{"role": role, "content": text} for role, text in turns]})
    runs = np.split(ids[said > 0], np.flatnonzero(np.diff(np.flatnonzero(said)) > 1) + 1)
    assert [encoder.tokenizer.decode(run) for run in runs] == [f"{reply}<|end|>" for reply in replies]


@pytest.mark.parametrize(
    ("line", "why"), [("{", "line 2: no JSON"), ('{"messages": 3}', "line 2: an object"), ("[]", "2")]
)
def test_a_bad_line_is_named(line, why, tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text('{"messages": []}\n' + line + "\n")
    with pytest.raises(ValueError, match=why):
        list(read_lines(path))


def test_a_file_without_replies_is_refused(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    with pytest.raises(ValueError, match="marks no reply in any of 1"):
        load(path, MODEL)


def test_long_conversations_end_early_and_none_is_both_trained_and_held_out(tmp_path):
    path = tmp_path / "calls.jsonl"
    calls = [dialogue(seed) for seed in range(HELD_OUT_EVERY + 3)]
    path.write_text("".join(json.dumps({"messages": c.messages, "tools": c.tools}) + "\n" for c in calls))
    whole = load(path, MODEL, max_length=300)
    assert int((whole.offsets[1:] - whole.offsets[:-1]).max()) == 300
    trained, held_out = split(whole)
    assert (len(trained), len(held_out)) == (HELD_OUT_EVERY + 2, 1)
    assert np.array_equal(held_out[0][0], whole[HELD_OUT_EVERY - 1][0])
    assert not any(np.array_equal(trained[i][0], held_out[0][0]) for i in range(len(trained)))


def test_two_conversations_are_the_fewest():
    one = Corpus(np.arange(4), np.ones(4), np.array([0, 4]))
    with pytest.raises(ValueError, match="two conversations"):
        split(one)
    assert [len(part) for part in split(Corpus(np.arange(4), np.ones(4), np.array([0, 2, 4])))] == [1, 1]


def test_a_greeting_is_not_marked_and_a_reply_without_a_known_end_ends_where_it_was_shown(encoder):
    """Fine-tunes often leave the turn's end out of their generation config."""
    encoder = Encoder(MODEL)
    encoder.tokenizer.chat_template, encoder._ends = QWEN, {1_999_999}
    turns = [("assistant", "hello there"), ("user", "a"), ("assistant", "one fine day"), ("user", "b")]
    ids, said = encoder.encode(
        {"messages": [{"role": role, "content": text, "tool_calls": []} for role, text in turns]}
    )
    assert encoder.tokenizer.decode(ids[said > 0]) == "one fine day<|end|>\n"


def test_a_conversation_that_the_template_refuses_is_named(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text('{"messages": [{"content": "hello"}]}\n')
    with pytest.raises(ValueError, match="conversation 1"):
        load(path, MODEL)
