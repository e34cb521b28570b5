"""The dialogue generator: deterministic, disjoint splits, and tool calls that can be copied from the conversation."""

import json
import re

import pytest

from training.dialogues import Split, dialogue, drill, flows
from training.dialogues.agent_wording import AGENT
from training.dialogues.business import KINDS
from training.dialogues.call import with_article
from training.dialogues.caller import CALLER
from training.dialogues.names import is_held_out
from training.dialogues.noise import PROTECT, RELEASE, protect, recognise, spoken_phone, spoken_time
from training.dialogues.phrases import expand, parse, template_ids

SEEDS = range(300)
HELD = Split(names=True, paraphrases=True)
DIGITS = dict(
    zip(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], "0123456789", strict=True)
)


def calls(item):
    return [message["tool_calls"][0]["function"] for message in item.messages if "tool_calls" in message]


def test_the_same_seed_makes_the_same_call():
    assert dialogue(7) == dialogue(7)
    assert dialogue(7) != dialogue(8)
    assert dialogue(7, HELD) != dialogue(7)


def test_no_control_characters_or_template_marks_are_left():
    for seed in SEEDS:
        text = json.dumps(dialogue(seed, HELD).messages, ensure_ascii=False)
        assert not re.search(r"[<>|\x01\x02]|\\u000", text), text
        assert "  " not in text


@pytest.mark.parametrize("act", [*CALLER, *AGENT])
def test_every_template_parses_and_has_room_to_be_held_out(act):
    templates = CALLER.get(act, ()) + AGENT.get(act, ())
    for template in templates:
        parse(template)
        assert not re.search(r"[\[\]]", template)
    if act in CALLER and act not in flows.HELD_OUT:
        assert len(CALLER[act]) >= 5, "one in five paraphrases is held out"


@pytest.mark.parametrize("bad", ["{a|b", "a|b", "a}b", "{a{b}"])
def test_broken_templates_are_refused(bad):
    with pytest.raises(ValueError):
        parse(bad)


def test_the_paraphrase_split_is_a_partition():
    for templates in CALLER.values():
        trained, held = template_ids(len(templates), False), template_ids(len(templates), True)
        assert sorted(trained + held) == list(range(len(templates)))
    shapes = {
        split: {act: {t for i in template_ids(len(ts), split) for t in [ts[i]]} for act, ts in CALLER.items()}
        for split in (False, True)
    }
    assert all(not (shapes[False][act] & shapes[True][act]) for act in CALLER)


def name_words(item):
    return {word for call in calls(item) for word in call["arguments"].get("name", "").split()}


def test_no_word_of_a_held_out_name_is_ever_trained():
    trained = set().union(*(name_words(dialogue(seed)) for seed in SEEDS))
    held = set().union(*(name_words(dialogue(seed, HELD)) for seed in SEEDS))
    assert len(trained) > 100 and len(held) > 100
    assert not trained & held
    assert not any(is_held_out(word) for word in trained) and all(is_held_out(word) for word in held)


def test_held_out_intents_are_never_trained():
    trained = {intent for seed in SEEDS for intent in dialogue(seed).intents}
    held = {intent for seed in SEEDS for intent in dialogue(seed, Split(intents=True)).intents}
    assert trained == set(flows.TRAINED) and held == set(flows.HELD_OUT)


def spoken_as_digits(text):
    """ "five five five, one two" as "55512" runs, so that a spoken number can be found."""
    return "".join(DIGITS.get(word, " ") for word in re.findall(r"[a-z]+", text.lower()))


@pytest.mark.parametrize("split", [Split(), HELD, Split(True, True, True)], ids=lambda split: split.label)
def test_every_argument_stands_in_the_conversation_before_the_call(split):
    checked = 0
    for seed in SEEDS:
        item = dialogue(seed, split)
        before = ""
        for message in item.messages:
            for call in message.get("tool_calls", []):
                for key, value in call["function"]["arguments"].items():
                    forms = {value.lower(), value.lower().replace(".", "")}
                    if key == "time":
                        forms.add(spoken_time(value))
                    copied = any(form in before.lower() for form in forms)
                    spoken = key == "phone" and value.replace("-", "") in spoken_as_digits(before).replace(" ", "")
                    assert copied or spoken, (key, value, before[-600:])
                    checked += 1
            before += " " + message["content"]
    assert checked > 500


def test_arguments_are_what_the_tool_declares():
    for seed in SEEDS:
        item = dialogue(seed)
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in item.tools}
        for call in calls(item):
            schema = schemas[call["name"]]
            assert set(schema["required"]) <= set(call["arguments"]) <= set(schema["properties"]), call


def test_the_rules_decide_what_is_called():
    """The flags of the system prompt, not chance: availability is checked exactly where the rules say so."""
    for seed in SEEDS:
        item = dialogue(seed)
        system = item.messages[0]["content"]
        names = [call["name"] for call in calls(item)]
        assert ("check_availability" in names) <= ("check availability: yes" in system)
        if "book_appointment" in names and "check availability: yes" in system:
            assert names.index("check_availability") < names.index("book_appointment")


def test_a_drill_ends_with_its_call():
    for seed in range(50):
        item = drill(seed)
        assert "tool_calls" in item.messages[-1] and len(calls(item)) == 1


def test_recogniser_noise_never_touches_a_value():
    import random

    for seed in range(200):
        rng = random.Random(seed)
        assert recognise(rng, f"This is {protect('Wright')}.", 0.9, lower=False).endswith("Wright.")
        heard = recognise(
            rng,
            f"there it is for {protect('Wright Fourr')} to hear at {protect('555-123-4567')}, right",
            0.8,
            lower=False,
        )
        assert "Wright Fourr" in heard and "555-123-4567" in heard
        assert PROTECT not in heard and RELEASE not in heard
        assert "555-123-4567" in recognise(rng, f"Call {protect('555-123-4567')}, now.", 0.5, lower=True)


def test_spoken_forms():
    import random

    assert spoken_time("2:30 pm") == "two thirty pm" and spoken_time("11 am") == "eleven am"
    assert spoken_phone(random.Random(1), "555-0142").replace(",", "") == "five five five zero one four two"


def test_articles():
    assert (
        with_article("eye exam") == "an eye exam"
        and with_article("haircut") == "a haircut"
        and with_article("highlights") == "highlights"
    )
    for kind, (_, services) in KINDS.items():
        assert kind and len(services) >= 5


def test_expansion_uses_every_option():
    import random

    rng = random.Random(0)
    assert {expand(rng, "{a|b|}{, c|}") for _ in range(300)} == {"a", "b", "", "a, c", "b, c", ", c"}
