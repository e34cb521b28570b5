"""Chat templates written after those of well-known families, over the embedded tokenizer with their special tokens."""

from __future__ import annotations

from engine.text.codec import Codec
from tests.engine.embedded import load_codec

LLAMA3 = """
{{- bos_token }}
{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + (date_string or '26 Jul 2024') + "\\n\\n" + system + "<|eot_id|>" }}
{%- if tools %}
    {%- if not messages %}{{- raise_exception("no first user message to put tools in") }}{%- endif %}
    {{- "<|start_header_id|>user<|end_header_id|>\\n\\nGiven these functions:\\n\\n" }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) + "\\n\\n" }}{%- endfor %}
    {{- messages[0].content | trim + "<|eot_id|>" }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "parameters": ' + (call.function.arguments | tojson) + "}" }}
        {%- endfor %}
        {{- "<|eot_id|>" }}
    {%- elif message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + (message.content | tojson) + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" + message.content | trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{%- endif %}
"""
"""Llama 3.1: everything trimmed, tools in the first turn of the caller, tool output in JSON."""

QWEN = """
{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = 'You are a helpful assistant.' %}{%- set rest = messages %}{%- endif %}
{{- "<|im_start|>system\\n" + system }}
{%- if tools %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" + tool | tojson }}{%- endfor %}
    {{- "\\n</tools>" }}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- for message in rest %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or rest[loop.index0 - 1].role != 'tool' %}{{- "<|im_start|>user" }}{%- endif %}
        {{- "\\n<tool_response>\\n" + message.content + "\\n</tool_response>" }}
        {%- if loop.last or rest[loop.index0 + 1].role != 'tool' %}{{- "<|im_end|>\\n" }}{%- endif %}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- "\\n" if message.content or not loop.first else "" }}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + "}\\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}
"""
"""Qwen 2.5 and Hermes: ChatML, tool results that follow each other share one turn of the caller."""

QWEN3 = QWEN.replace(
    '{{- "<|im_start|>assistant\\n" }}{%- endif %}',
    '{{- "<|im_start|>assistant\\n" }}'
    '{%- if enable_thinking is defined and not enable_thinking %}{{- "<think>\\n\\n</think>\\n\\n" }}{%- endif %}'
    "{%- endif %}",
)
"""Qwen3 without thinking: the prompt holds an empty thought, which past replies no longer show."""

MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- "[SYSTEM_PROMPT]" + message.content + "[/SYSTEM_PROMPT]" }}
    {%- endif %}
    {%- if tools and (message.role == 'system' or (loop.first and message.role != 'system')) %}
        {{- "[AVAILABLE_TOOLS]" + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}
    {%- endif %}
    {%- if message.role == 'user' %}{{- "[INST]" + message.content + "[/INST]" }}
    {%- elif message.role == 'tool' %}{{- "[TOOL_RESULTS]" + message.content + "[/TOOL_RESULTS]" }}
    {%- elif message.role == 'assistant' %}
        {{- " " + message.content if message.content else "" }}
        {%- for call in message.tool_calls or [] %}
            {{- "[TOOL_CALLS]" + call.function.name + "[ARGS]" + (call.function.arguments | tojson) }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
"""
"""Mistral: no prompt of its own, and a space before every reply."""

OLD_MISTRAL = """
{{- bos_token }}
{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0].content + "\\n\\n" %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- "[INST] " + (system if loop.last else "") + message.content + "[/INST]" }}
    {%- elif message.role == 'tool' %}{{- raise_exception("no tools here") }}
    {%- else %}{{- " " + message.content + eos_token }}{%- endif %}
{%- endfor %}
"""
"""Mistral 7B v0.3: the instructions move to the last turn of the caller."""

LLAMA2 = OLD_MISTRAL.replace("loop.last", "loop.first")
"""Llama 2: the instructions stay in the first turn of the caller."""

MARKS = {
    "llama3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "qwen": (QWEN, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "mistral": (
        MISTRAL,
        [
            *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[INST]", "[/INST]"),
            *("[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ],
        "<|end|>",
    ),
    "old mistral": (OLD_MISTRAL, ["[INST]", "[/INST]"], "<|end|>"),
    "llama2": (LLAMA2, ["[INST]", "[/INST]"], "<|end|>"),
}


def codec_for(name: str) -> Codec:
    """The embedded tokenizer with the family's special tokens, template and end of reply."""
    codec = load_codec()
    if name == "embedded":
        return codec
    template, special, stop = MARKS[name]
    codec.hf.add_special_tokens({"additional_special_tokens": special})
    codec.hf.chat_template = template.strip()
    return Codec(codec.hf, frozenset([codec.hf.convert_tokens_to_ids(stop)]))
