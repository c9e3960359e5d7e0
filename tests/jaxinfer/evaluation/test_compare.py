"""Two sources side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from jaxinfer.evaluation.compare import (
    TokenizersDifferError,
    check_tokenizers,
    collect_distributions,
    compare_all,
    compare_tasks,
    difference_report,
    divergence,
)
from jaxinfer.evaluation.run import run_tasks
from tests.jaxinfer.evaluation.fake_source import VOCABULARY, FakeSource
from tests.jaxinfer.evaluation.test_run import clever, number, silent, tasks

TEXTS = ["abcdabcd", "hello there", "aaaa"]


def always_right(prompt: str) -> str:
    n = number(prompt)
    return f'{{"n": {n}}}' if prompt.startswith("JSON") else str(2 * n if prompt.startswith("Twice") else n)


def test_differences_are_paired_by_item() -> None:
    asked = tasks()
    a, b = (run_tasks(FakeSource(answer), asked, silent) for answer in (clever, always_right))
    found = compare_tasks(a, b, seed=0)
    double = found["double"]
    assert double is not None
    assert (double.b, double.difference.n, double.dropped) == (1.0, 40, 0)
    assert double.difference.difference == pytest.approx(1 - double.a)
    assert double.difference.low > 0
    everything = compare_all(a, b, seed=0)
    assert everything is not None
    assert everything.difference.n == 120
    same = compare_tasks(a, a, seed=0)["double"]
    assert same is not None
    assert (same.difference.low, same.difference.high) == (0.0, 0.0)


def test_items_that_one_side_could_not_take_are_dropped() -> None:
    asked = tasks()
    lengths = [len(item.messages[0]["content"]) + 1 + item.max_tokens for item in asked["double"].items]
    a = run_tasks(FakeSource(clever), asked, silent)
    b = run_tasks(FakeSource(clever, max_model_len=max(lengths) - 1), asked, silent)
    found = compare_tasks(a, b, seed=0)["double"]
    assert found is not None
    dropped = lengths.count(max(lengths))
    assert (found.dropped, found.difference.n) == (dropped, 40 - dropped)
    neither = run_tasks(FakeSource(clever, max_model_len=4), asked, silent)
    assert compare_tasks(neither, neither, seed=0)["double"] is None
    assert difference_report(None)["n"] == 0


def test_divergence_of_known_sources() -> None:
    a, b = FakeSource(clever, likely=0.5), FakeSource(clever, likely=0.8)
    ours, theirs = (collect_distributions(source, TEXTS, 1000, VOCABULARY, silent) for source in (a, b))
    positions = sum(len(text) for text in TEXTS)
    found = divergence(ours, theirs, VOCABULARY, VOCABULARY)
    assert found is not None
    expected = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert (found.positions, found.exact, found.top1.share) == (positions, True, 1.0)
    assert found.mean_kl == pytest.approx(expected, rel=1e-5)
    assert found.largest_kl == pytest.approx(expected, rel=1e-5)
    same = divergence(ours, ours, VOCABULARY, VOCABULARY)
    assert same is not None
    assert same.mean_kl == 0.0
    # All but the likeliest token are equally unlikely, so that one bucket for them loses nothing.
    few = [collect_distributions(source, TEXTS, 1000, 1, silent) for source in (a, b)]
    bound = divergence(*few, VOCABULARY, 1)
    assert bound is not None
    assert not bound.exact
    assert bound.mean_kl == pytest.approx(expected, rel=1e-5)


def test_agreement_counts_positions() -> None:
    a = FakeSource(clever, likely=0.5)
    b = FakeSource(clever, likely=1e-9)  # the successor becomes the least likely token
    found = divergence(
        *(collect_distributions(s, TEXTS, 1000, VOCABULARY, silent) for s in (a, b)), VOCABULARY, VOCABULARY
    )
    assert found is not None
    assert found.top1.share < 0.1


def test_positions_are_limited() -> None:
    said: list[tuple[str, int, int]] = []
    found = collect_distributions(FakeSource(clever), TEXTS, 10, VOCABULARY, lambda *news: said.append(news))
    assert [len(part.ids) for part in found] == [8, 2]
    assert said == [("distributions", 0, 10), ("distributions", 8, 10), ("distributions", 10, 10)]
    assert divergence([], [], VOCABULARY, VOCABULARY) is None


def test_tokenizers_that_differ_are_named() -> None:
    def plain(text: str) -> Sequence[int]:
        return list(text.encode())

    def lower(text: str) -> Sequence[int]:
        return list(text.lower().encode())

    check_tokenizers(plain, plain, 256, 256, ["more"])
    with pytest.raises(TokenizersDifferError, match=r"tokenizers differ: the vocabularies have 6,000 and 8,000 tokens"):
        check_tokenizers(plain, plain, 6000, 8000)
    with pytest.raises(TokenizersDifferError, match=r"tokenizers differ: for 'The quick .* from token 0 on"):
        check_tokenizers(plain, lower, 256, 256)
    with pytest.raises(TokenizersDifferError, match=r"for 'only here' A gives nothing more and B \[33\]"):
        check_tokenizers(
            plain, lambda text: [*plain(text), 33] if text == "only here" else plain(text), 9, 9, ["only here"]
        )
