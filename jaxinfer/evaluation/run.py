"""Puts tasks and texts to a source and counts what comes back. No jax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.evaluation.extract import first_json
from jaxinfer.evaluation.item import Item, Kind
from jaxinfer.evaluation.items import Task
from jaxinfer.evaluation.source import Chat, Source
from jaxinfer.evaluation.statistics import Interval, Perplexity, majority, perplexity, wilson

OnProgress = Callable[[str, int, int], None]
"""(what runs, done, total)."""

DEPTH_STEP = 250  # tokens in one bin of recall by depth
JSON_KIND = "json"


@dataclass(frozen=True)
class Answered:
    """One item and what came back. `found` is the answer in the response, None when there was none to be found."""

    item: Item
    response: str
    found: str | None
    right: bool
    finish_reason: str


@dataclass
class TaskResult:
    """All answers of one kind. `skipped` items did not fit the model's context together with their answer; `unheard`
    ones have tools or variables of which the prompt shows nothing, since the chat template knows none."""

    kind: Kind
    answers: list[Answered] = field(default_factory=list)
    skipped: int = 0
    unheard: int = 0

    @property
    def n(self) -> int:
        return len(self.answers)

    @property
    def right(self) -> int:
        return sum(answer.right for answer in self.answers)

    @property
    def accuracy(self) -> Interval:
        return wilson(self.right, self.n)

    @property
    def baseline(self) -> float:
        """What always giving the commonest right answer would score."""
        return majority([answer.item.answer for answer in self.answers])[1]

    @property
    def cut_off(self) -> int:
        """Responses that had not ended within the item's max_tokens."""
        return sum(answer.finish_reason == "length" for answer in self.answers)

    @property
    def unanswered(self) -> int:
        """Responses in which no answer was to be found."""
        return sum(answer.found is None for answer in self.answers)

    @property
    def expects_json(self) -> bool:
        return self.kind.name == JSON_KIND or self.kind.extract is first_json


@dataclass(frozen=True)
class DepthBin:
    """Recall of facts that lie from `start` to below `stop` tokens back."""

    start: int
    stop: int
    n: int
    accuracy: Interval


@dataclass(frozen=True)
class TextResult:
    """Perplexity on texts; `skipped` ones were longer than the context, or a single token."""

    perplexity: Perplexity | None
    texts: int
    skipped: int


def run_tasks(source: Source, tasks: Mapping[str, Task], progress: OnProgress) -> dict[str, TaskResult]:
    """Answers every item greedily; kinds one after the other, the items of a kind together."""
    results: dict[str, TaskResult] = {}
    for name, task in tasks.items():
        result = results[name] = TaskResult(task.kind)
        fitting: list[tuple[Item, list[int]]] = []
        items = task.items if _is_heard(source, task.items[:1]) else []
        result.unheard = len(task.items) - len(items)
        for item, ids in zip(items, source.encode_chats([_chat(item) for item in items]), strict=True):
            if len(ids) + item.max_tokens <= source.info.max_model_len:
                fitting.append((item, ids))
        result.skipped = len(items) - len(fitting)
        counter = _Counter(name, len(fitting), progress)
        prompts, limits = [ids for _, ids in fitting], [item.max_tokens for item, _ in fitting]
        replies = source.generate(prompts, limits, counter)
        for (item, _), reply in zip(fitting, replies, strict=True):
            found = task.kind.extract(reply.text)
            right = task.kind.is_right(item, reply.text)
            result.answers.append(Answered(item, reply.text, found, right, reply.finish_reason))
    return results


def _chat(item: Item) -> Chat:
    return Chat(item.messages, item.tools, item.variables)


def _is_heard(source: Source, items: Sequence[Item]) -> bool:
    """Whether the model's prompt says of an item's functions and variables: a chat template may know none of them."""
    asked = [_chat(item) for item in items if item.tools or item.variables]
    if not asked:
        return True
    return source.encode_chats(asked) != source.encode_chats([Chat(chat.messages) for chat in asked])


