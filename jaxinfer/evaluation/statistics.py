"""How sure a measured number is: intervals, baselines, perplexity and the distance between two models. No jax.

Shapes: T positions of a text, V vocabulary entries, K alternatives known at a position.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
_LEAST_REST = 1e-9  # probability; the float32 sums of a top list are no better than that


@dataclass(frozen=True)
class Interval:
    """A share and the two ends of its confidence interval, all from 0 to 1; of nothing it is (nan, 0, 1)."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """B's accuracy minus A's over the same n items, and its interval. `low` > 0: B is better beyond noise."""

    difference: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Perplexity:
    """How well texts are predicted: e to the mean negative log-probability of a token, and bits for each UTF-8 byte.

    Bits per byte compare models whose tokenizers differ; perplexities per token do not.
    """

    per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int


def wilson(right: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of `right` successes out of `n` (Wilson 1927; Brown, Cai and DasGupta 2001).

    Unlike the normal approximation it stays inside 0..1 and is honest at 0 and n successes.

    Raises:
        ValueError: not 0 <= right <= n, or a confidence outside (0, 1).
    """
    if not 0 <= right <= n:
        raise ValueError(f"right is {right}; it must be from 0 to n = {n}")
    z = _quantile(confidence)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    share = right / n
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # Exact at the ends, where rounding would leave 1e-17.
    return Interval(share, 0.0 if right == 0 else center - half, 1.0 if right == n else center + half)


def paired_bootstrap(
    a: Sequence[bool],
    b: Sequence[bool],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Percentile bootstrap interval of mean(b) - mean(a), items resampled in pairs (Efron and Tibshirani 1993, 13.3).

    An item adds -1, 0 or 1 to the difference, so a resample is one multinomial draw of how many of each it holds.

    Raises:
        ValueError: different lengths, no items, or a confidence outside (0, 1).
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} items and b has {len(b)}; the same items are needed on both sides")
    if not len(a):
        raise ValueError("there are no items to compare")
    _quantile(confidence)
    n = len(a)
    deltas = np.asarray(b, np.int64) - np.asarray(a, np.int64)
    shares = np.array([np.mean(deltas == value) for value in (-1, 0, 1)])
    draws = np.random.default_rng(seed).multinomial(n, shares / shares.sum(), size=resamples)
    means = (draws[:, 2] - draws[:, 0]) / n
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(deltas.mean()), float(low), float(high), n)


def majority(answers: Sequence[str]) -> tuple[str | None, float]:
    """The commonest answer (the smallest of equals) and its share: what always saying the same would score."""
    if not answers:
        return None, math.nan
    answer, count = min(Counter(answers).items(), key=lambda entry: (-entry[1], entry[0]))
    return answer, count / len(answers)


def perplexity(total_logprob: float, tokens: int, num_bytes: int) -> Perplexity:
    """Of texts whose `tokens` scored tokens stand for `num_bytes` UTF-8 bytes and have `total_logprob` (natural log).

    Raises:
        ValueError: nothing was scored.
    """
    if tokens < 1 or num_bytes < 1:
        raise ValueError(f"perplexity of {tokens} tokens and {num_bytes} bytes; at least one of each is needed")
    mean = -total_logprob / tokens
    per_token = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(per_token, -total_logprob / math.log(2) / num_bytes, tokens, num_bytes)


def kl_divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(P || Q) in nats at each position, from the log-probabilities (T, V) of both. inf where Q rules out what P has.

    Raises:
        ValueError: shapes that differ or are not (T, V).
    """
    log_p, log_q = np.asarray(log_p, np.float64), np.asarray(log_q, np.float64)
    if log_p.shape != log_q.shape or log_p.ndim != 2:
        raise ValueError(f"shapes are {log_p.shape} and {log_q.shape}; both must be the same (positions, vocabulary)")
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return np.maximum(terms.sum(axis=1), 0.0)  # float32 inputs leave -1e-7 where both are the same


def coarse_kl(
    ids_p: np.ndarray, log_p: np.ndarray, ids_q: np.ndarray, log_q: np.ndarray, vocab_size: int
) -> np.ndarray:
    """KL(P || Q) at each position, each token that both top lists hold on its own and all others as one bucket.

    Putting outcomes together never increases the divergence, so this is a lower bound of the true one.

    Args:
        ids_p: (T, K) token ids that P finds likeliest.
        log_p: (T, K) their log-probabilities.
        ids_q: (T, L), the same of Q.
        log_q: (T, L).
        vocab_size: tokens there are; with all of them in both lists nothing is left for the bucket.
    """
    result = np.zeros(len(ids_p))
    for t in range(len(ids_p)):
        shared, of_p, of_q = np.intersect1d(ids_p[t], ids_q[t], assume_unique=True, return_indices=True)
        first, second = log_p[t][of_p].astype(np.float64), log_q[t][of_q].astype(np.float64)
        if len(shared) < vocab_size:
            first, second = (np.append(side, math.log(_rest(side))) for side in (first, second))
        result[t] = kl_divergence(first[None], second[None])[0]
    return result


def _rest(logprobs: np.ndarray) -> float:
    return max(1.0 - float(np.exp(logprobs).sum()), _LEAST_REST)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be above 0 and below 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)
