"""Reads the event that opens a call, with its tools and the conversation so far."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import options_pb2 as options_pb
from service.client_events import Open, Resume, Update
from service.items import Item, MessageItem, Role, ToolCallItem, ToolDefinition, ToolResultItem
from service.options import AnswerAheadPatch, ContextAction, ContextPolicy, Fallback, Limits
from service.problems import invalid
from service.wire.fields import at_least_one, given, json_object, json_schema, present
from service.wire.options import generation, text_schema, tool_choice

MAX_NAME_BYTES = 128
MAX_NUMBER = 2**53 - 1
"""Of an event or a generation: a store that counts in doubles still tells it from the next one."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ROLES: Mapping[int, Role] = {
    conversation_pb.ROLE_SYSTEM: "system",
    conversation_pb.ROLE_USER: "user",
    conversation_pb.ROLE_ASSISTANT: "assistant",
}
_CONTEXT_ACTIONS: Mapping[int, ContextAction | None] = {
    options_pb.CONTEXT_FULL_ACTION_UNSPECIFIED: None,
    options_pb.CONTEXT_FULL_ACTION_REFUSE: "refuse",
    options_pb.CONTEXT_FULL_ACTION_DROP_OLDEST: "drop_oldest",
    options_pb.CONTEXT_FULL_ACTION_SUMMARISE: "summarise",
}
_FROM_ONE = ("max_output_tokens_per_turn", "max_call_ms", "max_idle_ms", "tool_timeout_ms")
"""Limits that make no sense as 0."""
_FROM_NONE = ("max_turns", "max_input_code_points", "max_tool_calls_per_turn", "max_tool_calls_per_call")


def opening(message: client_pb.Open) -> Open:
    """The event that begins a call. Raises Problem for what cannot be used."""
    name = message.session_id
    if len(name) > MAX_NAME_BYTES or not (name.isascii() and (name.isprintable() or not name)):
        raise invalid("open.session_id", f"must be at most {MAX_NAME_BYTES} bytes of printable ASCII")
    if message.sampling.HasField("seed"):
        raise invalid("open.sampling.seed", "is a turn's; the call's is open.seed")
    limits = message.limits
    return Open(
        session_id=name,
        model=message.model,
        system=message.system_prompt,
        items=items(message.items, "open.items"),
        tools=_tools(message.tools, "open.tools"),
        generation=replace(
            generation(message.sampling, "open.sampling"),
            tool_choice=tool_choice(message.tool_choice, "open"),
            text_schema=text_schema(message, "open"),
        ),
        seed=message.seed if message.HasField("seed") else None,
        limits=Limits(
            **{name: at_least_one(limits, name, "open.limits") for name in _FROM_ONE},
            **{name: given(limits, name) for name in _FROM_NONE},
        ),
        context=_context_policy(message.context_policy),
        first_token_deadline_ms=at_least_one(message, "first_token_deadline_ms", "open"),
        fallbacks=tuple(_fallback(link, f"open.fallbacks[{at}]") for at, link in enumerate(message.fallbacks)),
        answer_ahead=AnswerAheadPatch(
            normalised=message.answer_ahead.match_rule == options_pb.MATCH_RULE_NORMALISED_TEXT,
            max_tokens=at_least_one(message.answer_ahead, "max_held_tokens", "open.answer_ahead"),
            max_ms=at_least_one(message.answer_ahead, "max_held_ms", "open.answer_ahead"),
        ),
        progress_notices=message.progress_notices,
        caller_key=_caller_key(message.caller_key),
    )


def resume(message: client_pb.Open) -> Resume:
    """The event that goes on with a call. Raises Problem for anything beside it."""
    wanted = message.resume
    if others := [field.name for field, _ in message.ListFields() if field.name != "resume"]:
        raise invalid(f"open.{others[0]}", "the call is as it was opened")
    if not wanted.resume_token:
        raise invalid("open.resume.resume_token", "must be set")
    for name in ("last_seq", "last_generation"):
        if getattr(wanted, name) > MAX_NUMBER:
            raise invalid(f"open.resume.{name}", "is above any that there can be")
    records = tuple(wanted.records)
    return Resume(
        wanted.resume_token,
        wanted.last_seq,
        wanted.last_generation,
        records,
        wanted.take_over,
        wanted.last_record_seq,
    )


def _caller_key(key: str) -> str:
    if len(key.encode()) > MAX_NAME_BYTES:
        raise invalid("open.caller_key", f"must be at most {MAX_NAME_BYTES} bytes")
    return key


