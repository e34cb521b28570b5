"""What the service does with a turn while it is being said, in words for people."""

from __future__ import annotations

from firstword import CallError, Notice
from firstword.talk.exchange import PROGRESS


class Hearing:
    """Takes the notices of a call with ``progress_notices``; as text, it is what the newest of them say."""

    def __init__(self) -> None:
        self._turn_id: int | None = None
        self._prefilled = ""
        self._ahead = ""

    def take(self, what: Notice | CallError) -> None:
        """For ``on_notice``. Refusals are for whoever asked."""
        if isinstance(what, CallError) or what.kind not in PROGRESS:
            return
        if what.turn_id != self._turn_id:
            self._turn_id, self._prefilled, self._ahead = what.turn_id, "", ""
        details = what.details
        if what.kind == "prefilled_ahead":
            computed, rewound = details["computed_tokens"], details["rewound_tokens"]
            self._prefilled = f"heard: {details['hypothesis_tokens']} tokens, {computed} computed now"
            self._prefilled += f", {rewound} rewound" if rewound else ""
        else:
            self._ahead = f"a reply made ahead: {details['state']}, {details['held_tokens']} tokens"

    def __str__(self) -> str:
        return "   ".join(filter(None, (self._prefilled, self._ahead)))
