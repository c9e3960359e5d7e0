"""Chat templates in the forms that published models have, as short as they get: who writes which kind of call."""

# ruff: noqa: E501 (lines of templates)

from __future__ import annotations

from tests.jaxinfer.text.golden_cases import GOLDENS

_CHATML_HEAD = (
    "{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "INSTRUCTIONS{{ '<|im_end|>\\n' }}{% endif %}"
)
_CHATML = (
    _CHATML_HEAD + "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{%- for call in m.tool_calls or [] %}{%- set f = call.function %}CALL{%- endfor %}{{ '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _chatml(call: str, instructions: str = "") -> str:
    return _CHATML.replace("CALL", call).replace("INSTRUCTIONS", instructions)


HERMES = _chatml(
    """{{ '\\n<tool_call>\\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\\n</tool_call>' }}"""
)
# Qwen3: reasoning of earlier turns is cut off; the arguments are walked through by others of its kind.
QWEN3 = HERMES.replace("m.content }}", "m.content.split('</think>')[-1].lstrip('\\n') }}").replace(
    "'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n' }}{{ '<think>\\n' if enable_thinking }}"
)
XML = _chatml(
    "{{ '\\n<tool_call>\\n<function=' + f.name + '>\\n' }}{% for k, v in f.arguments | items %}"
    "{{ '<parameter=' + k + '>\\n' }}{{ v if v is string else v | tojson }}{{ '\\n</parameter>\\n' }}{% endfor %}"
    "{{ '</function>\\n</tool_call>' }}"
)
ARG_KEYS = _chatml(
    "{{ '\\n<tool_call>' + f.name + '\\n' }}{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
)
YAML = _chatml(
    "<tool_call>\n{{ f.name }}:\n{% for k, v in f.arguments | items %}  {{ k }}: {{ v }}\n{% endfor %}</tool_call>"
)
OTHER_KEYS = _chatml("""<tool_call>{"tool": "{{ f.name }}", "input": {{ f.arguments | tojson }}}</tool_call>""")
LISTED = _chatml("""<tool_call>[{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}]</tool_call>""")
PHI4 = _chatml("""<|tool_call|>[{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}]<|/tool_call|>""")
PYTHONIC = _chatml("[{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}={{ v | tojson }}{% endfor %})]")
KIMI = _chatml(
    "{{ '<|tool_calls_section_begin|>' if loop.first }}<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>"
    "{{ f.arguments | tojson }}<|tool_call_end|>{{ '<|tool_calls_section_end|>' if loop.last }}"
)
DEEPSEEK = _chatml(
    "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>"
    "{{ f.name }}\n```json\n{{ f.arguments | tojson }}\n```<\uff5ctool\u2581call\u2581end\uff5c>"
)
DEEPSEEK_V31 = _chatml(
    "{{ '<\uff5ctool\u2581calls\u2581begin\uff5c>' if loop.first }}<\uff5ctool\u2581call\u2581begin\uff5c>{{ f.name }}<\uff5ctool\u2581sep\uff5c>"
    "{{ f.arguments | tojson }}<\uff5ctool\u2581call\u2581end\uff5c>{{ '<\uff5ctool\u2581calls\u2581end\uff5c>' if loop.last }}"
)
DEEPSEEK_V32 = _chatml(
    "{%- if loop.first %}\n\n<\uff5cDSML\uff5cfunction_calls>\n{% endif %}"
    """<\uff5cDSML\uff5cinvoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}"""
    """<\uff5cDSML\uff5cparameter name="{{ k }}" string="{{ 'true' if v is string else 'false' }}">"""
    "{{ v if v is string else v | tojson }}</\uff5cDSML\uff5cparameter>\n{% endfor %}</\uff5cDSML\uff5cinvoke>\n"
    "{%- if loop.last %}</\uff5cDSML\uff5cfunction_calls>{% endif %}"
)
DEEPSEEK_V4 = DEEPSEEK_V32.replace("function_calls", "tool_calls")
DEEPSEEK_V41 = (
    DEEPSEEK_V32.replace("\uff5cfunction_calls", "\uff5c calls")
    .replace("DSML\uff5cinvoke", "DSML\uff5c invoke")
    .replace("DSML\uff5cparameter", "DSML\uff5c parameter")
)
# GLM 4.7 leaves the line breaks out.
ARG_KEYS_CLOSE = _chatml(
    "<tool_call>{{ f.name }}{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>{% endfor %}</tool_call>"
)
NEMOTRON = _chatml(
    "{{ '<TOOLCALL>[' if loop.first }}"
    """{{ '{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}' }}"""
    "{{ ']</TOOLCALL>' if loop.last else ', ' }}"
)
FUNCTOOLS = _chatml(
    "{{ ' functools[' if loop.first }}"
    """{{ '{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}' }}"""
    "{{ ']' if loop.last else ', ' }}"
)
GEMMA4 = (
    "{%- macro written(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is boolean %}{{ 'true' if v else 'false' }}"
    "{% else %}{{ v }}{% endif %}{% endmacro %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}<|tool_response>response:f{value:{{ written(m.content) }}}<tool_response|>"
    "{%- else %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{%- for call in m.tool_calls or [] %}{{ '<|tool_call>call:' + call.function.name + '{' }}"
    "{%- for k, v in call.function.arguments | dictsort %}{{ k }}:{{ written(v) }}{{ '' if loop.last else ',' }}{% endfor %}}<tool_call|>"
    "{%- endfor %}{%- if m.tool_calls %}<|tool_response>{% else %}{{ m.content.split('<channel|>')[-1] + '<turn|>\n' }}{% endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|turn>model\n' }}{{ '<|channel>thought\n<channel|>' if not enable_thinking }}{%- endif %}"
)
# Seed-OSS: Qwen3's functions with other tags around.
SEED = (
    XML.replace("tool_call>", "seed:tool_call>")
    .replace("k + '>\\n' }}", "k + '>' }}")
    .replace("'\\n</parameter>", "'</parameter>")
)
FUNCTIONARY = _chatml("<function={{ f.name }}>{{ f.arguments | tojson }}</function>")
MINIMAX = _chatml(
    "{{ '\\n<minimax:tool_call>\\n' if loop.first }}"
    """{{ '<invoke name="' + f.name + '">\\n' }}{% for k, v in f.arguments | items %}"""
    """{{ '<parameter name="' + k + '">' }}{{ v if v is string else v | tojson }}{{ '</parameter>\\n' }}{% endfor %}"""
    "{{ '</invoke>\\n' }}{{ '</minimax:tool_call>' if loop.last }}"
)
COMMAND_R = _chatml(
    """Action: ```json\n[{"tool_name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}]\n```"""
)
# These show no calls of earlier turns and say only how to write one.
SMOLLM3 = _chatml(
    "",
    """return within <tool_call></tool_call> tags: <tool_call>\n{"name": <function-name>, "arguments": <args>}\n</tool_call>""",
)
HERMES2 = _chatml("", "<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>")
GRANITE = _chatml("", "respond only with <|tool_call|> followed by a JSON list of tools used")
NO_TOOLS = "{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endfor %}"
LLAMA3 = (
    "{%- for m in messages %}{%- if 'tool_calls' in m %}"
    "{%- if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{%- endif %}"
    "{%- set f = m.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    """{{ '{"name": "' + f.name + '", "parameters": ' + (f.arguments | tojson) + '}' + '<|eot_id|>' }}"""
    "{%- elif m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}"
    "{%- if m.content is mapping or m.content is iterable and m.content is not string %}{{ m.content | tojson }}"
    "{%- else %}{{ m.content }}{%- endif %}<|eot_id|>"
    "{%- else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
LLAMA4 = LLAMA3.replace("start_header_id", "header_start").replace(
    """{{ '{"name": "' + f.name + '", "parameters": '""",
    """{{ '<|python_start|>' + m.content + '<|python_end|>' }}{{ '{"name": "' + f.name + '", "parameters": '""",
)
_MISTRAL = (
    "{{ bos_token }}{%- set n = namespace(user=true) %}{%- for m in messages %}"
    "{%- if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) %}"
    "{%- if (m.role == 'user') != n.user %}{{ raise_exception('roles must alternate') }}{%- endif %}"
    "{%- set n.user = not n.user %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls is defined and m.tool_calls is not none %}"
    "{%- for call in m.tool_calls %}{%- if call.id is not defined or call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}{%- endfor %}"
    "CALLS{{ eos_token }}{%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    "{%- elif m.role == 'tool' %}"
    """{{ '[TOOL_RESULTS] {"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}"""
    "{%- elif m.role != 'system' %}{{ raise_exception('unknown role') }}{%- endif %}{%- endfor %}"
)
MISTRAL = _MISTRAL.replace(
    "CALLS",
    "{{ '[TOOL_CALLS] [' }}{%- for call in m.tool_calls %}"
    """{{ '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}"""
    """{{ ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}{%- endfor %}""",
)
MISTRAL_NAMED = _MISTRAL.replace(
    "CALLS",
    "{%- for call in m.tool_calls %}{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}"
    "{%- endfor %}",
)
# Phi-4-mini shows texts only, and takes no content that is none.
PHI4_MINI = NO_TOOLS
# gpt-oss: what openai-harmony writes, and with the limits of the model's own template, which has one call in a message
# and beside it text or reasoning.
HARMONY = (GOLDENS / "harmony.jinja").read_text(encoding="utf-8")
HARMONY_NARROW = (
    "{%- set head = messages[0].role in ['system', 'developer'] %}{%- set n = namespace(called=none) %}"
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{%- if head %}<|start|>developer<|message|>{{ messages[0].content }}<|end|>{%- endif %}"
    "{%- for m in messages[1 if head else 0:] %}{%- if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{%- elif m.role == 'tool' %}{%- if n.called is none %}{{ raise_exception('no call') }}{%- endif %}"
    "{{ '<|start|>functions.' + n.called + ' to=assistant<|channel|>commentary<|message|>' + m.content | tojson + '<|end|>' }}"
    "{%- elif 'tool_calls' in m %}{%- if m.content and m.thinking %}{{ raise_exception('one of content and thinking') }}{%- endif %}"
    "{%- if m.content or m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>' }}"
    "{%- endif %}{%- set n.called = m.tool_calls[0].function.name %}"
    "{{ '<|start|>assistant to=functions.' + n.called + '<|channel|>commentary json<|message|>' }}"
    "{{ m.tool_calls[0].function.arguments | tojson + '<|call|>' }}"
    "{%- elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}"
    "{%- endfor %}{{ '<|start|>assistant' if add_generation_prompt }}"
)
