"""Reads ``options.proto``: sampling, a turn's options, and what this version cannot constrain."""

from __future__ import annotations

from engine.errors import InvalidSampling
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb
from service.options import Generation, GenerationPatch, TurnOptions
from service.problems import invalid, unimplemented
from service.wire.fields import at_least_one, given

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
PLAIN = "plain"
"""The drafting mode of a reply for which nobody drafts."""


def turn_options(options: options_pb.TurnOptions, event: str) -> TurnOptions:
    """The options of a turn, which lie in the field ``options`` of ``event``."""
    path = f"{event}.options"
    refuse_constraints(options.tool_choice, options.response_format, path)
    if options.drafting_mode not in ("", PLAIN):
        raise invalid(f"{path}.drafting_mode", f"must be empty or {PLAIN}")
    return TurnOptions(
        traceparent=options.traceparent,
        tracestate=options.tracestate,
        first_token_deadline_ms=at_least_one(options, "first_token_deadline_ms", path),
        generation=generation(options.sampling, f"{path}.sampling", drafting=False if options.drafting_mode else None),
    )


def generation(message: options_pb.Sampling, path: str, *, drafting: bool | None = None) -> GenerationPatch:
    """What ``Sampling`` says, every value of it in range."""

    def number(name: str) -> float | None:
        return float(getattr(message, name)) if message.HasField(name) else None  # type: ignore[arg-type]

    patch = GenerationPatch(
        temperature=number("temperature"),
        top_k=given(message, "top_k"),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
        seed=given(message, "seed"),
        max_tokens=at_least_one(message, "max_output_tokens", path),
        stop_strings=tuple(message.stop_strings),
        stop_token_ids=frozenset(message.stop_token_ids),
        drafting=drafting,
    )
    if len(patch.stop_strings) > MAX_STOP_STRINGS:
        raise invalid(f"{path}.stop_strings", f"must be at most {MAX_STOP_STRINGS}")
    if not all(0 < len(stop.encode()) <= MAX_STOP_STRING_BYTES for stop in patch.stop_strings):
        raise invalid(f"{path}.stop_strings", f"must each have 1 to {MAX_STOP_STRING_BYTES} bytes")
    try:
        patch.apply(Generation())
    except InvalidSampling as error:
        name, _, rest = str(error).partition(" ")
        raise invalid(f"{path}.{name}", rest) from None
    return patch


def refuse_constraints(choice: conversation_pb.ToolChoice, form: conversation_pb.ResponseFormat, path: str) -> None:
    """Raise Problem for a reply that must have a form of its own, which needs a grammar."""
    auto = (conversation_pb.TOOL_CHOICE_MODE_UNSPECIFIED, conversation_pb.TOOL_CHOICE_MODE_AUTO)
    if choice.mode not in auto or choice.tool_name or choice.HasField("parallel"):
        raise unimplemented(f"{path}.tool_choice")
    if form.WhichOneof("format") is not None:
        raise unimplemented(f"{path}.response_format")
