"""What the tool-call evaluation counts and how its table names it."""

from evals.tool_calls import JUDGED, Score, as_json, as_markdown, count

GOLD = {"name": "book", "arguments": {"day": "Tuesday"}}


def test_a_null_argument_that_nobody_asked_for_is_an_error():
    score = Score()
    count(score, GOLD, {"name": "book", "arguments": {"day": "Tuesday", "note": None}}, "")
    assert (score.fields["note"], score.right["note"], score.field_match) == (1, 0, 0.5)
    gold = {"name": "book", "arguments": {"day": "Tuesday", "note": None}}
    count(score, gold, GOLD, "")
    assert (score.fields["note"], score.right["note"]) == (2, 0)
    count(score, gold, gold, "")
    assert (score.fields["note"], score.right["note"]) == (3, 1)


def test_gold_bits_are_not_shown_as_the_judged_figure():
    score = Score(calls=1, spoken_turns=2, gold_bits=20.0, sampled_bits=9.0)
    table, figures = as_markdown({JUDGED: score}), as_json({JUDGED: score})[JUDGED]
    assert "| bits of the gold turn |" in table.splitlines()[0]
    assert (figures["bits_of_the_gold_turn"], figures["bits_of_the_sampled_turn"]) == (10.0, 9.0)
    assert "sampled at temperature 1, carry 9.0 bits each (at least 8 are wanted)" in table
