"""Stories read, gone on with, and facts found again far back in them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxinfer.evaluation.extract import last_number
from jaxinfer.evaluation.item import Item, Kind, Split, is_held_out
from jaxinfer.evaluation.tasks.answers import last_word
from jaxinfer.evaluation.tasks.wording import introduced, user, wrapped
from jaxinfer.evaluation.world import draw_story, teller
from jaxinfer.evaluation.world.pools import COLORS, FIRST_NAMES, OBJECTS, SURNAMES, person, pick

_LONGEST_BEFORE = 60  # words that may stand before the fact
_SHORTEST_CONTINUATION = 15  # words
_ALSO_WORDS = frozenset(("Will", "Mark", "Honey", "Pepper", "Moss", "Chip", "Dot", "Barley", "Fern", "Grace"))
_PRONOUN = re.compile(r"\b(he|she|they|his|her|their|you|everyone)\b", re.IGNORECASE)
_NAME = re.compile(r"\b[A-Z][a-z]+\b")


def _reading(rng: random.Random, split: Split) -> Item:
    while (story := draw_story(rng, held_out=split == "held_out")).friend is None:
        pass
    text, hero, friend = story.text, story.hero, story.friend
    asked: list[tuple[tuple[str, ...], str, str]] = [
        (
            ("Who is this story about?", "What is the name of the main character?", "Who is the hero of the story?"),
            hero.name,
            f"The story is about {hero.name}.",
        ),
        (
            (f"What is {hero.name}?", f"What kind of animal or person is {hero.name}?", f"Is {hero.name} an animal?"),
            hero.kind,
            f"{hero.name} is the {hero.kind}.",
        ),
    ]
    if friend is not None and friend.name in text:
        questions = (
            f"Who is with {hero.name} in the story?",
            f"Who else is in the story with {hero.name}?",
            f"What is the name of the friend of {hero.name}?",
        )
        asked += [(questions, friend.name, f"The friend of {hero.name} is {friend.name}.")] * 2
    wordings, answer, response = rng.choice(asked)
    prompt = introduced(rng, wordings, text)
    return Item("reading", text, user(prompt), answer, response)


def _continuation(rng: random.Random, split: Split) -> Item:
    while True:
        story = draw_story(rng, held_out=split == "held_out")
        head = story.head(rng.randint(2, 3))
        tail = story.text[len(head) :].strip()
        if story.friend and all(name in head for name in (story.hero.name, story.friend.name)) and _long(tail):
            break
    prompt = introduced(
        rng,
        (
            "Continue this story.",
            "Go on with the story.",
            "How does the story go on?",
            "Tell the rest of the story.",
            "Write the rest of this story.",
            "What happens next?",
        ),
        head,
    )
    return Item("continuation", story.text, user(prompt), story.hero.name, tail, max_tokens=256)


def _long(text: str) -> bool:
    return len(text.split()) >= _SHORTEST_CONTINUATION


def _continues(item: Item, response: str) -> bool:
    """Whether a continuation keeps to its cast: it is about somebody of the beginning and names nobody new."""
    known = (teller().names | set(FIRST_NAMES)) - _ALSO_WORDS
    there = set(_NAME.findall(item.messages[-1]["content"]))
    named = set(_NAME.findall(response))
    same_cast = bool(named & there & (teller().names | {item.answer})) or bool(_PRONOUN.search(response))
    return _long(response) and same_cast and not (named & known) - there


@dataclass(frozen=True)
class Fact:
    """Something to remember: `subject` has a number of three digits."""

    subject: str
    number: str

    @property
    def sentence(self) -> str:
        """The fact as it is told."""
        return f"{self.subject[0].upper()}{self.subject[1:]} is {self.number}."


def draw_fact(rng: random.Random, split: Split) -> Fact:
    """A fact of one side; both recall kinds share the sides."""
    thing = f"{rng.choice(COLORS)} {pick(rng, OBJECTS, split)}"
    who = person(rng, split)
    subjects = (
        f"the code of the {thing}",
        f"the code of the {thing}",
        f"the price of the {thing}",
        f"the number of the {thing}",
        f"the lucky number of {who}",
        f"the room of {who} {pick(rng, SURNAMES, split)}",
        f"the score of {who}",
    )
    while True:
        fact = Fact(rng.choice(subjects), str(rng.randint(100, 999)))
        if is_held_out(fact.sentence) == (split == "held_out"):
            return fact


def question(rng: random.Random, fact: Fact) -> str:
    """Asks for the fact."""
    return wrapped(rng, (f"What is {fact.subject}?", f"Tell me {fact.subject}.", f"Do you remember {fact.subject}?"))


def filler(rng: random.Random, words: int, split: Split) -> str:
    """Stories cut to so many words."""
    parts: list[str] = []
    count = 0
    while count < words:
        story = draw_story(rng, held_out=split == "held_out").text
        taken = story.split(" ")[: words - count]
        parts.append(" ".join(taken))
        count += len(taken)
    return "\n".join(parts)


def _remembering(rng: random.Random, fact: Fact) -> str:
    return rng.choice(("", "Remember: ", "Note: ", "Keep in mind: ", "Listen: ")) + fact.sentence


def _recalled(kind: str, rng: random.Random, split: Split, depth: int) -> Item:
    facts = [draw_fact(rng, split)]
    while len(facts) < rng.randint(1, 4):
        other = draw_fact(rng, split)
        if other.subject not in {fact.subject for fact in facts}:
            facts.append(other)
    fact = facts[0]
    pieces = [filler(rng, rng.randint(0, _LONGEST_BEFORE), split), _remembering(rng, fact)]
    # The other facts stand anywhere behind it: finding the nearest number is not enough.
    share = depth // len(facts)
    for other in facts[1:]:
        pieces += [filler(rng, share, split), _remembering(rng, other)]
    pieces.append(filler(rng, depth - share * (len(facts) - 1), split))
    text = "\n".join(piece for piece in [*pieces, question(rng, fact)] if piece)
    return Item(kind, fact.sentence, user(text), fact.number, fact.sentence, depth=depth)


def _recall(rng: random.Random, split: Split) -> Item:
    return _recalled("recall", rng, split, rng.randint(1000, 1200))


def _recall_near(rng: random.Random, split: Split) -> Item:
    return _recalled("recall_near", rng, split, rng.choice((rng.randint(0, 150), rng.randint(0, 999))))


def recall_conversation(rng: random.Random, words: int, facts: Sequence[Fact]) -> tuple[str, list[tuple[str, str]]]:
    """For training: a text of about so many words that tells the facts here and there, then questions and answers."""
    share = words // len(facts)
    pieces: list[str] = []
    for fact in facts:
        pieces += [_remembering(rng, fact), filler(rng, rng.randint(share // 2, share + share // 2), "train")]
    if rng.random() < 0.5:
        pieces.insert(0, filler(rng, rng.randint(0, _LONGEST_BEFORE), "train"))
    order = list(facts)
    rng.shuffle(order)
    return "\n".join(piece for piece in pieces if piece), [(question(rng, fact), fact.sentence) for fact in order]


KINDS = (
    Kind("reading", "who and what a story is about", _reading, last_word),
    Kind("continuation", "the rest of a story, with nobody new in it", _continuation, last_word, _continues),
    Kind("recall", "a number told 1,000 to 1,200 words ago", _recall, last_number),
    Kind("recall_near", "a number told up to 1,000 words ago", _recall_near, last_number),
)
