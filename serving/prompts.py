"""What a prompt can be before it is tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.errors import InvalidRequest

MAX_SESSION_ID = 256  # characters
SESSION_SECONDS = 300.0
# OpenAI's names, both spellings of its clients, and for how long a prompt stays. The first is what happens anyway.
_RETENTIONS = {"": 0.0, "in_memory": 0.0, "in-memory": 0.0, "24h": 24 * 3600.0}


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the model's chat template; see `Tokenizer.render_chat`.

    template: one of the model's, by name, or the template itself where requests are trusted; None: the model's choice.
    continue_final_message: the prompt ends within the last message, which the model goes on with.
    marked: messages or tools have marks up to which the prompt is pinned; see cache_marks.py.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    marked: bool = False


Prompt = TextPrompt | TokenPrompt | ChatPrompt
Pins = Sequence[tuple[int, float]]  # how far from the beginning, and for how many seconds


def session_seconds(session_id: str, retention: str) -> float:
    """For how long prompt and answer are to be pinned; 0.0: not. retention: `prompt_cache_retention`. Raises
    InvalidRequest."""
    seconds = _RETENTIONS.get(retention)
    if seconds is None:
        raise InvalidRequest("prompt_cache_retention", retention, "it must be in_memory or 24h")
    return max(seconds, SESSION_SECONDS if session_id else 0.0)


def check_session(name: str, session_id: str) -> None:
    """Raises InvalidRequest for one that is too long to be one."""
    if len(session_id) > MAX_SESSION_ID:
        raise InvalidRequest(name, session_id, f"at most {MAX_SESSION_ID} characters are allowed")
