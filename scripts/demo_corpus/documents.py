"""The stream of documents: stories and chats in a fixed proportion."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from demo_corpus.chats import ChatMaker, Messages
from demo_corpus.stories import StoryTeller

# A chat has 72 tokens and a story 160 on average, so this share of documents is 30 % of the tokens.
CHAT_SHARE = 0.49


@dataclass(frozen=True)
class Document:
    """Either a story (text) or a chat (messages)."""

    text: str = ""
    messages: Messages = field(default_factory=list)


def documents(seed: int, count: int) -> Iterator[Document]:
    """`count` documents. The same seed gives the same documents; a shorter run is a prefix of a longer one."""
    rng = random.Random(f"demo corpus {seed}")
    teller = StoryTeller()
    chats = ChatMaker(teller)
    for _ in range(count):
        if rng.random() < CHAT_SHARE:
            yield Document(messages=chats.chat(rng))
        else:
            yield Document(text=teller.story(rng))
