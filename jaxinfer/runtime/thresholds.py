"""Exact top-k and top-p thresholds by search, without sorting the vocabulary.

Shapes: S rows, V vocabulary entries (a multiple of ``BLOCK``), N blocks of ``BLOCK`` entries.

Everything here works on ``weights``: (S, V) float32 in [0, 1], a token's probability divided by the row's largest one.
The bits of a non-negative float32, read as an int32, sort like the float itself; that integer is called the *key*. A
threshold is one key a row: the tokens whose key is at least the threshold are kept. Tokens of equal weights share a
key, so ties at a threshold always stay together.

Probabilities are summed as integers (``fixed_point_scale``). Integer addition is associative: a sum has the same bits
whatever the number of rows, the tiling or the device, and the sum over a larger set is never the smaller one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Measure = Callable[[jax.Array, jax.Array], jax.Array]
"""(S, V) weights, (S,) keys -> (S, V) int32 or bool: what each entry adds to a row's measure."""

BLOCK = 128
"""The vocabulary is padded to a multiple of this."""

_CANDIDATE_BLOCK = 64  # entries in a block of the candidate list
_CANDIDATES = 128  # blocks in the candidate list: any top_k up to this many is found there
_FOLD = 8  # how many slices of a row are added before the rest is reduced; divides BLOCK
_TOP_KEY = 0x3F800000  # the key of 1.0
_PROBES = 30  # bisections that any interval of keys up to _TOP_KEY + 1 needs
_DIGIT = 5  # bits of a key that one pass finds where no loop is wanted; divides _PROBES
_TOTAL = 2.0**30  # about what a row's fixed-point weights add up to; the sum must stay below 2^31


def pad_to_block(values: jax.Array, fill: float) -> jax.Array:
    """(S, n) -> (S, V) with V the next multiple of ``BLOCK``."""
    return jnp.pad(values, ((0, 0), (0, -values.shape[1] % BLOCK)), constant_values=fill)


def keys_of(weights: jax.Array) -> jax.Array:
    """The float32 bits of non-negative numbers as int32, in the same order."""
    return lax.bitcast_convert_type(weights, jnp.int32)


def pairwise_sum(values: jax.Array) -> jax.Array:
    """(S, n) float32 -> (S,): the sum of each row in an order that depends on n alone.

    The additions are written out as a tree of elementwise ones: XLA may reorder a ``reduce``, never these. As a
    pairwise sum its rounding error grows with log2(n).
    """
    while values.shape[1] > 1:
        values = _tree(jnp.add, _slices(values))
    return values[:, 0]


def integer_sum(values: jax.Array) -> jax.Array:
    """(S, V) int32, or bool to be counted -> (S,) int32: the sum of each row.

    Adding slices of the row first lets XLA:CPU compute ``values`` inside the additions; before a plain ``reduce`` it
    would write them to memory, which takes about three times as long.
    """
    return jnp.sum(_tree(jnp.add, _slices(values.astype(jnp.int32))), axis=1, dtype=jnp.int32)


def first_of(values: jax.Array, wanted: jax.Array) -> jax.Array:
    """(S, V), (S,) -> (S,) int32: the lowest index at which a row equals ``wanted``, V - 1 if it never does.

    With ``wanted`` the row's maximum this is argmax, which takes XLA:CPU ten times as long.
    """
    index = jnp.where(values == wanted[:, None], lax.broadcasted_iota(jnp.int32, values.shape, 1), values.shape[1] - 1)
    return jnp.min(_tree(jnp.minimum, _slices(index)), axis=1)


def fixed_point_scale(weights: jax.Array, threshold: jax.Array) -> jax.Array:
    """(S, V), (S,) key -> (S,) float32: the factor that ``integer_weights`` needs for the tokens that are kept by
    ``threshold``.

    The integer weights of the kept tokens then add up to 2^30 within rounding, so a weight resolves 2^-30 of the
    probability mass (a float32 running sum near 1 resolves 2^-24).
    """
    total = pairwise_sum(jnp.where(keys_of(weights) >= threshold[:, None], weights, 0.0))
    return _TOTAL / jnp.maximum(total, 1.0)  # the best token alone has weight 1; a row without any token has none


def integer_weights(weights: jax.Array, scale: jax.Array, threshold: jax.Array) -> jax.Array:
    """(S, V), (S,), (S,) key -> (S, V) int32: each kept token's share of the probability mass, 0 for all others.

    Rounded to nearest; the token of weight 1 always has a positive weight.
    """
    return jnp.where(keys_of(weights) >= threshold[:, None], jnp.round(weights * scale[:, None]).astype(jnp.int32), 0)


