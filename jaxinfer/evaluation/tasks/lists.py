"""Lists of words, numbers and characters: counting, sorting, reversing, copying."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jaxinfer.evaluation.extract import last_line, last_line_words, last_number
from jaxinfer.evaluation.item import Item, Kind, Split
from jaxinfer.evaluation.tasks.wording import introduced, user
from jaxinfer.evaluation.world.pools import LIST_WORDS, code, pick_some, split_pool

_SEPARATORS = (", ", ", ", " ")


def _numbered(words: Sequence[str]) -> list[str]:
    return [f"{number} {word}" for number, word in enumerate(words, 1)]


def _picked(words: Sequence[str], ordered: Sequence[str]) -> str:
    """The working of a sorting: what is left, and which of it comes next."""
    left, steps = list(words), []
    for word in ordered[:-1]:
        steps.append(f"{', '.join(left)}: {word}")
        left.remove(word)
    return ". ".join([*steps, *left]) + "."


def _counting(rng: random.Random, split: Split) -> Item:
    words = pick_some(rng, LIST_WORDS, split, rng.randint(2, 9))
    text = introduced(
        rng,
        (
            "How many words are in this list?",
            "Count the words.",
            "Count these words.",
            "How many words do you see?",
            "How long is the list?",
            "How many words are there?",
            "Tell me the number of words.",
        ),
        rng.choice(_SEPARATORS).join(words),
    )
    response = f"{', '.join(_numbered(words))}. The list has {len(words)} words."
    return Item("counting", " ".join(words), user(text), str(len(words)), response)


def _sorting(rng: random.Random, split: Split) -> Item:
    # The alphabet's place of a word that training never saw does not follow from its tokens: known words here, and the
    # list as a whole is new.
    words = rng.sample(split_pool(LIST_WORDS, "train"), rng.randint(3, 5))
    text = introduced(
        rng,
        (
            "Sort these words by the alphabet.",
            "Put the words in alphabetical order.",
            "Sort the words.",
            "Order the words from A to Z.",
            "Sort this list alphabetically.",
            "Bring these words into alphabetical order.",
        ),
        rng.choice(_SEPARATORS).join(words),
    )
    ordered = sorted(words)
    working = _picked(words, ordered)
    return Item("sorting", " ".join(words), user(text), " ".join(ordered), ", ".join(ordered), working=working)


def _number_sorting(rng: random.Random, split: Split) -> Item:
    numbers = rng.sample(range(1000) if rng.random() < 0.3 else range(100), rng.randint(3, 5))
    down = rng.random() < 0.3
    questions: tuple[str, ...] = (
        "Sort these numbers from small to large.",
        "Put the numbers in order, smallest first.",
        "Sort the numbers upwards.",
        "Order these numbers from the smallest to the largest.",
    )
    if down:
        questions = (
            "Sort these numbers from large to small.",
            "Put the numbers in order, largest first.",
            "Sort the numbers downwards.",
            "Order these numbers from the largest to the smallest.",
        )
    text = introduced(rng, questions, ", ".join(map(str, numbers)))
    ordered = [str(number) for number in sorted(numbers, reverse=down)]
    key = f"{'down' if down else 'up'} {numbers}"
    working = _picked([str(number) for number in numbers], ordered)
    return Item("number_sorting", key, user(text), " ".join(ordered), ", ".join(ordered), working=working)


def _word_reversal(rng: random.Random, split: Split) -> Item:
    words = pick_some(rng, LIST_WORDS, split, rng.randint(3, 7))
    text = introduced(
        rng,
        (
            "Reverse the order of these words.",
            "Say these words backwards.",
            "Write the list in reverse order.",
            "Reverse this list.",
            "Turn the list around.",
            "Give me the words from last to first.",
        ),
        rng.choice(_SEPARATORS).join(words),
    )
    answer, numbered = words[::-1], _numbered(words)
    working = f"{', '.join(numbered)}. {', '.join(numbered[::-1])}."
    return Item("word_reversal", " ".join(words), user(text), " ".join(answer), ", ".join(answer), working=working)


def _string_reversal(rng: random.Random, split: Split) -> Item:
    text = code(rng, rng.randint(3, 9))
    prompt = introduced(
        rng,
        (
            "Reverse this string.",
            "Write this backwards.",
            "Reverse the characters.",
            "Spell this backwards.",
            "Turn this string around.",
            "Give me the characters from last to first.",
        ),
        text,
    )
    return Item("string_reversal", text, user(prompt), text[::-1], text[::-1])


def _copying(rng: random.Random, split: Split) -> Item:
    if rng.random() < 0.5:
        text = code(rng, rng.randint(4, 14))
    else:
        text = rng.choice(_SEPARATORS).join(pick_some(rng, LIST_WORDS, split, rng.randint(2, 9)))
    prompt = introduced(
        rng,
        (
            "Repeat this.",
            "Copy this exactly.",
            "Say this again.",
            "Write this once more.",
            "Copy the text.",
            "Repeat the following without a change.",
        ),
        text,
    )
    return Item("copying", text, user(prompt), text, text)


KINDS = (
    Kind("counting", "how many words a list has (2 to 9)", _counting, last_number),
    Kind("sorting", "three to five words by the alphabet", _sorting, last_line_words),
    Kind("number_sorting", "three to five numbers, up or down", _number_sorting, last_line_words),
    Kind("word_reversal", "three to seven words from last to first", _word_reversal, last_line_words),
    Kind("string_reversal", "three to nine characters from last to first", _string_reversal, last_line),
    Kind("copying", "a string or a list again, exactly", _copying, last_line),
)