def run_texts(source: Source, texts: Sequence[str], progress: OnProgress) -> TextResult:
    """Perplexity on whole texts. A first token that stands for text has no score, so its bytes do not count either."""
    encoded = source.encode(texts)
    fitting = [(t, ids) for t, ids in zip(texts, encoded, strict=True) if 2 <= len(ids) < source.info.max_model_len]
    scored = source.score([ids for _, ids in fitting], _Counter("held-out text", len(fitting), progress))
    total, tokens, size = 0.0, 0, 0
    for (text, ids), scores in zip(fitting, scored, strict=True):
        total += float(scores.logprobs.sum(dtype="float64"))
        tokens += len(scores.logprobs)
        size += len(text.encode()) - len(source.decode(ids[:1]).encode())
    found = perplexity(total, tokens, size) if tokens else None
    return TextResult(found, len(fitting), len(texts) - len(fitting))


def recall_by_depth(results: Mapping[str, TaskResult], step: int = DEPTH_STEP) -> list[DepthBin]:
    """Accuracy of the items that have a depth, in bins of `step` tokens; bins without items are left out."""
    bins: dict[int, list[bool]] = {}
    for result in results.values():
        for answer in result.answers:
            if answer.item.depth > 0:
                bins.setdefault(answer.item.depth // step, []).append(answer.right)
    return [
        DepthBin(i * step, (i + 1) * step, len(rights), wilson(sum(rights), len(rights)))
        for i, rights in sorted(bins.items())
    ]


def json_validity(results: Mapping[str, TaskResult]) -> tuple[Interval, int] | None:
    """The share of responses that hold a JSON object, among the kinds that ask for one, and how many those are."""
    answers = [answer for result in results.values() if result.expects_json for answer in result.answers]
    if not answers:
        return None
    return wilson(sum(first_json(answer.response) is not None for answer in answers), len(answers)), len(answers)


def report(source: Source, results: Mapping[str, TaskResult], texts: TextResult | None) -> dict[str, Any]:
    """Everything as plain data for JSON. Shares are from 0 to 1; numbers that do not exist are None."""
    info = source.info
    return {
        "model": info.model,
        "where": info.where,
        "prompts": "chat template" if info.chat else "plain question and answer (the model has no chat template)",
        "settings": dict(info.settings),
        "tasks": {name: task_report(result) for name, result in results.items()},
        "perplexity": text_report(texts) if texts is not None else None,
        "recall_by_depth": [
            {"from": b.start, "to": b.stop, "n": b.n, **_interval(b.accuracy)} for b in recall_by_depth(results)
        ],
        "json_validity": _validity(json_validity(results)),
    }


def task_report(result: TaskResult) -> dict[str, Any]:
    return {
        **_interval(result.accuracy),
        "n": result.n,
        "right": result.right,
        "baseline": result.baseline if result.n else None,
        "skipped": result.skipped,
        "unheard": result.unheard,
        "unanswered": result.unanswered,
        "cut_off": result.cut_off,
    }


def text_report(texts: TextResult) -> dict[str, Any]:
    found = texts.perplexity
    return {
        "per_token": found.per_token if found else None,
        "bits_per_byte": found.bits_per_byte if found else None,
        "tokens": found.tokens if found else 0,
        "bytes": found.bytes if found else 0,
        "texts": texts.texts,
        "skipped": texts.skipped,
    }


def _validity(found: tuple[Interval, int] | None) -> dict[str, Any] | None:
    return (
        None if found is None else {"share": found[0].share, "low": found[0].low, "high": found[0].high, "n": found[1]}
    )


def _interval(interval: Interval) -> dict[str, Any]:
    exists = interval.share == interval.share  # NaN is not JSON
    return {"accuracy": interval.share if exists else None, "low": interval.low, "high": interval.high}


class _Counter:
    """Counts what is done, for `OnProgress`; says 0 at once, so that something shows before the first result."""

    def __init__(self, what: str, total: int, progress: OnProgress) -> None:
        self._what, self._total, self._progress, self._done = what, total, progress, 0
        progress(what, 0, total)

    def __call__(self) -> None:
        self._done += 1
        self._progress(self._what, self._done, self._total)
