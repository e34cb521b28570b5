"""Reads ``options.proto``: sampling, a turn's options, and what form a reply shall have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from engine.errors import InvalidSampling
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb
from service.options import Generation, GenerationPatch, ToolChoice, ToolMode, TurnOptions
from service.problems import invalid
from service.wire.fields import at_least_one, given, json_schema, present

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
_MODES: Mapping[int, ToolMode] = {
    conversation_pb.TOOL_CHOICE_MODE_UNSPECIFIED: "auto",
    conversation_pb.TOOL_CHOICE_MODE_AUTO: "auto",
    conversation_pb.TOOL_CHOICE_MODE_NONE: "none",
    conversation_pb.TOOL_CHOICE_MODE_REQUIRED: "required",
}
PLAIN = "plain"
"""The drafting mode of a reply for which nobody drafts."""


def turn_options(options: options_pb.TurnOptions, event: str) -> TurnOptions:
    """The options of a turn, which lie in the field ``options`` of ``event``."""
    path = f"{event}.options"
    if options.drafting_mode not in ("", PLAIN):
        raise invalid(f"{path}.drafting_mode", f"must be empty or {PLAIN}")
    return TurnOptions(
        traceparent=options.traceparent,
        tracestate=options.tracestate,
        first_token_deadline_ms=at_least_one(options, "first_token_deadline_ms", path),
        generation=replace(
            generation(options.sampling, f"{path}.sampling"),
            drafting=False if options.drafting_mode else None,
            tool_choice=tool_choice(options.tool_choice, path),
            text_schema=text_schema(options, path),
        ),
    )


def generation(message: options_pb.Sampling, path: str) -> GenerationPatch:
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


def tool_choice(message: conversation_pb.ToolChoice, path: str) -> ToolChoice | None:
    """None where nothing is said. That the tools are there is for others to see."""
    several = message.parallel if message.HasField("parallel") else True
    match message.WhichOneof("choice"):
        case "tool_name":
            return ToolChoice("required", present(message.tool_name, f"{path}.tool_choice.tool_name"), several)
        case "mode":
            if message.mode not in _MODES:
                raise invalid(f"{path}.tool_choice.mode", "is none that this version knows")
            return ToolChoice(_MODES[message.mode], "", several)
        case _:
            return ToolChoice(several=several) if message.HasField("parallel") else None


Shaped = client_pb.Open | client_pb.Update | client_pb.Generate | options_pb.TurnOptions
"""What may ask for a form of replies."""


def text_schema(container: Shaped, path: str) -> str | None:
    """JSON Schema of a reply's text, empty for free text; None where nothing is said."""
    if not container.HasField("response_format"):
        return None
    form = container.response_format
    if form.WhichOneof("format") is None:
        return ""
    return json.dumps(json_schema(form.json_schema, f"{path}.response_format.json_schema"))
