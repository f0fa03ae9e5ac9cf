"""Chat templates in the style of eight families, short, and their special tokens."""

# ruff: noqa: E501  # templates are long lines

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import tiny_tokenizer

HERMES = (
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "# Tools{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    'Answer <tool_call>{\\"name\\": <name>, \\"arguments\\": <object>}</tool_call><|im_end|>\n'
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "<|im_start|>user\n{{ message.content }}<|im_end|>\n{%- elif message.role == 'assistant' %}"
    "<|im_start|>assistant\n{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>\n"
    "{%- endif %}{{ message.content }}{%- for call in message.tool_calls or [] %}"
    '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{%- endfor %}<|im_end|>\n{%- elif message.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>{{ message.content }}</tool_response><|im_end|>\n{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{%- endif %}{%- endif %}"
)

QWEN3_CODER = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}<function><name>{{ tool.function.name }}</name>"
    "{% for key, value in (tool.function.parameters.properties or {}) | items %}"
    "<parameter>{{ key }}: {{ value | tojson }}</parameter>{% endfor %}</function>\n{% endfor %}"
    "Call <tool_call><function=name><parameter=key>value</parameter></function></tool_call><|im_end|>\n{%- endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] %}\n<tool_call>\n<function={{ call.function.name }}>\n"
    "{%- for key, value in call.function.arguments | items %}<parameter={{ key }}>\n"
    "{{ value if value is string else value | tojson }}\n</parameter>\n{%- endfor %}</function>\n</tool_call>"
    "{%- endfor %}<|im_end|>\n{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)

LLAMA3 = (
    "{{ bos_token }}{%- for message in messages %}"
    "{%- if message.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ message.content | tojson }}<|eot_id|>"
    "{%- elif message.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{%- if message.tool_calls | length != 1 %}{{ raise_exception('only one call at a time') }}{%- endif %}"
    "{%- set call = message.tool_calls[0].function %}"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{%- else %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{%- if tools and loop.first %}"
    'Respond in the format {"name": function name, "parameters": dictionary}.\n'
    "{%- for tool in tools %}{{ tool | tojson(indent=4) }}\n\n{%- endfor %}{%- endif %}"
    "{{ message.content | trim }}<|eot_id|>{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{%- endif %}"
)

PYTHONIC = (
    "{{ bos_token }}{%- for message in messages %}<|header|>{{ message.role }}<|end|>"
    "{%- if tools and loop.first %}Call functions as [func_name1(a=1), func_name2(b=2)]:"
    "{%- for tool in tools %}\n{{ tool.function | tojson }}{%- endfor %}\n{%- endif %}"
    "{%- if message.tool_calls %}[{%- for call in message.tool_calls %}{{ call.function.name }}("
    "{%- for key, value in call.function.arguments | items %}{{ key }}={{ value | tojson }}"
    "{{ ', ' if not loop.last else '' }}{%- endfor %}){{ ', ' if not loop.last else '' }}{%- endfor %}]"
    "{%- else %}{{ message.content }}{%- endif %}<|end|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|header|>assistant<|end|>{%- endif %}"
)

MISTRAL = (
    "{{ bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- if tools and loop.first %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif %}"
    "[INST]{{ message.content }}[/INST]{%- elif message.tool_calls %}[TOOL_CALLS][{%- for call in message.tool_calls %}"
    "{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{%- endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{{ ', ' if not loop.last else ']' }}{%- endfor %}{{ eos_token }}"
    "{%- elif message.role == 'tool' %}"
    '[TOOL_RESULTS]{"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]'
    "{%- else %}{{ message.content }}{{ eos_token if message.role == 'assistant' else '' }}{%- endif %}{%- endfor %}"
)

DEEPSEEK = (
    "{{ bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{%- elif message.role == 'tool' %}<｜tool▁output▁begin｜>{{ message.content }}<｜tool▁output▁end｜>"
    "{%- elif message.role == 'assistant' %}<｜Assistant｜>{{ (message.content or '').split('</think>')[-1] }}"
    "{%- if message.tool_calls %}<｜tool▁calls▁begin｜>{%- for call in message.tool_calls %}"
    "{{ '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments }}"
    "<｜tool▁call▁end｜>{%- endfor %}<｜tool▁calls▁end｜>{%- endif %}{{ eos_token }}"
    "{%- else %}{{ message.content }}{%- if tools %}{{ tools | tojson }}{%- endif %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<｜Assistant｜><think>\n{%- endif %}"
)

GLM = (
    "[gMASK]<sop>{%- if tools %}<|system|>\n{%- for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}\n"
    "{%- endfor %}Call <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'tool' %}<|observation|>\n{{ message.content }}"
    "{%- else %}<|{{ message.role }}|>\n{{ message.content or '' }}{%- for call in message.tool_calls or [] %}"
    "\n<tool_call>{{ call.function.name }}{%- for key, value in call.function.arguments | items %}"
    "<arg_key>{{ key }}</arg_key>\n<arg_value>{{ value if value is string else value | tojson }}</arg_value>"
    "{%- endfor %}</tool_call>{%- endfor %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{{ '' if enable_thinking else '</think>' }}{%- endif %}"
)

HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{%- if tools %}<|start|>developer<|message|>namespace functions {%- for tool in tools %}"
    " type {{ tool.function.name }} = {{ tool.function.parameters | tojson }};{%- endfor %}<|end|>{%- endif %}"
    "{%- for message in messages %}{%- if message.tool_calls %}"
    "{%- if message.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>{%- endif %}"
    "{%- for call in message.tool_calls %}<|start|>assistant to=functions.{{ call.function.name }}"
    "<|channel|>commentary json<|message|>{{ call.function.arguments | tojson }}<|call|>{%- endfor %}"
    "{%- elif message.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>"
    "{%- elif message.role == 'tool' %}<|start|>functions<|message|>{{ message.content | tojson }}<|end|>"
    "{%- else %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"
)

FAMILIES: dict[str, tuple[str, list[str], list[str]]] = {
    # template, special tokens, added tokens that are shown
    "hermes": (
        HERMES,
        ["<|im_start|>", "<|im_end|>"],
        ["<tool_call>", "</tool_call>", "<think>", "</think>"],
    ),
    "qwen3_coder": (QWEN3_CODER, ["<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>"]),
    "llama3_json": (
        LLAMA3,
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
        [],
    ),
    "pythonic": (PYTHONIC, ["<|header|>", "<|end|>"], []),
    "mistral": (MISTRAL, ["[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]"], []),
    "deepseek": (
        DEEPSEEK,
        ["<｜User｜>", "<｜Assistant｜>"],
        [
            *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
            *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<think>", "</think>"),
        ],
    ),
    "glm": (
        GLM,
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"],
        ["<tool_call>", "<think>"],
    ),
    "harmony": (
        HARMONY,
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>", "<|constrain|>"],
        [],
    ),
}


def family_tokenizer(path: Path, family: str, *, vocab: int = 512) -> Path:
    """Save a tiny tokenizer with a family's template and special tokens in `path`."""
    template, special, shown = FAMILIES[family]
    fast = tiny_tokenizer(path, vocab=vocab)
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.add_tokens(shown)
    fast.chat_template = template
    fast.save_pretrained(path)
    return path
