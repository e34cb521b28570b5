"""Conversations in a target's own tokens: replies are marked exactly, under any chat template, bad files are refused by
name, and a file is encoded once.
"""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.engine.embedded import MODEL
from tests.engine.text.templates import OLD_MISTRAL
from training import conversations
from training import tokenizer as tokens
from training.conversations import HELD_OUT_EVERY, Encoded, Encoder, load, load_once, read_lines, split
from training.corpus import Corpus
from training.dialogues import dialogue
from training.parallel import ALONE

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
THOUGHTLESS = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{% set c = m['content'] %}{% if not loop.last %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
"""Forgets what was thought before an answer once more is said, as Qwen3's does."""


def turns(*pairs):
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def encoder_with(template):
    encoder = Encoder(MODEL)
    encoder.tokenizer.chat_template = template.strip()
    return encoder


def said(encoder, row):
    """The texts that are marked in a row."""
    runs = np.split(row.ids[row.said > 0], np.flatnonzero(np.diff(np.flatnonzero(row.said)) > 1) + 1)
    return [encoder.tokenizer.decode(run) for run in runs if len(run)]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(MODEL)


def test_it_marks_what_the_embedded_models_own_encoding_marks(encoder):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for seed in range(20):
        call = dialogue(900_000 + seed)
        ids, weights = tokens.encode(tokenizer, call.messages, call.tools)
        (row,) = encoder.encode({"messages": call.messages, "tools": call.tools})
        assert row.ids.tolist() == ids.tolist()
        assert row.said.tolist() == (weights > 0).astype(int).tolist()
        assert row.replies == sum(message["role"] == "assistant" for message in call.messages)


def test_arguments_written_as_text_are_read(encoder):
    call = next(item for item in map(dialogue, range(50)) if any("tool_calls" in m for m in item.messages))
    written = json.loads(json.dumps(call.messages))
    for message in written:
        for tool_call in message.get("tool_calls", []):
            tool_call["function"]["arguments"] = json.dumps(tool_call["function"]["arguments"])
    found = [encoder.encode({"messages": messages, "tools": call.tools})[0] for messages in (call.messages, written)]
    assert np.array_equal(found[0].ids, found[1].ids)


def test_replies_under_another_template():
    encoder = encoder_with(QWEN)
    (row,) = encoder.encode(turns(("user", "a"), ("assistant", "one fine day"), ("user", "b"), ("assistant", "two")))
    assert said(encoder, row) == ["one fine day<|end|>", "two<|end|>"]


TALK = (
    ("system", "Be brief."),
    ("user", "yes"),
    ("assistant", "<think>\nshort\n</think>\n\nyes, yes"),
    ("user", "yes"),
    ("assistant", "<think>\nbye\n</think>\n\nyes"),
    ("user", "oh"),
)
"""Callers repeat themselves, and the agent repeats them."""


@pytest.mark.parametrize(
    ("template", "space", "apart"),
    [
        (QWEN, "", []),
        (FORGETFUL, "", [2, 4]),
        (THOUGHTLESS, "", [2, 4]),
        (OLD_MISTRAL, " ", [2, 4]),
        (OLD_MISTRAL.replace("[/INST]", ""), " ", [2, 4]),  # nothing tells a caller's words from the same in a reply
    ],
)
def test_a_reply_that_is_shown_otherwise_by_now_is_marked_as_it_was_made(template, space, apart):
    """In a row of its own: the prompt that asked for it, as a server saw it then, and the reply that it got."""
    encoder = encoder_with(template)
    whole, *others = encoder.encode(turns(*TALK))
    replies = {at: f"{space}{TALK[at][1]}<|end|>" for at in (2, 4)}
    assert said(encoder, whole) == [reply for at, reply in replies.items() if at not in apart]
    assert whole.replies == 2 - len(apart)
    for at, row in zip(apart, others, strict=True):
        messages = turns(*TALK[:at])["messages"]
        asked = encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert encoder.tokenizer.decode(row.ids).rstrip("\n") == asked + replies[at]
        assert [text.rstrip("\n") for text in said(encoder, row)] == [replies[at]]
        assert row.replies == 1


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
        load(path, Encoder(MODEL))


def test_long_conversations_end_early_and_none_is_both_trained_and_held_out(tmp_path):
    path = tmp_path / "calls.jsonl"
    calls = [dialogue(seed) for seed in range(HELD_OUT_EVERY + 3)]
    path.write_text("".join(json.dumps({"messages": c.messages, "tools": c.tools}) + "\n" for c in calls))
    whole = load(path, Encoder(MODEL), max_length=300)
    lengths = whole.rows.offsets[1:] - whole.rows.offsets[:-1]
    assert int(lengths.max()) == 300
    assert whole.marked < whole.replies == sum(m["role"] == "assistant" for c in calls for m in c.messages)
    trained, held_out = split(whole)
    assert (len(trained), len(held_out)) == (HELD_OUT_EVERY + 2, 1)
    assert np.array_equal(held_out[0][0], whole.rows[HELD_OUT_EVERY - 1][0])
    assert not any(np.array_equal(trained[i][0], held_out[0][0]) for i in range(len(trained)))


def test_two_conversations_are_the_fewest():
    rows = Corpus(np.arange(4), np.ones(4), np.array([0, 2, 4]))
    with pytest.raises(ValueError, match="two conversations"):
        split(Encoded(rows, np.array([3, 3]), 2, 2, 2))
    assert [len(part) for part in split(Encoded(rows, np.array([3, 4]), 2, 2, 2))] == [1, 1]


def test_all_rows_of_a_conversation_are_held_out_together():
    """Else a drafter is measured on replies that it was trained on the prompts of."""
    of = np.repeat(np.arange(1, 2 * HELD_OUT_EVERY + 1), 3)
    rows = Corpus(of, np.ones(len(of)), np.arange(len(of) + 1))
    trained, held_out = split(Encoded(rows, of, 0, 0, 0))
    assert held_out.ids.tolist() == [HELD_OUT_EVERY] * 3 + [2 * HELD_OUT_EVERY] * 3
    assert not set(trained.ids) & set(held_out.ids) and len(trained) + len(held_out) == len(of)


def test_what_is_marked_is_counted(tmp_path):
    """A greeting is said before the template can be asked for it."""
    call = {"type": "function", "function": {"name": "find", "arguments": "{}"}}
    greeted = turns(("assistant", "hello"), ("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"))
    called = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    }
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in (greeted, called)))
    assert str(load(path, encoder_with(QWEN))) == "3 of 4 replies marked, 0 in a rendering of their own"
    forgetful = load(path, encoder_with(FORGETFUL))
    assert str(forgetful) == "3 of 4 replies marked, 1 in a rendering of their own"
    assert forgetful.of.tolist() == [1, 1, 2], "the first conversation has a row for each of its marked replies"
    assert str(Encoded(None, None, 1210, 1204, 12)) == "1,204 of 1,210 replies marked, 12 in a rendering of their own"


