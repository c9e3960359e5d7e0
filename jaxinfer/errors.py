"""What bad requests raise, in the engine's rooms and in the servers: this module is below all of them and imports none.

Each message names the field, its value and what is allowed. All are ValueErrors: they answer bad input, never a fault
of ours. Several faults of one request are told at once: whoever writes a client mends them in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

MAX_FAULTS = 16  # that are told
_SHOWN = 80  # characters of a value in an error


def _beginning(value: Any, length: int) -> str:
    """At least the first `length` characters of repr(value), or all: a value can be megabytes."""
    if length <= 0:
        return ""
    kind = type(value)
    if kind in (str, bytes):
        return repr(value[:length])
    if kind not in (list, tuple, dict):
        return repr(value)
    shown = "[" if kind is list else "(" if kind is tuple else "{"
    for i, item in enumerate(value.items() if kind is dict else value):
        if len(shown) >= length:
            return shown
        shown += ", " if i else ""
        for j, each in enumerate(item if kind is dict else (item,)):
            shown += (": " if j else "") + _beginning(each, length - len(shown))
    return shown + ("]" if kind is list else "}" if kind is dict else ",)" if len(value) == 1 else ")")


class InvalidRequest(ValueError):
    """A request that cannot be served as asked. The message names the field, the value and what is allowed."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = name, value, allowed
        shown = _beginning(value, _SHOWN + 1)
        super().__init__(f"{name} is {shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + '...'}; {allowed}")


class TextError(ValueError):
    """An argument of encode, decode or detokenization is out of range. The message names field, value and range."""


class PromptTooLong(TextError):
    """A text has more characters than `tokens` tokens can stand for: `characters`, of `allowed`."""

    def __init__(self, characters: int, allowed: int, tokens: int) -> None:
        super().__init__(f"text has {characters} characters; {tokens} tokens stand for at most {allowed}")
        self.characters, self.allowed, self.tokens = characters, allowed, tokens


class TooManyTokens(TextError):
    """A text has more tokens than the caller's limit: `count`, of `allowed`."""

    def __init__(self, count: int, allowed: int) -> None:
        super().__init__(f"text has {count} tokens; at most {allowed} are allowed")
        self.count, self.allowed = count, allowed


class ChatTemplateError(ValueError):
    """A chat template is absent, does not compile, or refused the conversation.

    field: what is wrong of what was given, as in ``messages``; None where it is none of that.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ChatMessageError(ChatTemplateError):
    """A chat message or tool is malformed. The message names the field, as in ``messages[2].content[0].type``."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message, field or message.removeprefix("key of ").split(" ", 1)[0])


class StopStringError(ValueError):
    """The list of stop strings is malformed. The message names the entry and the limit."""


# What bad input raises on its way from the request to the engine.
BAD_INPUT = (InvalidRequest, TextError, StopStringError, ChatTemplateError)


# -- several faults ---------------------------------------------------------------------------------------------------


class Faults(InvalidRequest):
    """Several faults. Field, value and what is allowed are those of the first; the message has all of them."""

    def __init__(self, faults: Sequence[InvalidRequest]) -> None:
        first = faults[0]
        super().__init__(first.field, first.value, first.allowed)
        self.faults = tuple(faults)
        self.args = (together([str(fault) for fault in faults]),)


def together(messages: Sequence[str]) -> str:
    """One message of several; one alone stays as it is."""
    if len(messages) == 1:
        return messages[0]
    told = [f"({i}) {message}" for i, message in enumerate(messages[:MAX_FAULTS], 1)]
    more = [] if len(messages) <= MAX_FAULTS else ["..."]
    return f"{len(messages)} faults: {'; '.join(told + more)}"


def faults_of(error: InvalidRequest) -> tuple[InvalidRequest, ...]:
    return error.faults if isinstance(error, Faults) else (error,)


def one_of(faults: Sequence[InvalidRequest]) -> InvalidRequest:
    """The exception that tells all of them."""
    return faults[0] if len(faults) == 1 else Faults(faults)


def renamed(
    error: InvalidRequest, names: Mapping[str, str], in_text: Callable[[str], str] = lambda text: text
) -> InvalidRequest:
    """The same with each fault's field under its name in `names`. in_text: changes what is said to be allowed."""
    faults = faults_of(error)
    return one_of([InvalidRequest(_new_name(f.field, names), f.value, in_text(f.allowed)) for f in faults])


def _new_name(field: str, names: Mapping[str, str]) -> str:
    """Its parts keep their place in a field that is itself a part of another one and has a name here."""
    if field in names:
        return names[field]
    around = [ours for ours in names if field.startswith((f"{ours}.", f"{ours}[", f"{ours}#"))]
    whole = max(around, key=len, default="")
    return names[whole] + field[len(whole) :] if whole else field


class Gathering:
    """`with gathering:` around each of several checks keeps their InvalidRequest; `done` raises all that were kept."""

    def __init__(self) -> None:
        self.faults: list[InvalidRequest] = []

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, InvalidRequest):
            return False
        # Without its traceback: that leads to the frame which holds this object, and so the request with all its text
        # would stay until a garbage collection found the circle.
        self.faults += [fault.with_traceback(None) for fault in faults_of(error)]
        return True

    def done(self) -> None:
        """Raises InvalidRequest where there was one."""
        if self.faults:
            raise one_of(self.faults)
