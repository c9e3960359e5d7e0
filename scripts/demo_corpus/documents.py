"""The documents of the demo's corpus: stories, short chats, long texts to remember facts from."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from demo_corpus.chats import ChatMaker
from demo_corpus.dialogues import Dialogue, Messages
from jaxinfer.evaluation.item import held_out_items
from jaxinfer.evaluation.tasks import KINDS
from jaxinfer.evaluation.world import draw_story, held_out_stories

STORY_SHARE = 0.08  # of short documents
HELD_OUT_ITEMS = 1000  # of each kind


@dataclass(frozen=True)
class Document:
    """Either a story (text) or a chat (messages).

    Attributes:
        text: the story.
        messages: the chat.
        learn_all: also what the user says is learned: it holds stories.
        tools, thinking: as the chat's template gets them, see `Dialogue`.
    """

    text: str = ""
    messages: Messages = field(default_factory=list)
    learn_all: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False

    @classmethod
    def of(cls, dialogue: Dialogue) -> Document:
        return cls(messages=dialogue.messages, tools=dialogue.tools, thinking=dialogue.thinking)


def short_documents(seed: int) -> Iterator[Document]:
    """Stories and short chats without end. The same seed gives the same documents."""
    rng = random.Random(f"demo corpus, short, {seed}")
    chats = ChatMaker()
    while True:
        if rng.random() < STORY_SHARE:
            yield Document(text=draw_story(rng, held_out=False).text)
        else:
            yield Document.of(chats.chat(rng))


def long_documents(seed: int, most_words: int) -> Iterator[Document]:
    """Texts of up to so many words with facts and the questions for them, without end."""
    rng = random.Random(f"demo corpus, long, {seed}")
    chats = ChatMaker()
    while True:
        yield Document(messages=chats.far_recall(rng, most_words), learn_all=rng.random() < 0.5)


@functools.cache
def held_out_texts() -> frozenset[str]:
    """What evaluation asks: the last message of every held-out item and every held-out story."""
    items = (item for kind in KINDS.values() for item in held_out_items(kind, HELD_OUT_ITEMS))
    return frozenset((*(item.messages[-1]["content"] for item in items), *held_out_stories(HELD_OUT_ITEMS)))


def check_not_held_out(documents: Iterator[Document], held_out: frozenset[str]) -> Iterator[Document]:
    """The documents again, each compared with what evaluation asks.

    Raises:
        ValueError: a document says something that evaluation asks.
    """
    for document in documents:
        said = [document.text, *(m["content"] for m in document.messages if m["role"] == "user")]
        leaked = next((text for text in said if text in held_out), None)
        if leaked is not None:
            raise ValueError(f"the training corpus holds a held-out text: {leaked!r}")
        yield document
