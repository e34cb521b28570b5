"""Constraints as grammars in llguidance's dialect of Lark.

Text that spells the mark of a call by other tokens than its own is ruled out: whoever reads the reply would take it for
a call that nothing constrained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.constraint import Constraint, JsonConstraint, ToolConstraint
from engine.text.call_form import CallForm

PYTHON_TAG = "<|python_tag|>"
"""What Llama 3.1 may write before a call."""

Split = Callable[[str], list[str | int]]
"""Cuts text at tokens that only stand for themselves: such a token's id, or what lies between them."""


def lark(constraint: Constraint, split: Split, *, closed: bool = True) -> str:
    """The grammar of a constraint. closed: objects that name their members have no others, where nothing is said of
    those: what a model makes up there nobody asked for, and it may find no end. Raises ValueError for a schema that is
    no JSON object.
    """
    if closed:
        constraint = _with_closed_schemas(constraint)
    if isinstance(constraint, JsonConstraint):
        rules = [f"start: {_json(constraint.schema)}"]
    elif constraint.choice == "none" or not constraint.tools:
        rules = ["start: text", *_text(constraint)]
    elif constraint.text and constraint.choice == "auto" and not constraint.form.mark:
        # One schema for both: two rules that begin with the same brace would be told apart too early.
        rules = [f"start: {_json(json.dumps(_either(constraint)), constraint.form)}"]
    else:
        rules = _tool_rules(constraint, split)
    return "\n".join(["%llguidance {}", *rules, ""])


def _with_closed_schemas(constraint: Constraint) -> Constraint:
    if isinstance(constraint, JsonConstraint):
        return JsonConstraint(_closed_text(constraint.schema))
    tools = tuple((name, _closed_text(schema)) for name, schema in constraint.tools)
    return replace(constraint, tools=tools, text=_closed_text(constraint.text) if constraint.text else "")


def _closed_text(schema: str) -> str:
    return json.dumps(_closed(json.loads(schema)))


def _tool_rules(constraint: ToolConstraint, split: Split) -> list[str]:
    form = constraint.form
    opening, written = "", form.before
    rules = [f"start: {_start(constraint)}", *_text(constraint)]
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(constraint.tools))))
    if may_follow_text(constraint):
        opening = "TEXT "
        if isinstance(split(form.mark)[0], str):
            rules.append(f"begin[lazy]: TEXT {json.dumps(form.mark)}")
            opening, written = "begin ", form.before.removeprefix(form.mark)
    elif not form.mark and isinstance(tag := split(PYTHON_TAG)[0], int):
        opening = f"<[{tag}]>? "
    for number, (name, schema) in enumerate(constraint.tools):
        head, tail = _symbols(split(written + name + form.between)), _symbols(split(form.after))
        rules.append(f"call_{number}: {opening}{head} {_json(schema, form)} {tail}")
    return rules


def may_follow_text(constraint: ToolConstraint) -> bool:
    """Whether a call may come behind text."""
    return constraint.choice == "auto" and bool(constraint.form.mark) and not constraint.text


def _start(constraint: ToolConstraint) -> str:
    """Where calls may follow text it may stand before and behind every one; otherwise a reply is all calls or none."""
    several = constraint.several and constraint.form.several
    if may_follow_text(constraint):
        return "call* text" if several else "text | call"
    joint = 'call ("; " call)*' if several and not constraint.form.mark else "call+" if several else "call"
    return joint if constraint.choice == "required" else f"text | {joint}"


def _text(constraint: ToolConstraint) -> list[str]:
    if constraint.text:
        return [f"text: {_json(constraint.text)}"]
    mark = constraint.form.mark
    unlike = rf"(.|\n)*{_regex(mark)}(.|\n)*" if mark else r"\s*\{(.|\n)*"
    return ["text: TEXT", rf"TEXT: /(.|\n)*/ & ~/{unlike}/"]


def _either(constraint: ToolConstraint) -> dict[str, Any]:
    """JSON Schema of a reply that is a text of its own schema or a call without a mark."""
    key = constraint.form.between.split('"')[-2]
    shared: dict[str, Any] = {}
    branches = [_hoisted(json.loads(constraint.text), "text", shared)]
    for number, (name, schema) in enumerate(constraint.tools):
        members = {"name": {"const": name}, key: _hoisted(json.loads(schema), f"call_{number}", shared)}
        branches.append({"type": "object", "properties": members, "required": ["name", key]})
        branches[-1]["additionalProperties"] = False
    return {"$defs": shared, "anyOf": branches}


def _hoisted(schema: Any, name: str, shared: dict[str, Any]) -> Any:
    """The schema with what it defines moved to ``shared``, under names of its own."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(element) for element in value]
        if not isinstance(value, dict):
            return value
        kept = {key: moved(member) for key, member in value.items() if key not in ("$defs", "definitions")}
        if isinstance(reference := kept.get("$ref"), str):
            kept["$ref"] = re.sub(r"^#/(\$defs|definitions)/", f"#/$defs/{name}_", reference)
        return kept

    for key in ("$defs", "definitions"):
        shared.update({f"{name}_{inner}": moved(value) for inner, value in schema.get(key, {}).items()})
    return moved(schema)


def _regex(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _symbols(pieces: list[str | int]) -> str:
    return " ".join(f"<[{piece}]>" if isinstance(piece, int) else json.dumps(piece) for piece in pieces)


def _json(schema: str, form: CallForm | None = None) -> str:
    """JSON of a schema. Separators are written as the model's template writes them, and no other white space."""
    value: Any = json.loads(schema)
    if not isinstance(value, dict):
        raise ValueError("a schema must be a JSON object")
    item, key = (form.item, form.key) if form is not None else (", ", ": ")
    guidance = {"whitespace_flexible": False, "item_separator": item, "key_separator": key}
    return f"%json {json.dumps({**value, 'x-guidance': guidance})}"


def _closed(schema: Any) -> Any:
    """The schema with its objects closed, but for those whose members several keywords speak of."""
    if not isinstance(schema, dict) or "allOf" in schema:
        return schema
    closed, joined = dict(schema), _JOINS & schema.keys()
    for key in ("properties", "$defs", "definitions"):
        if isinstance(members := schema.get(key), dict):
            closed[key] = {name: _closed(member) for name, member in members.items()}
    if "properties" not in schema:
        for key in ("anyOf", "oneOf", "prefixItems"):
            if isinstance(branches := schema.get(key), list):
                closed[key] = [_closed(branch) for branch in branches]
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    named, required = schema.get("properties"), schema.get("required", [])
    plain = isinstance(named, dict) and isinstance(required, list)
    if plain and named and not joined and set(required) <= set(named):
        closed["additionalProperties"] = False
    return closed


_JOINS = {"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "$ref"}
"""Keywords that say something of members beside ``properties``."""
