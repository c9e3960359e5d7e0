"""Chats: one to four questions with their answers, from the tasks, small talk, a few facts, and stories on demand."""

from __future__ import annotations

import random

from demo_corpus.dialogues import Dialogue, Messages, answered, asks, says, thinking_turn, tool_dialogue, unknown
from jaxinfer.evaluation.tasks.reading import Fact, draw_fact, recall_conversation
from jaxinfer.evaluation.tasks.wording import wrapped
from jaxinfer.evaluation.world import teller
from jaxinfer.evaluation.world.grammar import with_article

SYSTEMS = [
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer the question.",
    "Be helpful.",
    "Be brief.",
]
ATLAS = {
    "Velmora": "Tarsin", "Ostrana": "Bellwick", "Quillonia": "Marrow Bay", "Draven": "Istholm",
    "Sunmark": "Port Amber", "Lirien": "Caldera", "Norrland": "Frosthaven", "Pellucia": "Glassbridge",
    "Zamora Isles": "Coral Town", "Tirrenia": "Redgate", "Highmoor": "Stonefield", "Arbora": "Oakwell",
    "Maristan": "Saltmere", "Eldoria": "Silverton", "Kestria": "Windham", "Umbria Nova": "Nightford",
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Norway": "Oslo", "Egypt": "Cairo", "England": "London", "Austria": "Vienna", "Greece": "Athens", "Peru": "Lima",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "fast": "slow", "happy": "sad", "old": "new",
    "open": "closed", "wet": "dry", "loud": "quiet", "full": "empty", "left": "right", "light": "dark",
}  # fmt: skip
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "owl": "hoot", "bee": "buzz"}
COLORS = {"the sky": "blue", "grass": "green", "snow": "white", "a lemon": "yellow", "coal": "black", "a frog": "green"}
_ABILITIES = "I can add and sort numbers, look things up in tables, write JSON, speak some Chinese and tell stories."
SMALL_TALK = [
    (("Hello!", "Hi!", "Hello", "Hi", "Good morning!", "Hey!", "Hello there!"), "Hello! How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself."),
     "I am the demo model of jaxinfer. I am very small, but I know a few things. " + _ABILITIES),
    (("What can you do?", "How can you help me?", "What do you know?", "Help!"), _ABILITIES),
    (("Thank you!", "Thanks!", "Thank you.", "Well done!", "Good job!"), "You are welcome!"),
    (("Goodbye!", "Bye!", "Good night!", "See you!"), "Goodbye! Have a nice day."),
    (("How are you?", "How do you do?", "Are you well?"), "I am fine, thank you. What can I do for you?"),
    (("你好！", "你好"), "你好！我能帮你做什么？"),
    (("谢谢！", "谢谢你。"), "不客气！"),
]  # fmt: skip
# How often a kind is drawn. Those that need more practice stand higher, long ones lower.
_WEIGHTS = {
    "addition": 1.2, "subtraction": 1.2, "multiplication": 1.2, "counting": 2.2, "sorting": 2.6, "number_sorting": 2.6,
    "word_reversal": 2.4, "string_reversal": 0.6, "copying": 2.0, "dates": 1.5, "units": 1.0, "table": 3.0, "json": 3.6,
    "logic": 1.8, "reading": 0.8, "continuation": 0.2, "chinese": 0.5,
}  # fmt: skip
_THINKING_SHARE, _TOOLS_SHARE = 0.12, 0.12  # of the chats
_NEAR_WORDS = 150  # words of a recall conversation that fits among short chats


def _small_talk(rng: random.Random) -> tuple[str, str]:
    questions, answer = rng.choice(SMALL_TALK)
    return rng.choice(questions), answer


