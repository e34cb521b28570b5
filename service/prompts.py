"""Prompts that the configuration names: what calls begin with, computed before the first of them comes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from engine.text.chat import Chat
from service.config import PromptConfig
from service.engine_client import EngineClient
from service.engine_process import EngineStartError
from service.instructions import Instructions
from service.items import ToolDefinition
from service.problems import Problem


def pin_prompts(engine: EngineClient, chat: Chat, prompts: Sequence[PromptConfig], max_context_tokens: int) -> None:
    """Have them computed and kept. Raises EngineStartError for one that cannot be read or does not fit."""
    for number, prompt in enumerate(prompts, start=1):
        try:
            ids = Instructions.of(chat, prompt.system, (), _tools(prompt), "prompt", "items").head.ids
        except (OSError, ValueError, TypeError, KeyError, Problem) as error:
            raise EngineStartError(f"prompt {number} of the configuration: {error}") from error
        if len(ids) >= max_context_tokens:
            raise EngineStartError(f"prompt {number} has {len(ids)} tokens, the model takes {max_context_tokens}")
        engine.pin(ids, None if prompt.public else prompt.tenant)


def _tools(prompt: PromptConfig) -> list[ToolDefinition]:
    if prompt.tools_file is None:
        return []
    tools = json.loads(prompt.tools_file.read_text(encoding="utf-8"))
    return [ToolDefinition(tool["name"], tool.get("description", ""), tool["parameters"]) for tool in tools]
