"""The end of a partial that may still be revised waits: what is computed at once, what later, and what never."""

from __future__ import annotations

import pytest

from service import client_events as client
from service import server_events as server
from service.config import CallConfig
from service.listening import settled_part
from tests.service.calls import SYSTEM, CallUnderTest


@pytest.fixture
def call():
    return CallUnderTest(client.Open(system=SYSTEM, seed=7), config=CallConfig(unstable_partial_ms=100))


def computed(call: CallUnderTest, text: str) -> bool:
    """Whether the engine's log holds this, and no more, behind the history."""
    call.run()
    conversation = call.conversation
    ahead = (*conversation.user_tokens(text), *conversation.prompt) if text else ()
    return call.engine.log(call.call.session) == (*conversation.tokens, *ahead)


def test_what_two_partials_agree_on_is_computed_at_once_and_the_rest_once_it_has_stood(call):
    call.send(client.Partial(1, 1, "could you tell"))
    assert computed(call, "") and len(call.timers) == 1
    call.send(client.Partial(1, 2, "could you tell me when"))
    assert computed(call, "could you tell") and len(call.timers) == 1
    call.wait()
    assert computed(call, "could you tell me when")


def test_a_word_that_was_revised_in_time_was_never_computed():
    """What is rewound is the end of the turn, which stands behind whatever was said so far."""
    rewound = {}
    for waits_ms in (0, 100):
        call = CallUnderTest(client.Open(system=SYSTEM, seed=7), config=CallConfig(unstable_partial_ms=waits_ms))
        for revision, text in enumerate(("could you", "could you sell me", "could you tell me"), 1):
            call.send(client.Partial(1, revision, text))
            call.run()
        call.wait()
        call.send(client.Final(1, "could you tell me"))
        call.run()
        rewound[waits_ms] = call.of(server.TurnEnded)[0].account.stats[0].rewound
    assert rewound[100] < rewound[0]


def test_what_the_recogniser_calls_stable_is_computed_at_once(call):
    call.send(client.Partial(1, 1, "could you tell me", stable=9))
    assert computed(call, "could you")


def test_the_same_text_again_waits_no_longer_and_does_not_begin_anew(call):
    call.send(client.Partial(1, 1, "could you"))
    (timer,) = call.timers
    call.send(client.Partial(1, 2, "could you"))
    assert call.timers == [timer]


@pytest.mark.parametrize("after", [client.EagerEndOfTurn(1, 2, "could you"), client.Final(1, "could you")])
def test_an_end_of_turn_does_not_wait(call, after):
    expected = call.conversation.user_tokens("could you")
    begin = len(call.conversation.tokens)
    call.send(client.Partial(1, 1, "could"), after)
    assert not [seconds for seconds, _ in call.timers if seconds == 0.1]
    call.engine.step()
    assert call.engine.log(call.call.session)[begin:][: len(expected)] == expected


@pytest.mark.parametrize(
    ("text", "before", "settled"),
    [
        ("could you tell", "could you", "could you"),
        ("could your", "could you", "could"),
        ("could you", "could you tell", "could you"),
        ("cold", "could", ""),
        ("could", "", ""),
        ("", "could", ""),
    ],
)
def test_settled_are_whole_words_that_both_say(text, before, settled):
    assert settled_part(client.Partial(1, 2, text), client.Partial(1, 1, before)) == settled


def test_another_turns_hypothesis_settles_nothing():
    assert settled_part(client.Partial(2, 2, "could you tell"), client.Partial(1, 1, "could you")) == ""
    assert settled_part(client.Partial(2, 2, "could you tell"), None) == ""
