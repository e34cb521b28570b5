"""Courier calls: deterministic, of the shape a chat template takes, said in correct English, and with tool calls that
can be copied from the conversation.
"""

import json
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from training import tokenizer as tokens
from training.dialogues import dialogue as business_dialogue
from training.dialogues.courier import dialogue, flows
from training.dialogues.courier.service_call import sentences
from training.dialogues.courier.wording import AGENT, CALLER
from training.dialogues.phrases import evenly, expand, fill

ROOT = Path(__file__).parents[2]
SEEDS = range(300)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = dict(zip(WORDS, "0123456789", strict=True))
SAMPLE = {
    "address": "14 Abbey Row, Selby",
    "ago": "9 days ago",
    "at": "Corby",
    "cause": "a signature is required",
    "close": "19:00",
    "company": "Glieini Freight",
    "cover": "£100",
    "day": "next Monday",
    "days": "14",
    "depot": "Corby",
    "due": "Friday",
    "fee": "£3.40",
    "from": "14:00",
    "goods": "batteries",
    "greeting": "Good morning",
    "list": "paint tins, perfumes and lighters",
    "matter": "the driver blocked the drive",
    "most": "10",
    "name": "Mrs Salazar",
    "number": "KD-4071-9928",
    "offer": "tomorrow",
    "on_day": "on Tuesday",
    "on_due": "tomorrow",
    "open": "07:00",
    "place": "Unit 7, Quay Road",
    "prefix": "KD",
    "price": "£8",
    "reason": "the brass clock arrived cracked",
    "ref": "CL20417",
    "signed": "a neighbour",
    "sir": "madam",
    "state": "out for delivery",
    "to": "16:00",
    "until": "Friday",
    "weekday": "Saturday",
    "weekdays": "Monday to Friday",
    "weight": "4 kg",
}
BLEMISHES = {
    "double space": r"  |^ | $",
    "space before punctuation": r" [.,?!;:]",
    "punctuation twice": r"[.,?!;:][.,?!;:]",
    "word twice": rf"\b(?!{'|'.join(WORDS)})(\w\w+) \1\b",
    "article": r"\b[Aa] [aeiou]|\b[Aa]n (?!hour)[^aeiou]",
    "left from a template": r"[<>|{}\x01\x02]",
    "small letter at the start": r"(?:^|[.?!] )[a-z]",
    "no end": r"[^.?!]$",
    "two prepositions": r"\b(?:on|for|until) (?:on|for|until)\b|\bon (?:tomorrow|yesterday|next)\b",
}
ASKS = re.compile(r"(?:Is|Are|Does|Can|Could|Shall|May|Must|Might|Have I|Have you|Whom|Where|On which|To what|May I)\b")
"""How a sentence begins that can only be a question."""


@pytest.fixture(scope="module")
def calls():
    return [dialogue(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "models" / "receptionist")


def blemishes(text):
    found = [name for name, pattern in BLEMISHES.items() if re.search(pattern, text)]
    asked = [part for part in re.split(r"(?<=[.?!]) ", text) if ASKS.match(part) and not part.endswith("?")]
    return found + asked


def functions(item):
    return [message["tool_calls"][0]["function"] for message in item.messages if "tool_calls" in message]


def test_the_same_seed_makes_the_same_call():
    assert dialogue(7) == dialogue(7)
    assert dialogue(7) != dialogue(8)


def test_every_intent_is_drawn_and_a_call_has_one_to_four(calls):
    assert {intent for item in calls for intent in item.intents} == set(flows.INTENTS)
    assert {len(item.intents) for item in calls} == {1, 2, 3, 4}


def test_roles_alternate_and_every_tool_call_has_its_result(calls):
    follows = {
        "system": {"user", "assistant"},
        "user": {"assistant", "call"},
        "assistant": {"user"},
        "call": {"tool"},
        "tool": {"assistant", "call"},
    }
    for item in calls:
        roles = ["call" if "tool_calls" in message else message["role"] for message in item.messages]
        assert roles[0] == "system" and roles[-1] == "assistant"
        assert all(after in follows[before] for before, after in pairwise(roles)), roles
        assert all(isinstance(json.loads(m["content"]), dict) for m in item.messages if m["role"] == "tool")
        assert all(m["content"] for m in item.messages if "tool_calls" not in m)


def test_the_template_renders_what_fits_the_context(calls, tokenizer):
    lengths = []
    for item in calls:
        text = "".join(segment.text for segment in tokens.segments(item.messages, item.tools))
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert max(lengths) < 1600
    assert 600 < sum(lengths) / len(lengths) < 1000
    for item in calls[:12]:
        rendered = tokenizer.apply_chat_template(item.messages, tools=item.tools, tokenize=False)
        assert rendered == "".join(segment.text for segment in tokens.segments(item.messages, item.tools))


def test_arguments_are_what_the_tool_declares(calls):
    for item in calls:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in item.tools}
        for function in functions(item):
            assert list(function["arguments"]) == schemas[function["name"]]["required"]


def bare(text):
    """As a recogniser without punctuation and capitals writes it."""
    return re.sub(r"[.,?!;]", "", text).lower()


