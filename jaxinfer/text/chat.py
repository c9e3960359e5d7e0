"""Chat templates: which one applies, what it sees, and how it is rendered, all as transformers 5 does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from jaxinfer.errors import ChatMessageError, ChatTemplateError
from jaxinfer.text.continuing import up_to_mark, with_mark
from jaxinfer.text.conversation import TemplateUse, check_message, for_template
from jaxinfer.text.errors import TokenizerError
from jaxinfer.text.files import CHAT_TEMPLATE, CHAT_TEMPLATE_JSON, TOKENIZER_CONFIG, TokenizerFiles
from jaxinfer.text.template_budget import BudgetEnvironment
from jaxinfer.text.template_environment import make_environment

# Arguments of transformers' apply_chat_template that never reach a template. A caller who passes one expects an effect.
_NOT_VARIABLES = frozenset(
    {
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
# Keys under which a message's reasoning is passed, the one that templates read first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Beside one of these a message may have no content.
_INSTEAD_OF_CONTENT = ("tool_calls", *_REASONING)
# Compiled templates kept per tokenizer: its own few, and what callers pass.
_COMPILED_LIMIT = 16
_LONGEST_PATH = 200  # characters that name a value in an error
_USES_LIMIT = 16


@dataclass
class ChatTemplates:
    """The chat templates of a folder.

    Attributes:
        source: Jinja source, or name -> source, or None.
        where: the folder, for messages.
        environment: what templates are compiled in.
    """

    source: str | dict[str, str] | None
    where: str
    environment: BudgetEnvironment = field(default_factory=make_environment, repr=False)
    _compiled: dict[str, jinja2.Template] = field(default_factory=dict, repr=False)
    _uses: dict[str, TemplateUse] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, files: TokenizerFiles) -> ChatTemplates:
        """Takes the template files where there are any, else what tokenizer_config.json holds, else chat_template.json.

        Raises:
            TokenizerError: `chat_template` in tokenizer_config.json has a shape that transformers does not accept.
        """
        source: Any = files.tokenizer_config.get("chat_template")
        if files.chat_templates:
            only_default = list(files.chat_templates) == ["default"]
            source = files.chat_templates["default"] if only_default else dict(files.chat_templates)
        elif isinstance(source, list):
            if not all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in source):
                raise TokenizerError(
                    f"{files.folder / TOKENIZER_CONFIG}: a chat_template list must hold objects with name and template"
                )
            source = {entry["name"]: entry["template"] for entry in source}
        elif source is None:
            source = files.whole_template
        texts = source.values() if isinstance(source, dict) else [source]
        if source is not None and not all(isinstance(text, str) for text in texts):
            raise TokenizerError(
                f"{files.folder / TOKENIZER_CONFIG}: chat_template must be a string or named strings, got {source!r}"
            )
        return cls(source=source, where=str(files.folder))

    def check(self) -> None:
        """Raises ChatTemplateError for a source that does not compile."""
        for source in self.source.values() if isinstance(self.source, dict) else [self.source or ""]:
            self._compile(source)

    def select(self, template: str | None, *, has_tools: bool) -> str:
        """The source to render: see `Tokenizer.render_chat`."""
        if template is not None and not isinstance(template, str):
            raise ChatTemplateError(f"template must be a string, not {type(template).__name__}")
        if isinstance(self.source, dict):
            if template is not None:
                return self.source.get(template, template)
            for name in ("tool_use", "default") if has_tools else ("default",):
                if name in self.source:
                    return self.source[name]
            raise ChatTemplateError(
                f"{self.where} has several chat templates and none is named default: "
                f"pass template= one of {sorted(self.source)}"
            )
        if template is not None:
            return template
        if self.source is None:
            raise ChatTemplateError(
                f"{self.where} has no chat template (looked for {CHAT_TEMPLATE}, additional_chat_templates/*.jinja, "
                f"chat_template in {TOKENIZER_CONFIG} and {CHAT_TEMPLATE_JSON}): pass template=, or send a text prompt"
            )
        return self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        template: str | None,
        variables: Mapping[str, Any],
        special_tokens: Mapping[str, str],
        settle: bool = False,
        continue_final: bool = False,
    ) -> str:
        """Renders a conversation.

        settle: give the template what vLLM would (see conversation.py), as `Tokenizer.render_chat` does; otherwise it
            gets the messages as they are, which is what transformers does.
        continue_final: only up to the end of the last message's text.
        """
        try:
            check = check_message if settle else _check_message
            chat = [check(f"messages[{i}]", message) for i, message in enumerate(_check_messages(messages))]
            schemas = None if tools is None else _check_objects("tools", tools)
            extra = _check_variables(variables)
        except RecursionError as error:
            raise ChatMessageError("messages, tools or template variables are nested too deeply") from error
        source = self.select(template, has_tools=tools is not None)
        compiled = self._compile(source)
        given = {"tools": schemas, "add_generation_prompt": add_generation_prompt, **special_tokens, **extra}
        if settle:
            chat = for_template(chat, self._use(source, compiled, special_tokens))
        if not continue_final:
            return _explained(lambda: self._run(compiled, chat, given))
        marked, mark = with_mark(chat)
        return up_to_mark(_explained(lambda: self._run(compiled, marked, given)), mark)

    def _run(self, compiled: jinja2.Template, chat: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        with self.environment.within_budget():
            return compiled.render(messages=chat, **{"tools": None, "documents": None, **variables})

    def _use(self, source: str, compiled: jinja2.Template, special_tokens: Mapping[str, str]) -> TemplateUse:
        use = self._uses.get(source)
        if use is None:
            if len(self._uses) >= _USES_LIMIT:
                self._uses.clear()
            # Without anything of this request: what is found out holds for all.
            given = {"add_generation_prompt": False, **special_tokens}
            use = self._uses[source] = TemplateUse(source, lambda chat: self._run(compiled, chat, given))
        return use

    def _compile(self, source: str) -> jinja2.Template:
        compiled = self._compiled.get(source)
        if compiled is None:
            try:
                compiled = self.environment.compile_template(source)
            except jinja2.TemplateSyntaxError as error:
                raise ChatTemplateError(f"the chat template has an error in line {error.lineno}: {error}") from error
            except Exception as error:  # the compiler itself gives up on some sources, such as too deep a nesting
                raise ChatTemplateError(f"the chat template does not compile: {error}") from error
            if len(self._compiled) >= _COMPILED_LIMIT:
                self._compiled.clear()
            self._compiled[source] = compiled
        return compiled


def _explained(render: Callable[[], str]) -> str:
    """What the template makes of a conversation. Raises ChatTemplateError where it makes nothing."""
    try:
        return render()
    except jinja2.TemplateError as error:
        raise ChatTemplateError(
            f"the chat template refused the conversation: {error.message or repr(error)}", "messages"
        ) from error
    except Exception as error:  # a template is a program: it may divide by zero, add str to list, recurse for ever
        raise ChatTemplateError(
            f"the chat template failed on the conversation: {type(error).__name__}: {error}", "messages"
        ) from error


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ChatMessageError(f"messages must be a list of objects, not {type(messages).__name__}")
    if not messages:
        raise ChatMessageError("messages must hold at least one message, got none")
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise ChatMessageError(f"messages[{position}] must be an object with role and content, not {kind}")
    return [_plain(f"messages[{position}]", message) for position, message in enumerate(messages)]


def _check_message(name: str, plain: dict[str, Any]) -> dict[str, Any]:
    # Some APIs send null for absent fields; templates would render it as "None".
    plain = {key: value for key, value in plain.items() if value is not None}
    role = plain.get("role")
    if not isinstance(role, str) or not role:
        raise ChatMessageError(f"{name}.role must be a non-empty string, got {role!r}")
    if "content" in plain:
        _check_content(f"{name}.content", plain["content"])
    elif not any(key in plain for key in _INSTEAD_OF_CONTENT):
        raise ChatMessageError(f"{name}.content is missing; it may be absent only beside {_INSTEAD_OF_CONTENT}")
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _check_content(name: str, content: Any) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list | tuple):
        raise ChatMessageError(f"{name} must be a string or a list of text parts, not {type(content).__name__}")
    for position, part in enumerate(content):
        at = f"{name}[{position}]"
        if not isinstance(part, dict):
            raise ChatMessageError(f'{at} must be an object like {{"type": "text", "text": ...}}, got {part!r}')
        if part.get("type") != "text":
            raise ChatMessageError(f'{at}.type must be "text", got {part.get("type")!r}: only text is supported')
        if not isinstance(part.get("text"), str):
            raise ChatMessageError(f"{at}.text must be a string, got {part.get('text')!r}")


def _check_objects(name: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise ChatMessageError(f"{name} must be a list of objects, not {type(values).__name__}")
    for position, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ChatMessageError(f"{name}[{position}] must be an object, not {type(value).__name__}")
    return [_plain(f"{name}[{position}]", value) for position, value in enumerate(values)]


def _check_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    for name in variables:
        if name in _NOT_VARIABLES or name in _RESERVED:
            raise ChatMessageError(f"template variable {name} is not supported")
    plain = {name: _plain(name, value) for name, value in variables.items()}
    if plain.get("documents") is not None:
        plain["documents"] = _check_objects("documents", plain["documents"])
    return plain


def _plain(name: str, value: Any) -> Any:
    """Rebuilds a value out of exact JSON types, so that a template meets no object with methods of its own."""
    if len(name) > _LONGEST_PATH:  # it is there for errors, and made for every value
        name = name[:_LONGEST_PATH] + "..."
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_str(name, value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {
            _plain_str(f"key of {name}", key): _plain(f"{name}.{key[:_LONGEST_PATH]}", item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_plain(f"{name}[{position}]", item) for position, item in enumerate(value)]
    if isinstance(value, tuple):
        return tuple(_plain(f"{name}[{position}]", item) for position, item in enumerate(value))
    raise ChatMessageError(f"{name} must be made of JSON values, got {type(value).__name__}")


def _plain_str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ChatMessageError(f"{name} must be a string, got {value!r}")
    text = str.__str__(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ChatMessageError(
            f"{name} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        ) from error
    return text