def multiply_high(a: jax.Array, b: jax.Array) -> jax.Array:
    """Upper 32 bits of the 64-bit product of two uint32 arrays. From 16-bit halves: JAX has 32-bit types by default."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a_high * b_low + ((a_low * b_low) >> 16)  # at most (2^16 - 1)^2 + 2^16 - 1 < 2^32
    other = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (other >> 16)


class TopKTopP:
    """Finds thresholds for one (S, V) array of weights.

    The search runs on a short list first: the ``_CANDIDATES`` blocks with the largest maxima. Every entry elsewhere is
    at most ``bound``, so for keys above ``bound`` the list counts exactly what the whole row would. Only when some
    row's threshold lies at or below its bound is the whole vocabulary searched, for all rows at once but with an effect
    on those alone.
    """

    def __init__(self, weights: jax.Array, needed: jax.Array, loops: bool = True) -> None:
        """``weights`` (S, V); ``needed``: scalar bool, False if no search will follow (the list is then not built).
        ``loops``: whether the search may be a loop; the same thresholds either way."""
        self._weights = weights
        self._find = _bisect if loops else _by_digits
        rows, vocab = weights.shape
        self._short = vocab > _CANDIDATE_BLOCK * _CANDIDATES * 2
        if self._short:
            size = _CANDIDATE_BLOCK * _CANDIDATES
            nothing = jnp.zeros((rows, size), weights.dtype), jnp.zeros((rows,), jnp.int32)
            self._list, self._bound = lax.cond(needed, _candidates, lambda _: nothing, weights)

    def top_k(self, k: jax.Array, on: jax.Array) -> jax.Array:
        """(S,) int32, (S,) bool -> (S,) key of the k-th largest entry, counted with repetitions; 0 where not ``on``."""
        return self._search(_count, k, jnp.zeros_like(k), on)

    def top_p(self, p: jax.Array, scale: jax.Array, threshold: jax.Array, on: jax.Array) -> jax.Array:
        """The smallest set of likeliest tokens, ties included, that holds the share ``p`` of what is kept by
        ``threshold``.

        (S,) float32, (S,) float32 of ``fixed_point_scale(weights, threshold)``, (S,) key, (S,) bool -> (S,) key, at
        least ``threshold``, and ``threshold`` itself where not ``on``. The best token stays even for p = 0: the search
        ends at its key.
        """
        total = integer_sum(_mass(self._weights, threshold, scale))
        share = (jnp.clip(p, 0.0, 1.0 - 2.0**-24) * 2.0**32).astype(jnp.uint32)  # exact down to p = 2^-8
        target = multiply_high(share, total.astype(jnp.uint32)).astype(jnp.int32)
        return self._search(lambda weights, key: _mass(weights, key, scale), target, threshold, on)

    def _search(self, measure: Measure, target: jax.Array, low: jax.Array, on: jax.Array) -> jax.Array:
        """The largest key whose kept tokens measure at least ``target``, given that those of ``low`` do."""
        above = jnp.full_like(low, _TOP_KEY + 1)  # nothing is kept by this one
        if not self._short:
            return jnp.where(on, self._find(measure, self._weights, target, low, above), low)
        found = self._find(measure, self._list, target, jnp.maximum(low, self._bound), above)
        found = jnp.where(on, found, low)
        unresolved = on & (found == self._bound) & (low < self._bound)

        def whole(weights: jax.Array) -> jax.Array:
            first = jnp.where(unresolved, low, found)
            last = jnp.where(unresolved, self._bound, found) + 1
            return self._find(measure, weights, target, first, last)

        return lax.cond(jnp.any(unresolved), whole, lambda _: found, self._weights)


def _candidates(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(S, V) -> ((S, list) weights, (S,) key that no entry outside the list exceeds)."""
    blocks = weights.reshape(weights.shape[0], -1, _CANDIDATE_BLOCK)  # (S, N, block)
    best, which = lax.top_k(jnp.max(blocks, axis=2), _CANDIDATES)
    chosen = jnp.take_along_axis(blocks, which[:, :, None], axis=1, mode="clip")
    # Not best[:, -1]: XLA merges a slice into its top_k, no longer sees one, and sorts.
    return chosen.reshape(weights.shape[0], -1), keys_of(jnp.min(best, axis=1))


def _bisect(measure: Measure, weights: jax.Array, target: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The largest key in [low, high) whose kept entries measure at least ``target``: halves the interval until one key
    is left."""

    def probe(_: jax.Array, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = low + (high - low) // 2
        enough = integer_sum(measure(weights, middle)) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    return lax.fori_loop(0, _PROBES, probe, (low, high))[0]


def _by_digits(measure: Measure, weights: jax.Array, target: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """What ``_bisect`` finds, in a few passes that are written out: a loop would keep a GPU's step from being one
    command buffer. A pass tries 2^_DIGIT - 1 keys at once, so most of its work is in registers."""
    for shift in reversed(range(0, _PROBES, _DIGIT)):
        steps = jnp.arange(1, 1 << _DIGIT, dtype=jnp.int32) << shift
        # Not beyond `high`, and not wrapped around: a key and a step are below 2^30 each.
        keys = low[:, None] + steps  # (S, tried)
        entries = jax.vmap(measure, in_axes=(None, 1), out_axes=1)(weights, keys)  # (S, tried, V), never in memory
        enough = (jnp.sum(entries, axis=2, dtype=jnp.int32) >= target[:, None]) & (keys < high[:, None])
        low = low + (jnp.sum(enough, axis=1, dtype=jnp.int32) << shift)  # what is enough comes before what is not
    return low


def _count(weights: jax.Array, threshold: jax.Array) -> jax.Array:
    return keys_of(weights) >= threshold[:, None]


def _mass(weights: jax.Array, threshold: jax.Array, scale: jax.Array) -> jax.Array:
    return integer_weights(weights, scale, threshold)


def _slices(values: jax.Array) -> list[jax.Array]:
    """(S, n) -> at most ``_FOLD`` arrays (S, ceil(n / _FOLD)), the last one padded with zeros."""
    width = -(-values.shape[1] // _FOLD)
    parts = [values[:, start : start + width] for start in range(0, values.shape[1], width)]
    parts[-1] = jnp.pad(parts[-1], ((0, 0), (0, width - parts[-1].shape[1])))
    return parts


def _tree(combine: Callable[[jax.Array, jax.Array], jax.Array], parts: list[jax.Array]) -> jax.Array:
    """Combines neighbours until one is left."""
    while len(parts) > 1:
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [combine(a, b) for a, b in zip(parts[0:-1:2], parts[1::2], strict=False)] + odd
    return parts[0]
