"""The tokenizer and its chat template: what is trained is exactly what `apply_chat_template` renders."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from training import tokenizer as tokens
from training.data import _plain
from training.dialogues import Split, dialogue


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer trained on a few calls, saved and loaded the way a service loads it."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokens.train(_plain(dialogue(seed) for seed in range(300))).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("seed", range(12))
def test_training_text_is_what_the_template_renders(tokenizer, seed):
    item = dialogue(seed, Split(names=True, paraphrases=True))
    rendered = tokenizer.apply_chat_template(item.messages, tools=item.tools, tokenize=False)
    assert "".join(segment.text for segment in tokens.segments(item.messages, item.tools)) == rendered
    ids, weights = tokens.encode(tokenizer, item.messages, item.tools)
    assert ids.tolist() == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == rendered
    assert len(weights) == len(ids)


@pytest.mark.parametrize("seed", range(6))
def test_a_shorter_conversation_is_a_prefix(tokenizer, seed):
    item = dialogue(seed)

    def render(count, prompt=False):
        return tokenizer.apply_chat_template(
            item.messages[:count], tools=item.tools, tokenize=False, add_generation_prompt=prompt
        )

    for count in range(1, len(item.messages)):
        assert render(count + 1).startswith(render(count))
        if item.messages[count]["role"] == "assistant":
            assert render(count + 1).startswith(render(count, prompt=True))


def test_arguments_may_be_a_json_string(tokenizer):
    function = {"name": "cancel_appointment", "arguments": {"id": "K4821"}}
    as_dict = [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}]
    as_text = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {**function, "arguments": '{"id": "K4821"}'}}]}
    ]
    rendered = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in (as_dict, as_text)]
    assert rendered[0] == rendered[1]
    assert rendered[0].endswith(
        '<tool_call>{"name": "cancel_appointment", "arguments": {"id": "K4821"}}</tool_call><|end|>'
    )


def test_digits_are_single_tokens_and_names_keep_their_tokens(tokenizer):
    digits = tokenizer("555-0142", add_special_tokens=False)["input_ids"]
    assert len(digits) == 8
    name = tokenizer("Minack", add_special_tokens=False)["input_ids"]
    for text in ('is Minack"', '{"name": "Minack"}', "Sure. Minack, thanks"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert any(ids[at : at + len(name)] == name for at in range(len(ids))), text


def test_only_assistant_tokens_carry_a_loss(tokenizer):
    item = dialogue(3)
    ids, weights = tokens.encode(tokenizer, item.messages, item.tools)
    learned = tokenizer.decode(ids[np.asarray(weights) > 0])
    said = "".join(segment.text for segment in tokens.segments(item.messages, item.tools) if segment.kind != "context")
    assert learned == said
    end = tokenizer.convert_tokens_to_ids(tokens.END)
    assert (ids[np.asarray(weights) > 0] == end).sum() == sum(
        message["role"] == "assistant" for message in item.messages
    )


def test_any_text_survives(tokenizer):
    for text in ("Grüße, 你好 🙂", "tab\tand\nnewline", "I'm I'd  two  spaces", "$45.50 (50%)"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
