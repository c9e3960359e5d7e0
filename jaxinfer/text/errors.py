"""Errors of the text layer. All are ValueErrors: they answer bad input, never a bug in the library."""

from __future__ import annotations


class TokenizerError(ValueError):
    """A tokenizer folder cannot be used: a file is absent, corrupt, or asks for something unsupported.

    The message names the folder or the file, and what was looked for or expected.
    """


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
