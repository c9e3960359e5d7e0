"""Log-probabilities, ranks and the likeliest alternatives, for sampled tokens and for prompts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.runtime.sampling import MAX_LOGPROBS, TokenScores, score_prompt
from tests.jaxinfer.runtime import sampling_oracle as oracle


def check(scores: TokenScores, logits: np.ndarray, tokens: np.ndarray, vocab_size: int) -> None:
    """Against a float64 log-softmax and a stable sort of the raw logits."""
    rows = np.arange(len(tokens))
    raw = logits.astype(np.float64)[:, :vocab_size]
    best = raw.max(axis=1, keepdims=True)
    exact = raw - best - np.log(np.exp(raw - best).sum(axis=1, keepdims=True))
    # Differences of logits up to 60 in float32 (half an ulp is 2e-6), and a logarithm of about 1e-7.
    np.testing.assert_allclose(scores.logprobs, exact[rows, tokens], rtol=3e-7, atol=4e-6)
    np.testing.assert_array_equal(scores.ranks, (raw > raw[rows, tokens][:, None]).sum(axis=1) + 1)
    order = np.argsort(-raw, axis=1, kind="stable")[:, :MAX_LOGPROBS]
    np.testing.assert_array_equal(scores.top_ids[:, : order.shape[1]], order)
    top = np.take_along_axis(exact, order, axis=1)
    np.testing.assert_allclose(scores.top_logprobs[:, : order.shape[1]], top, rtol=3e-7, atol=4e-6)
    assert np.isneginf(np.asarray(scores.top_logprobs)[:, order.shape[1] :]).all()


@pytest.mark.parametrize(("vocab", "real"), [(384, 384), (1001, 990), (24, 11)])
def test_scores_are_of_the_raw_logits(vocab: int, real: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = (rng.normal(size=(16, vocab)) * 6).astype(np.float32)
    logits[3] = np.round(logits[3])  # ties: lower ids come first and share a rank
    logits[4] = 0.0
    logits[5, 3:9] = -np.inf
    logits[:, real:] = 90.0
    settings = oracle.params(
        16,
        temperature=rng.choice([0.0, 0.7, 1.5], 16),
        top_k=5,
        repetition_penalty=1.5,
        has_penalties=True,
        has_bias=True,
        num_logprobs=rng.integers(1, 21, 16),
        seed_low=np.arange(16),
    )
    tables = oracle.random_tables(rng, 16, vocab)
    found = oracle.sample_rows(logits, settings, real, tables=tables)
    assert (found.tokens != logits[:, :real].argmax(axis=1)).any()
    check(found.scores, logits, found.tokens, real)


def test_what_nobody_asks_for_is_zero() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 384)).astype(np.float32)
    nothing = oracle.sample_rows(logits, oracle.params(8)).scores
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(nothing))
    chosen = oracle.sample_rows(logits, oracle.params(8, num_logprobs=[0] + [-1] * 7)).scores
    assert chosen.logprobs[0] < 0
    assert chosen.ranks[0] == 1
    assert not chosen.top_ids.any()


def test_a_thin_tail_counts() -> None:
    """20,480 tokens of 2e-9 each: a plain running sum in float32 would lose them."""
    logits = np.full((8, 20480), -20.0, np.float32)
    logits[:, 77] = 0.0
    found = oracle.sample_rows(logits, oracle.params(8, num_logprobs=0)).scores
    np.testing.assert_allclose(found.logprobs, -np.log1p(20479 * np.exp(-20.0)), rtol=3e-3)  # the result's own ulp


@pytest.mark.parametrize(("length", "block"), [(3, 256), (8, 256), (30, 8), (33, 16)])
def test_score_prompt(length: int, block: int) -> None:
    rng = np.random.default_rng(length)
    hidden = rng.normal(size=(length, 12)).astype(np.float32)
    weight = rng.normal(size=(301, 12)).astype(np.float32)
    targets = rng.integers(0, 290, length).astype(np.int32)

    def head(block: jax.Array) -> jax.Array:
        return jnp.einsum("bd,vd->bv", block, weight, precision="highest")

    score = jax.jit(lambda h, t, count: score_prompt(h, head, t, count, vocab_size=290, block=block))
    found = score(hidden, targets, length)
    logits = np.asarray(jax.jit(head)(np.pad(hidden, ((0, 8), (0, 0)))))[:length]
    check(found, logits, targets, 290)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(score(hidden, targets, 0)))
    some = score(hidden, targets, 1)  # its block alone is computed
    for part, whole in zip(jax.tree.leaves(some), jax.tree.leaves(found), strict=True):
        assert np.asarray(part)[0].tobytes() == np.asarray(whole)[0].tobytes()
        assert not np.asarray(part)[block:].any()


def test_score_prompt_scores_alike_in_any_chunking() -> None:
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(40, 64)).astype(np.float32)
    weight = rng.normal(size=(384, 64)).astype(np.float32)
    targets = rng.integers(0, 384, 40).astype(np.int32)

    @jax.jit
    def score(hidden: jax.Array, targets: jax.Array) -> TokenScores:
        head = lambda h: jnp.einsum("bd,vd->bv", h, weight, precision="highest")  # noqa: E731
        return score_prompt(hidden, head, targets, jnp.int32(hidden.shape[0]), vocab_size=384, block=16)

    whole = score(hidden, targets)
    for start, stop in ((0, 7), (7, 14), (14, 40)):
        part = score(hidden[start:stop], targets[start:stop])
        for ours, theirs in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
            assert np.asarray(ours).tobytes() == np.asarray(theirs)[start:stop].tobytes()


def test_score_prompt_never_holds_all_logits() -> None:
    length, width, vocab, block = 512, 16, 8192, 32

    def score(hidden: jax.Array, weight: jax.Array, targets: jax.Array, count: jax.Array) -> TokenScores:
        return score_prompt(hidden, lambda h: h @ weight, targets, count, vocab_size=vocab, block=block)

    shapes = [(length, width), (width, vocab)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arguments += [jax.ShapeDtypeStruct((length,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)]
    memory = jax.jit(score).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 5 * block * vocab * 4  # the whole would be 16 blocks
