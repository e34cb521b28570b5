"""What the line above the input says."""

import grpc

from firstword import CallError, Notice
from firstword.talk.hearing import Hearing


def prefilled(turn: int, tokens: int, computed: int, rewound: int) -> Notice:
    counts = {"revision": 1, "hypothesis_tokens": tokens, "computed_tokens": computed, "rewound_tokens": rewound}
    return Notice("prefilled_ahead", "", turn, counts)


def test_the_newest_of_a_turn_is_shown_and_nothing_of_the_turn_before():
    hearing = Hearing()
    assert str(hearing) == ""
    hearing.take(prefilled(1, 9, 9, 0))
    assert str(hearing) == "heard: 9 tokens, 9 computed now"
    hearing.take(prefilled(1, 12, 5, 2))
    hearing.take(Notice("answer_ahead", "", 1, {"state": "started", "held_tokens": 0}))
    both = "heard: 12 tokens, 5 computed now, 2 rewound   a reply made ahead: started, 0 tokens"
    assert str(hearing) == both
    hearing.take(Notice("engine_restarted", "", None, {"model": "m"}))
    hearing.take(CallError(grpc.StatusCode.ABORTED, "STALE_TURN", ""))
    assert str(hearing) == both
    hearing.take(Notice("answer_ahead", "", 2, {"state": "expired", "held_tokens": 4}))
    assert str(hearing) == "a reply made ahead: expired, 4 tokens"
