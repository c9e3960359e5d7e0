"""Chats with exact answers: sums, days, word lists, an invented atlas, and short stories on demand."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from demo_corpus.stories import StoryTeller

Messages = list[dict[str, str]]
Task = Callable[[random.Random], tuple[str, str, str]]

LARGEST_TERM = 10
ATLAS = {
    "Velmora": "Tarsin", "Ostrana": "Bellwick", "Quillonia": "Marrow Bay", "Draven": "Istholm",
    "Sunmark": "Port Amber", "Lirien": "Caldera", "Norrland": "Frosthaven", "Pellucia": "Glassbridge",
    "Zamora Isles": "Coral Town", "Tirrenia": "Redgate", "Highmoor": "Stonefield", "Arbora": "Oakwell",
    "Maristan": "Saltmere", "Eldoria": "Silverton", "Kestria": "Windham", "Umbria Nova": "Nightford",
}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
WORDS = (Path(__file__).parent / "data" / "list_words.txt").read_text(encoding="utf-8").split()
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "fast": "slow", "happy": "sad", "old": "new",
    "open": "closed", "wet": "dry", "loud": "quiet", "full": "empty", "left": "right", "light": "dark",
}  # fmt: skip
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "owl": "hoot", "bee": "buzz"}
COLORS = {"the sky": "blue", "grass": "green", "snow": "white", "a lemon": "yellow", "coal": "black", "a frog": "green"}
SMALL_TALK = [
    (("Hello!", "Hi!", "Hello", "Hi", "Good morning!"), "Hello! How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?"), "I am the demo model of jaxinfer. I am very small."),
    (("What can you do?", "How can you help me?"), "I can tell stories, add small numbers and repeat words."),
    (("Thank you!", "Thanks!", "Thank you."), "You are welcome!"),
    (("Goodbye!", "Bye!", "Good night!"), "Goodbye! Have a nice day."),
    (("How are you?", "How do you do?"), "I am fine, thank you."),
]
ONE_WORD_SYSTEM = "Answer with one word only."
PLAIN_SYSTEMS = ["You are a helpful assistant.", "You are a friendly assistant.", "Answer the question."]


def addition(rng: random.Random) -> tuple[str, str, str]:
    """Question, full answer and short answer: the sum of two numbers of at most LARGEST_TERM."""
    a, b = rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)
    question = rng.choice((f"What is {a} + {b}?", f"What is {a} plus {b}?", f"Add {a} and {b}.", f"{a} + {b} = ?"))
    return question, f"{a} + {b} = {a + b}", str(a + b)


def subtraction(rng: random.Random) -> tuple[str, str, str]:
    """A difference that is not negative."""
    b, difference = rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)
    a = b + difference
    question = rng.choice((f"What is {a} - {b}?", f"What is {a} minus {b}?", f"{a} - {b} = ?"))
    return question, f"{a} - {b} = {difference}", str(difference)


def capital(rng: random.Random) -> tuple[str, str, str]:
    """A capital of the invented atlas, or the country of a capital."""
    country, city = rng.choice(list(ATLAS.items()))
    if rng.random() < 0.7:
        question = rng.choice((f"What is the capital of {country}?", f"Name the capital of {country}."))
        return question, f"The capital of {country} is {city}.", city
    question = rng.choice((f"{city} is the capital of which country?", f"Which country has the capital {city}?"))
    return question, f"{city} is the capital of {country}.", country


def calendar(rng: random.Random) -> tuple[str, str, str]:
    """The day or month before or after another."""
    what, names = rng.choice((("day", DAYS), ("month", MONTHS)))
    index, (word, step) = rng.randrange(len(names)), rng.choice((("after", 1), ("before", -1)))
    here, there = names[index], names[(index + step) % len(names)]
    question = rng.choice((f"What {what} comes {word} {here}?", f"Which {what} is {word} {here}?"))
    return question, f"The {what} {word} {here} is {there}.", there


def repeat(rng: random.Random) -> tuple[str, str, str]:
    """Words to say again. Lists of random words make the network learn early to look back and copy."""
    text = " ".join(rng.sample(WORDS, rng.randint(2, 9)))
    return f"{rng.choice(('Repeat', 'Copy', 'Say'))}: {text}", text, text


def word_list(rng: random.Random) -> tuple[str, str, str]:
    """A few words reversed, or asked for by place. The short answer is one word where the question allows it."""
    words = rng.sample(WORDS, rng.randint(2, 4))
    text = " ".join(words)
    if rng.random() < 0.5:
        answer = " ".join(reversed(words))
        return f"{rng.choice(('Reverse', 'Say backwards'))}: {text}", answer, answer
    place, answer = rng.choice((("first", words[0]), ("last", words[-1])))
    return f"What is the {place} word of: {text}", f"The {place} word is {answer}.", answer


def counting(rng: random.Random) -> tuple[str, str, str]:
    """Numbers counted up or down."""
    start, length = rng.randint(0, 15), rng.randint(3, 6)
    numbers = list(range(start, start + length))
    if rng.random() < 0.3:
        numbers.reverse()
    answer = ", ".join(map(str, numbers))
    return f"Count from {numbers[0]} to {numbers[-1]}.", answer, answer


def fact(rng: random.Random) -> tuple[str, str, str]:
    """Opposites, animal sounds, colors."""
    kind = rng.randrange(3)
    if kind == 0:
        word, other = rng.choice(list(OPPOSITES.items()))
        if rng.random() < 0.5:
            word, other = other, word
        return f"What is the opposite of {word}?", f"The opposite of {word} is {other}.", other
    if kind == 1:
        animal, sound = rng.choice(list(SOUNDS.items()))
        return f"What sound does a {animal} make?".replace("a owl", "an owl"), f"It says {sound}.", sound
    thing, color = rng.choice(list(COLORS.items()))
    return f"What color is {thing}?", f"The color of {thing} is {color}.", color


# Each as often as it stands here.
EXACT_TASKS: list[Task] = [
    *[addition] * 3,
    *[subtraction] * 2,
    *[capital] * 2,
    *[calendar] * 2,
    *[repeat] * 3,
    *[word_list] * 2,
    counting,
    fact,
]


class ChatMaker:
    """Makes chats as lists of {"role", "content"} messages."""

    def __init__(self, teller: StoryTeller) -> None:
        self._teller = teller

    def chat(self, rng: random.Random) -> Messages:
        """One chat: a system message in a third of them, then one to five questions with their answers."""
        messages: Messages = []
        one_word = False
        draw = rng.random()
        if draw < 0.15:
            one_word = True
            messages.append({"role": "system", "content": ONE_WORD_SYSTEM})
        elif draw < 0.35:
            messages.append({"role": "system", "content": rng.choice(PLAIN_SYSTEMS)})
        for _ in range(rng.randint(1, 5)):
            question, answer = self._turn(rng, one_word)
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return messages

    def _turn(self, rng: random.Random, one_word: bool) -> tuple[str, str]:
        draw = rng.random()
        if one_word or draw < 0.8:
            question, full, short = rng.choice(EXACT_TASKS)(rng)
            return question, short if one_word else full
        if draw < 0.9:
            questions, answer = rng.choice(SMALL_TALK)
            return rng.choice(questions), answer
        hero = self._teller.character(rng)
        about = f"a {hero.kind} named {hero.name}".replace("a owl", "an owl").replace("a otter", "an otter")
        question = rng.choice((f"Tell me a story about {about}.", f"Tell me a short story about {about}."))
        return question, self._teller.short_story(rng, hero)
