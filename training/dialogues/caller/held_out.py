# ruff: noqa: E501 - a template is read best on one line
"""Acts of the intents that are never trained: all of it is unseen wording. Owns wording only. New templates of an act go at its end: every fifth is held out."""

HELD_OUT: dict[str, tuple[str, ...]] = {
    "book_for_other": (
        "{I'd like to|I want to|Can I} book <a_service> for my {son|daughter|mother|husband|wife|friend} <name> <when>.",
        "My {son|daughter|mother|husband|wife} <name> needs <a_service>, {can you do|how about} <when>?",
    ),
    "ask_free": (
        "{I don't want to book yet, |}{do you have|is there} {anything|room} <when>?",
        "{Just checking, |}{are you free|is anything open} <when>?",
    ),
    "call_back": (
        "{Can|Could} {someone|somebody} call me back about <topic>?",
        "{Please have|I'd like} someone {call me|ring me} about <topic>.",
    ),
}
