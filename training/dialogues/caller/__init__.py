"""What callers say, by act. Every fifth template of an act is held out of training (`phrases.template_ids`)."""

from training.dialogues.caller.answers import ANSWERS
from training.dialogues.caller.courtesies import COURTESIES
from training.dialogues.caller.held_out import HELD_OUT
from training.dialogues.caller.questions import QUESTIONS
from training.dialogues.caller.wishes import WISHES

CALLER: dict[str, tuple[str, ...]] = {**COURTESIES, **WISHES, **ANSWERS, **QUESTIONS, **HELD_OUT}
