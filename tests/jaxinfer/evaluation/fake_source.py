"""A source that answers from a table, and kinds to ask it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxinfer.evaluation.extract import first_json, last_number
from jaxinfer.evaluation.item import Item, Kind, Split
from jaxinfer.evaluation.source import AnswerText, Chat, Distributions, OnDone, Scored, SourceInfo, plain_prompt

VOCABULARY = 300


def double(rng: random.Random, split: Split) -> Item:
    number = rng.randrange(100_000)
    messages = ({"role": "user", "content": f"Twice {number}?"},)
    return Item("double", str(number), messages, str(2 * number), f"It is {2 * number}.", max_tokens=16)


def record(rng: random.Random, split: Split) -> Item:
    number = rng.randrange(100_000)
    answer = f'{{"n":{number}}}'
    messages = ({"role": "user", "content": f"JSON of {number}?"},)
    return Item("json", str(number), messages, answer, answer, max_tokens=16)


def recall(rng: random.Random, split: Split) -> Item:
    number, depth = rng.randrange(100_000), rng.choice((100, 300, 320))
    messages = ({"role": "user", "content": f"Remember {number} over {depth}"},)
    return Item("recall", str(number), messages, str(number), str(number), max_tokens=16, depth=depth)


KINDS = {
    "double": Kind("double", "twice a number", double, last_number),
    "json": Kind("json", "a number as JSON", record, first_json),
    "recall": Kind("recall", "a number from before", recall, last_number),
}


class FakeSource:
    """Token ids are UTF-8 bytes after a 256. `answer` makes the response from the prompt's text.

    Every byte has probability `likely` where it equals the one before it plus one, and shares the rest otherwise.
    """

    def __init__(
        self,
        answer: Callable[[str], str],
        *,
        max_model_len: int = 512,
        chat: bool = True,
        likely: float = 0.5,
    ) -> None:
        self.info = SourceInfo("fake", "offline", VOCABULARY, max_model_len, VOCABULARY, chat, {"dtype": "float32"})
        self._answer, self._likely = answer, likely

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[256, *text.encode()] for text in texts]

    def encode_chats(self, chats: Sequence[Chat]) -> list[list[int]]:
        asked = [chat.messages for chat in chats]
        return self.encode([each[-1]["content"] if self.info.chat else plain_prompt(each) for each in asked])

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode()

    def generate(
        self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int], on_done: OnDone
    ) -> list[AnswerText]:
        assert all(len(p) + n <= self.info.max_model_len for p, n in zip(prompts, max_tokens, strict=True))
        replies = []
        for prompt, limit in zip(prompts, max_tokens, strict=True):
            text = self._answer(self.decode(prompt))
            replies.append(AnswerText(text[:limit], "length" if len(text) > limit else "stop"))
            on_done()
        return replies

    def score(self, prompts: Sequence[Sequence[int]], on_done: OnDone) -> list[Scored]:
        result = []
        for ids, found in zip(prompts, self.distributions(prompts, VOCABULARY), strict=True):
            at = [list(row).index(token) for row, token in zip(found.ids, ids[1:], strict=True)]
            result.append(Scored(found.logprobs[range(len(at)), at].astype(np.float64), np.array(at) + 1))
            on_done()
        return result

    def distributions(self, prompts: Sequence[Sequence[int]], alternatives: int) -> Iterator[Distributions]:
        rest = (1 - self._likely) / (VOCABULARY - 1)
        for prompt in prompts:
            table = np.full((len(prompt) - 1, VOCABULARY), np.log(rest), np.float32)
            for row, token in zip(table, prompt[:-1], strict=True):
                row[(token + 1) % 256] = np.log(self._likely)
            order = np.argsort(-table, axis=1, kind="stable")[:, :alternatives]
            yield Distributions(order.astype(np.int32), np.take_along_axis(table, order, axis=1))
