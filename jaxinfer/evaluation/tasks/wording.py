"""How people wrap a question: what stands before and behind it. A few words each make thousands of wordings."""

from __future__ import annotations

import random
from collections.abc import Sequence

_BEFORE = (
    "Hello! ",
    "Hi. ",
    "Good morning. ",
    "Good evening. ",
    "I need your help. ",
    "Please help me. ",
    "Here is a question. ",
    "A question: ",
    "Quick question: ",
    "I want to know something. ",
    "Let me ask you this. ",
    "Now this: ",
    "Next one. ",
    "One more: ",
    "Can you help me? ",
    "My teacher asks: ",
    "My friend wants to know: ",
    "This is for school. ",
    "Think. ",
)
_BEHIND = (
    " Thank you!",
    " Thanks.",
    " Please.",
    " Take your time.",
    " I am not sure.",
    " Be careful.",
    " I wonder.",
    " Tell me.",
    " Do it right.",
    " It is important.",
    " Be exact.",
)


def wrapped(rng: random.Random, questions: Sequence[str]) -> str:
    """One of the questions; often with words before it, sometimes with words behind it."""
    text = rng.choice(questions)
    if rng.random() < 0.3:
        text = rng.choice(_BEFORE) + text
    if rng.random() < 0.2:
        text += rng.choice(_BEHIND)
    return text


def introduced(rng: random.Random, questions: Sequence[str], material: str) -> str:
    """A question and what it is about, such as a list: behind a colon or before the question."""
    text = wrapped(rng, questions) if rng.random() < 0.3 else rng.choice(questions)
    return f"{text}\n{material}" if rng.random() < 0.5 else f"{material}\n{text}"


def user(text: str) -> tuple[dict[str, str], ...]:
    """A conversation of one message."""
    return ({"role": "user", "content": text},)


def listing(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