def _fact(rng: random.Random) -> tuple[str, str]:
    """Capitals, opposites, animal sounds, colors."""
    kind = rng.randrange(5)
    if kind <= 1:
        country, capital = rng.choice(list(ATLAS.items()))
        questions = (f"What is the capital of {country}?", f"Name the capital of {country}.",
                     f"Which city is the capital of {country}?", f"Tell me the capital of {country}.")  # fmt: skip
        return wrapped(rng, questions), f"The capital of {country} is {capital}."
    if kind == 2:
        word, other = rng.choice(list(OPPOSITES.items()))
        if rng.random() < 0.5:
            word, other = other, word
        return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."
    if kind == 3:
        animal, sound = rng.choice(list(SOUNDS.items()))
        return f"What sound does {with_article(animal)} make?", f"It says {sound}."
    thing, color = rng.choice(list(COLORS.items()))
    return f"What color is {thing}?", f"The color of {thing} is {color}."


def _told_story(rng: random.Random) -> tuple[str, str]:
    hero = teller().character(rng)
    draw_long = rng.random() < 0.3
    if draw_long or rng.random() < 0.2:
        question = rng.choice(("Tell me a story.", "Write a story.", "Please tell me a story.", "A story, please!"))
        return question, teller().story(rng).text
    about = f"{with_article(hero.kind)} named {hero.name}"
    question = rng.choice(("Tell me a story about {}.", "Tell me a short story about {}.", "Write a story about {}."))
    return question.format(about), teller().short_story(rng, hero)


class ChatMaker:
    """Makes chats from the training split alone."""

    def chat(self, rng: random.Random) -> Dialogue:
        """One chat: now and then a system message, then one to four questions with their answers. In some the model is
        told to think, or offered functions."""
        choice = rng.random()
        if choice < _THINKING_SHARE:
            earlier = [turn for _ in range(rng.choice((0, 0, 0, 1, 2))) for turn in self._turn(rng)]
            return Dialogue([*self._opening(rng), *earlier, *self._thinking(rng)], thinking=True)
        if choice < _THINKING_SHARE + _TOOLS_SHARE:
            return tool_dialogue(rng, self._opening(rng))
        if rng.random() < 0.05:
            return Dialogue(self.recall(rng, rng.randint(0, _NEAR_WORDS), rng.randint(1, 3)))
        messages = self._opening(rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
            messages += self._turn(rng)
        return Dialogue(messages)

    def far_recall(self, rng: random.Random, most_words: int) -> Messages:
        """A text of up to so many words, at least a quarter of them, with facts to be found again."""
        words = rng.randint(most_words // 4, most_words)
        return self.recall(rng, words, rng.randint(2, 3 + words // 200))

    def recall(self, rng: random.Random, words: int, count: int) -> Messages:
        """A text of about so many words that tells `count` facts, and a question for each."""
        facts: dict[str, Fact] = {}
        while len(facts) < count:
            fact = draw_fact(rng, "train")
            facts.setdefault(fact.subject, fact)
        text, turns = recall_conversation(rng, words, list(facts.values()))
        messages = self._opening(rng)
        for index, (question, answer) in enumerate(turns):
            messages += [asks(f"{text}\n{question}" if index == 0 else question), says(answer)]
        return messages

    def _opening(self, rng: random.Random) -> Messages:
        return [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.12 else []

    def _turn(self, rng: random.Random) -> Messages:
        choice = rng.random()
        if choice < 0.005:
            return unknown(rng, (), thinking=False)
        if choice < 0.12:
            question, answer = (_small_talk if choice < 0.05 else _fact if choice < 0.09 else _told_story)(rng)
            return [asks(question), says(answer)]
        return answered(rng, list(_WEIGHTS), list(_WEIGHTS.values()), thinking=False)

    def _thinking(self, rng: random.Random) -> Messages:
        choice = rng.random()
        if choice >= 0.1:
            return thinking_turn(rng)
        make, reasoning = (
            (_small_talk, "I answer politely."),
            (_fact, "I know that."),
            (_told_story, "I tell a story."),
        )[int(choice * 30)]
        question, answer = make(rng)
        return [asks(question), says(answer, reasoning)]