def _context_policy(message: options_pb.ContextPolicy) -> ContextPolicy:
    path = "open.context_policy"
    if message.action not in _CONTEXT_ACTIONS:
        raise invalid(f"{path}.action", "is none that this version knows")
    action = _CONTEXT_ACTIONS[message.action]
    if message.summary_instructions and action != "summarise":
        raise invalid(f"{path}.summary_instructions", "are for CONTEXT_FULL_ACTION_SUMMARISE")
    announce_at, keep = given(message, "announce_at_tokens"), given(message, "keep_tokens")
    return ContextPolicy(action, announce_at, keep, message.summary_instructions)


def _fallback(message: options_pb.Fallback, path: str) -> Fallback:
    """One link of a chain. That its model is served is for others to see."""
    deadline_ms = at_least_one(message, "first_token_deadline_ms", path)
    match message.WhichOneof("answer"):
        case "model":
            return Fallback(model=present(message.model, f"{path}.model"), deadline_ms=deadline_ms)
        case "phrase":
            if deadline_ms is not None:
                raise invalid(f"{path}.first_token_deadline_ms", "is a model's; a phrase is there at once")
            return Fallback(phrase=present(message.phrase, f"{path}.phrase"))
        case _:
            raise invalid(f"{path}.answer", "must be set")


def update(message: client_pb.Update) -> Update:
    """New instructions for a call. Raises Problem for what cannot be used."""
    if message.sampling.HasField("seed"):
        raise invalid("update.sampling.seed", "is a turn's; the call's is open.seed")
    return Update(
        system=message.system_prompt if message.HasField("system_prompt") else None,
        tools=_tools(message.tools.tools, "update.tools.tools") if message.HasField("tools") else None,
        generation=replace(
            generation(message.sampling, "update.sampling"),
            tool_choice=tool_choice(message.tool_choice, "update"),
            text_schema=text_schema(message, "update"),
        ),
    )


def items(messages: Iterable[conversation_pb.Item], within: str) -> tuple[Item, ...]:
    """The items of the field ``within``. A result takes its tool's name from the call that it answers."""
    found: list[Item] = []
    calls: dict[str, str] = {}
    ids: set[str] = set()
    for index, message in enumerate(messages):
        path = f"{within}[{index}]"
        if message.item_id and message.item_id in ids:
            raise invalid(f"{path}.item_id", "is another item's")
        ids.add(message.item_id)
        item = _item(message, path, calls)
        if isinstance(item, ToolCallItem):
            calls[item.call_id] = item.name
        found.append(item)
    return tuple(found)


def _item(item: conversation_pb.Item, path: str, calls: Mapping[str, str]) -> Item:
    match item.WhichOneof("content"):
        case "message":
            role = _ROLES.get(item.message.role)
            if role is None:
                raise invalid(f"{path}.message.role", "must be system, user or assistant")
            if item.message.interrupted and role != "assistant":
                raise invalid(f"{path}.message.interrupted", "is only for the assistant")
            return MessageItem(item.item_id, role, item.message.text, item.message.interrupted)
        case "tool_call":
            call = item.tool_call
            json_object(call.arguments_json, f"{path}.tool_call.arguments_json")
            call_id = present(call.call_id, f"{path}.tool_call.call_id")
            name = present(call.name, f"{path}.tool_call.name")
            return ToolCallItem(item.item_id, call_id, name, call.arguments_json or "{}")
        case "tool_output":
            output = item.tool_output
            if output.call_id not in calls:
                raise invalid(f"{path}.tool_output.call_id", "is no earlier item's")
            return ToolResultItem(
                item.item_id, output.call_id, output.name or calls[output.call_id], output.output, output.is_error
            )
        case _:
            raise invalid(f"{path}.content", "must be set")


def _tools(tools: Sequence[conversation_pb.Tool], within: str) -> tuple[ToolDefinition, ...]:
    definitions: dict[str, ToolDefinition] = {}
    for index, tool in enumerate(tools):
        path = f"{within}[{index}]"
        if not _TOOL_NAME.fullmatch(tool.name) or tool.name in definitions:
            raise invalid(f"{path}.name", "must be 1 to 64 letters, digits, _, - or ., and unique")
        schema = json_schema(tool.parameters_json_schema, f"{path}.parameters_json_schema")
        if schema.get("type", "object") != "object" or not isinstance(schema.get("properties", {}), dict):
            raise invalid(f"{path}.parameters_json_schema", "must be the JSON Schema of an object")
        takes_none = {"properties": {}, "additionalProperties": False}
        parameters = {"type": "object", **(schema if tool.parameters_json_schema else takes_none)}
        timeout_ms = at_least_one(tool, "timeout_ms", path)
        definitions[tool.name] = ToolDefinition(tool.name, tool.description, parameters, timeout_ms)
    return tuple(definitions.values())
