"""Two sources side by side: accuracy on the same items, and how far apart their next-token distributions are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxinfer.evaluation.run import OnProgress, TaskResult
from jaxinfer.evaluation.source import Distributions, Source
from jaxinfer.evaluation.statistics import Difference, Interval, coarse_kl, kl_divergence, paired_bootstrap, wilson

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  blanks,\ttab and\nnew line\n\n",
    "1234567890 + 12.5 = 3/4 - 99%",
    '{"name": "Ann", "tags": ["a", "b"], "n": null}',
    "你好，世界。从前有一只小狐狸。",
    "naïve café Übergröße Ελληνικά русский 日本語 🙂👩‍👧",
    "def f(x):\n    return x ** 2  # comment",
    "<|user|> <s> </s> [INST]",
)
"""Texts on which two tokenizers must give the same ids: blanks, digits, JSON, several scripts, code, special tokens."""


class TokenizersDifferError(ValueError):
    """Two models whose next-token distributions are not over the same tokens."""


@dataclass(frozen=True)
class TaskDifference:
    """Accuracy of A and B on the items that both could take; `dropped` ones fitted only one of them."""

    a: float
    b: float
    difference: Difference
    dropped: int


@dataclass(frozen=True)
class Divergence:
    """KL(A || B) in nats over the positions of held-out texts, and how often both find the same token likeliest.

    exact: whole distributions were compared; else KL is a lower bound from the `alternatives` likeliest of each.
    """

    mean_kl: float
    largest_kl: float
    top1: Interval
    positions: int
    exact: bool
    alternatives: int


def check_tokenizers(
    encode_a: Callable[[str], Sequence[int]],
    encode_b: Callable[[str], Sequence[int]],
    vocab_a: int,
    vocab_b: int,
    texts: Sequence[str] = (),
) -> None:
    """Raises TokenizersDifferError, saying how, unless both give the same ids for `PROBES` and `texts`."""
    if vocab_a != vocab_b:
        raise TokenizersDifferError(f"tokenizers differ: the vocabularies have {vocab_a:,} and {vocab_b:,} tokens")
    for text in (*PROBES, *texts):
        a, b = list(encode_a(text)), list(encode_b(text))
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            shown = text if len(text) <= 40 else text[:37] + "..."
            raise TokenizersDifferError(
                f"tokenizers differ: for {shown!r} A gives {_around(a, at)} and B {_around(b, at)} from token {at} on"
            )


def _around(ids: Sequence[int], at: int) -> str:
    return str(list(ids[at : at + 4])) if at < len(ids) else "nothing more"


def compare_tasks(
    a: Mapping[str, TaskResult], b: Mapping[str, TaskResult], *, seed: int
) -> dict[str, TaskDifference | None]:
    """For each kind, B minus A over the items that both answered; None where there are none."""
    result: dict[str, TaskDifference | None] = {}
    for name in a:
        ours = {id(answer.item): answer.right for answer in a[name].answers}
        theirs = {id(answer.item): answer.right for answer in b[name].answers}
        pairs = [(right, theirs[key]) for key, right in ours.items() if key in theirs]
        dropped = len(ours) + len(theirs) - 2 * len(pairs)
        result[name] = _difference(pairs, dropped, seed)
    return result


def compare_all(a: Mapping[str, TaskResult], b: Mapping[str, TaskResult], *, seed: int) -> TaskDifference | None:
    """The same over the items of all kinds together."""
    merged = [
        {"all": TaskResult(next(iter(side.values())).kind, [x for r in side.values() for x in r.answers])}
        for side in (a, b)
        if side
    ]
    return compare_tasks(*merged, seed=seed)["all"] if len(merged) == 2 else None


def _difference(pairs: Sequence[tuple[bool, bool]], dropped: int, seed: int) -> TaskDifference | None:
    if not pairs:
        return None
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    found = paired_bootstrap(first, second, seed=seed)
    return TaskDifference(sum(first) / len(first), sum(second) / len(second), found, dropped)


def collect_distributions(
    source: Source, texts: Sequence[str], positions: int, alternatives: int, progress: OnProgress
) -> list[Distributions]:
    """What the source expects at the first `positions` positions of the texts, in their order."""
    prompts: list[list[int]] = []
    left = positions
    for ids in source.encode(texts):
        ids = ids[: min(left + 1, source.info.max_model_len - 1)]
        if left < 1:
            break
        if len(ids) > 1:
            prompts.append(ids)
            left -= len(ids) - 1
    total, done = positions - left, 0
    progress("distributions", 0, total)
    result = []
    for found in source.distributions(prompts, alternatives):
        result.append(found)
        done += len(found.ids)
        progress("distributions", done, total)
    return result


def divergence(
    a: Sequence[Distributions], b: Sequence[Distributions], vocab_size: int, alternatives: int
) -> Divergence | None:
    """Compares what two sources gave for the same texts; None when there were no positions."""
    kl: list[np.ndarray] = []
    agree = 0
    exact = alternatives >= vocab_size
    for ours, theirs in zip(a, b, strict=True):
        if exact:
            kl.append(kl_divergence(_dense(ours, vocab_size), _dense(theirs, vocab_size)))
        else:
            kl.append(coarse_kl(*ours, *theirs, vocab_size))
        agree += int((ours.ids[:, 0] == theirs.ids[:, 0]).sum())
    values = np.concatenate(kl) if kl else np.zeros(0)
    if not len(values):
        return None
    top1 = wilson(agree, len(values))
    return Divergence(float(values.mean()), float(values.max()), top1, len(values), exact, alternatives)


def _dense(found: Distributions, vocab_size: int) -> np.ndarray:
    """(T, V) log-probabilities in order of token ids."""
    dense = np.full((len(found.ids), vocab_size), -np.inf)
    np.put_along_axis(dense, found.ids.astype(np.int64), found.logprobs.astype(np.float64), axis=1)
    return dense


def difference_report(found: TaskDifference | None) -> dict[str, Any]:
    if found is None:
        return {"a": None, "b": None, "difference": None, "low": None, "high": None, "n": 0, "dropped": 0}
    change = found.difference
    return {
        "a": found.a,
        "b": found.b,
        "difference": change.difference,
        "low": change.low,
        "high": change.high,
        "n": change.n,
        "dropped": found.dropped,
    }


def divergence_report(found: Divergence | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "mean_kl": found.mean_kl,
        "largest_kl": found.largest_kl,
        "exact": found.exact,
        "alternatives": found.alternatives,
        "positions": found.positions,
        "top1_agreement": {"share": found.top1.share, "low": found.top1.low, "high": found.top1.high},
    }
