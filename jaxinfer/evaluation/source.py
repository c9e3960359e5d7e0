"""Where answers come from, as the evaluation sees it: an engine in this process, a server, or a fake. No jax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

Message = Mapping[str, str]
OnDone = Callable[[], None]
"""Called once for each prompt that is through."""

PLAIN_STOPS = ("\nQuestion:", "\n\n")
"""Ends an answer to a plain prompt: a model that was not taught to chat goes on with the next question."""

_PLAIN_LABELS = {"user": "Question: ", "assistant": "Answer: "}


@dataclass(frozen=True)
class SourceInfo:
    """What answers. `settings` is plain data for the record; chat: whether prompts go through a chat template."""

    model: str
    where: str  # "offline" or the server's address
    vocab_size: int
    max_model_len: int
    max_logprobs: int
    chat: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


class Chat(NamedTuple):
    """A conversation that the model is to answer, the functions that it is offered, and variables of its template."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = {}


class AnswerText(NamedTuple):
    """A generated text. `finish_reason` is "stop" or "length"."""

    text: str
    finish_reason: str


class Scored(NamedTuple):
    """For a text of n tokens: each token's log-probability given those before it, and its rank; (n-1,) each.

    The first token has none. Rank 1 is the likeliest.
    """

    logprobs: np.ndarray
    ranks: np.ndarray

    @property
    def is_greedy(self) -> np.ndarray:
        """(n-1,) bool: whether each token is one that the model itself would have chosen."""
        return self.ranks == 1


class Distributions(NamedTuple):
    """What a model expects after tokens 0..i, i from 0 to n-2: (n-1, K) ids, likeliest first, and their logprobs."""

    ids: np.ndarray
    logprobs: np.ndarray


class Source(Protocol):
    """Generates greedily and scores. Prompts are token ids; `on_done` is called as each is through, in any order.

    Too long a prompt is refused by an error, so callers compare with `info.max_model_len` first.
    """

    @property
    def info(self) -> SourceInfo: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, with the special tokens that the tokenizer puts around them."""
        ...

    def encode_chats(self, chats: Sequence[Chat]) -> list[list[int]]:
        """Token ids of conversations: by the chat template, or their messages alone as `plain_prompt`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int], on_done: OnDone
    ) -> list[AnswerText]:
        """A greedy continuation of each prompt, at most so many tokens long."""
        ...

    def score(self, prompts: Sequence[Sequence[int]], on_done: OnDone) -> list[Scored]:
        """Log-probabilities of the prompts' own tokens; each prompt has at least two."""
        ...

    def distributions(self, prompts: Sequence[Sequence[int]], alternatives: int) -> Iterator[Distributions]:
        """For each prompt in turn, the `alternatives` likeliest tokens at each of its positions but the last."""
        ...


def plain_prompt(messages: Sequence[Message]) -> str:
    """A conversation as questions and answers, for models without a chat template; it ends where the answer begins."""
    lines = [_PLAIN_LABELS.get(message["role"], "") + message["content"] for message in messages]
    return "\n".join([*lines, "Answer:"])