def spoken_digits(text):
    return "".join(DIGITS.get(word, " ") for word in re.findall(r"[a-z]+", text.lower())).replace(" ", "")


def test_what_a_tool_receives_was_said_before(calls):
    """By the caller; only a day may be the clerk's offer, which the caller took."""
    checked = set()
    for item in calls:
        heard = offered = ""
        for message in item.messages[1:]:
            heard += " " + message["content"] * (message["role"] == "user")
            offered += " " + message["content"] * (message["role"] == "assistant")
            for call in message.get("tool_calls", []):
                for key, value in call["function"]["arguments"].items():
                    said = bare(value) in bare(heard) or (key == "day" and bare(value) in bare(offered))
                    in_words = key == "number" and re.sub(r"\D", "", value) in spoken_digits(heard)
                    assert said or in_words, (key, value, heard)
                    checked.add((call["function"]["name"], key))
    assert len(checked) == 9, "every parameter of every tool"


def days_since(posted):
    """ "9 days ago" as 9."""
    if posted == "yesterday":
        return 1
    number, unit = posted.split()[:2]
    count = {"a": 1, "two": 2, "three": 3, "four": 4, "five": 5}.get(number) or int(number)
    return count * (7 if unit.startswith("week") else 1)


def test_the_rules_decide_what_is_done(calls):
    """What the prompt and the results say, not chance, is why something is done, refused or asked."""
    done = set()
    for item in calls:
        system, status = item.messages[0]["content"], {}
        for index, message in enumerate(item.messages):
            if "tool_calls" not in message:
                continue
            function = message["tool_calls"][0]["function"]
            name, arguments = function["name"], function["arguments"]
            before = [m["content"] for m in item.messages[:index] if m["role"] == "assistant"]
            if name == "track_parcel":
                status[arguments["number"]] = json.loads(item.messages[index + 1]["content"]).get("status")
                continue
            done.add(name)
            if "Confirm before acting: yes" in system:
                assert item.messages[index - 1]["role"] == "user"
                assert any(value in sentences(before[-1]) for value in arguments.values()), before[-1]
            if name == "redirect_parcel":
                assert status[arguments["number"]] in ("in transit", "delayed", "held")
            if name == "schedule_collection":
                assert "Sunday" not in arguments["day"]
                assert "Saturday" not in arguments["day"] or "Collections: Monday to Saturday" in system
    assert len(done) == 4


def test_late_claims_are_refused(calls):
    refused = opened = 0
    for item in calls:
        limit = int(re.search(r"within (\d+) days of posting", item.messages[0]["content"])[1])
        for before, after in pairwise(item.messages):
            ago = re.search(r"yesterday|(?:\d+ days|(?:a|two|three|four|five) weeks?) ago", before["content"].lower())
            if before["role"] != "user" or not ago:
                continue
            if "open_claim" in json.dumps(after):
                opened += 1
                assert days_since(ago[0]) <= limit
            elif re.search(rf"\b{limit} days", after["content"]):
                refused += 1
                assert days_since(ago[0]) > limit
    assert opened > 5 and refused > 5


def test_calls_are_said_in_correct_english(calls):
    for item in calls:
        for message in item.messages[1:]:
            text = message["content"]
            if message["role"] == "tool" or "tool_calls" in message or text == text.lower():
                continue
            assert not blemishes(text), text


@pytest.mark.parametrize("act", [*CALLER, *AGENT])
def test_every_wording_of_an_act_is_correct_english(act):
    templates = CALLER.get(act, ()) + AGENT.get(act, ())
    assert len(set(templates)) >= (12 if act in CALLER else 6)
    rng = random.Random(act)
    for template in templates:
        for text in {sentences(fill(expand(rng, template, evenly), SAMPLE)) for _ in range(40)}:
            assert not blemishes(text), text


def turns(items, role):
    return [m["content"] for item in items for m in item.messages if m["role"] == role and m["content"]]


def test_calls_are_not_repetitive(calls):
    first = {next(m["content"] for m in item.messages if m["role"] == "assistant") for item in calls}
    assert len(first) > 0.95 * len(calls)
    for role in ("user", "assistant"):
        said = turns(calls, role)
        assert len(set(said)) > 0.75 * len(said), role


def test_the_style_is_not_that_of_the_small_businesses(calls):
    """Hardly a whole turn of the clerk is one of the receptionist's."""
    receptionist = set(turns([business_dialogue(seed) for seed in SEEDS], "assistant"))
    assert sum(turn in receptionist for turn in turns(calls, "assistant")) < 5
    names = {tool["function"]["name"] for tool in business_dialogue(1).tools}
    assert not names & {tool["function"]["name"] for tool in calls[0].tools}


def test_the_command_writes_one_call_a_line(tmp_path):
    out = tmp_path / "new" / "calls.jsonl"
    command = [sys.executable, "-m", "training.dialogues.courier", "--calls", "3", "--first", "5", "--out", str(out)]
    subprocess.run(command, check=True, cwd=ROOT)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written == [{"messages": d.messages, "tools": d.tools} for d in (dialogue(seed) for seed in (5, 6, 7))]