def test_a_reply_of_words_is_rendered_once(monkeypatch):
    """The prompt for it, beside the whole conversation; not the conversation up to its end as well."""
    encoder = encoder_with(QWEN)
    render, rendered = encoder.tokenizer.apply_chat_template, []
    monkeypatch.setattr(
        encoder.tokenizer, "apply_chat_template", lambda m, **k: rendered.append(len(m)) or render(m, **k)
    )
    encoder.encode(turns(*[("user", "a"), ("assistant", "one fine day")] * 3))
    assert rendered == [6, 1, 3, 5]


def test_a_known_end_that_belongs_to_another_message_ends_no_reply():
    """Where the target's own end is not listed, the next that is listed may be a caller's."""
    end = "{{ '<|end|>' if m['role'] == 'user' else '<|pad|>' }}\n"
    encoder = encoder_with(QWEN.replace("<|end|>\n", end))
    (row,) = encoder.encode(turns(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")))
    assert said(encoder, row) == ["one<|pad|>\n", "two<|pad|>\n"]


def test_a_file_is_encoded_once_and_anew_where_anything_is_another(tmp_path, monkeypatch):
    target, path, store = tmp_path / "target", tmp_path / "calls.jsonl", tmp_path / "work" / "conversations.npz"
    shutil.copytree(MODEL, target, ignore=shutil.ignore_patterns("*.safetensors", "eagle3", "medusa", "mtp", "draft"))
    call = turns(("user", "a"), ("assistant", "one fine day"), ("user", "b"), ("assistant", "two"))
    path.write_text(json.dumps(call) + "\n")
    encoded, really = [], conversations.load
    monkeypatch.setattr(conversations, "load", lambda *a: encoded.append(a[0]) or really(*a))

    def loaded(length=64):
        found = load_once(path, target, length, store, ALONE)
        straight = really(path, Encoder(target), length)
        assert str(found) == str(straight) and found.of.tolist() == straight.of.tolist()
        for ours, theirs in zip(vars(found.rows).values(), vars(straight.rows).values(), strict=True):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        return len(encoded)

    assert loaded() == loaded() == 1
    path.write_text(2 * (json.dumps(call) + "\n"))
    assert loaded() == loaded() == 2, "the file"
    assert loaded(30) == loaded(30) == 3, "the length"
    (target / "chat_template.jinja").write_text(QWEN)
    assert loaded(30) == 4, "the template"
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert loaded(30) == 5, "the tokenizer"
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    assert loaded(30) == 6, "what ends a reply"


def test_a_greeting_is_not_marked_and_a_reply_without_a_known_end_ends_where_it_was_shown(encoder):
    """Fine-tunes often leave the turn's end out of their generation config."""
    encoder = encoder_with(QWEN)
    encoder._ends = {1_999_999}
    call = turns(("assistant", "hello there"), ("user", "a"), ("assistant", "one fine day"), ("user", "b"))
    (row,) = encoder.encode({"messages": [{**message, "tool_calls": []} for message in call["messages"]]})
    assert said(encoder, row) == ["one fine day<|end|>\n"]


def test_a_conversation_that_the_template_refuses_is_named(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_text('{"messages": [{"content": "hello"}]}\n')
    with pytest.raises(ValueError, match="conversation 1"):
        load(path, Encoder(MODEL))
