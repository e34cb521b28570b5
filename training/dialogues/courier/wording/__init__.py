"""What is said in courier calls, by act."""

from training.dialogues.courier.wording.caller_answers import ANSWERS
from training.dialogues.courier.wording.caller_talk import TALK
from training.dialogues.courier.wording.caller_wishes import WISHES
from training.dialogues.courier.wording.clerk import CLERK
from training.dialogues.courier.wording.findings import FINDINGS

CALLER: dict[str, tuple[str, ...]] = {**TALK, **WISHES, **ANSWERS}
AGENT: dict[str, tuple[str, ...]] = {**CLERK, **FINDINGS}
