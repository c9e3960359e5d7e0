"""Frequencies and rotations against the published formulas, written here in float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.config import ConfigError, RopeConfig
from jaxinfer.models.layers.rope import LONG, SHORT, inverse_frequencies, rotate, rotation_tables

# Frequencies are float32 results of a few float32 operations on values of order 1: a few units of 6e-8.
FREQUENCY_TOLERANCE = 1e-6


def plain(theta: float, size: int) -> list[float]:
    return [theta ** (-2 * i / size) for i in range(size // 2)]


def llama3(rope: RopeConfig) -> list[float]:
    out = []
    for frequency in plain(rope.theta, rope.rotary_dim):
        turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)  # within the trained length
        if turns < rope.low_freq_factor:
            out.append(frequency / rope.factor)
        elif turns > rope.high_freq_factor:
            out.append(frequency)
        else:
            share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            out.append(frequency * (share + (1 - share) / rope.factor))
    return out


def yarn(rope: RopeConfig) -> list[float]:
    def pair(turns: float) -> float:
        wave = rope.original_max_position_embeddings / (2 * math.pi * turns)
        return rope.rotary_dim / 2 * math.log(wave) / math.log(rope.theta)

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    out = []
    for i, frequency in enumerate(plain(rope.theta, rope.rotary_dim)):
        slowed = min(max((i - low) / (high - low), 0.0), 1.0)
        out.append(frequency * (1 - slowed) + frequency / rope.factor * slowed)
    return out


@pytest.mark.parametrize(("theta", "size"), [(1e4, 64), (1e4, 96), (5e5, 128), (1e6, 256), (500.0, 2)])
def test_default_and_linear(theta: float, size: int) -> None:
    default = inverse_frequencies(RopeConfig("default", theta, size))
    assert (default.dtype, default.shape) == (np.float32, (size // 2,))
    np.testing.assert_allclose(default, plain(theta, size), rtol=FREQUENCY_TOLERANCE)
    linear = inverse_frequencies(RopeConfig("linear", theta, size, factor=4.0))
    np.testing.assert_array_equal(linear, default / np.float32(4.0))
    dynamic = inverse_frequencies(RopeConfig("dynamic", theta, size, 4.0, original_max_position_embeddings=64))
    np.testing.assert_array_equal(dynamic, default)


def test_llama3() -> None:
    rope = RopeConfig("llama3", 5e5, 128, factor=8.0, original_max_position_embeddings=8192)
    frequencies = inverse_frequencies(rope)
    # the blend subtracts numbers of order 1: relative error up to a few times larger
    np.testing.assert_allclose(frequencies, llama3(rope), rtol=1e-5)
    ratio = frequencies / inverse_frequencies(RopeConfig("default", 5e5, 128))
    assert ratio[0] == 1.0
    assert ratio[-1] == 0.125
    assert ((ratio > 0.126) & (ratio < 0.999)).any(), "no frequency is blended: the test does not reach that branch"


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig("yarn", 1e6, 128, factor=4.0, original_max_position_embeddings=32768),
        RopeConfig("yarn", 1e4, 64, factor=16.0, original_max_position_embeddings=2048, truncate=False),
        RopeConfig("yarn", 1e4, 64, 8.0, beta_fast=16.0, beta_slow=2.0, original_max_position_embeddings=4096),
    ],
)
def test_yarn(rope: RopeConfig) -> None:
    frequencies = inverse_frequencies(rope)
    np.testing.assert_allclose(frequencies, yarn(rope), rtol=1e-5)
    ratio = frequencies / inverse_frequencies(RopeConfig("default", rope.theta, rope.rotary_dim))
    assert ratio[0] == 1.0
    np.testing.assert_allclose(ratio[-1], 1 / rope.factor, rtol=FREQUENCY_TOLERANCE)


def test_yarn_with_an_empty_ramp() -> None:
    """Both borders on one pair: a step, not a division by zero."""
    rope = RopeConfig("yarn", 1e4, 8, 4.0, beta_fast=1.0, beta_slow=1.0, original_max_position_embeddings=7)
    assert np.isfinite(inverse_frequencies(rope)).all()


def longrope(size: int = 12, attention_factor: float = 1.25) -> RopeConfig:
    short = tuple(1.0 + 0.1 * i for i in range(size // 2))
    long = tuple(2.0 + 1.5 * i for i in range(size // 2))
    return RopeConfig(
        "longrope", 1e4, size, attention_factor=attention_factor, original_max_position_embeddings=64,
        short_factor=short, long_factor=long,
    )  # fmt: skip


@pytest.mark.parametrize(("rope_variant", "name"), [(SHORT, "short_factor"), (LONG, "long_factor")])
def test_longrope_divides_by_the_factors_of_the_variant(rope_variant: int, name: str) -> None:
    rope = longrope()
    wanted = np.array(plain(rope.theta, rope.rotary_dim)) / np.array(getattr(rope, name))
    np.testing.assert_allclose(inverse_frequencies(rope, rope_variant), wanted, rtol=FREQUENCY_TOLERANCE)


def test_longrope_needs_a_factor_for_each_pair() -> None:
    with pytest.raises(ConfigError, match="short_factor has 5"):
        RopeConfig("longrope", 1e4, 12, original_max_position_embeddings=64, short_factor=(1.0,) * 5)


def test_tables_follow_position_variant_and_rope() -> None:
    ropes = (RopeConfig("default", 1e4, 8), longrope())
    positions = np.array([0, 1, 1, 63, 63, 9], np.int32)
    rope_variant = np.array([0, 0, 1, 0, 1, 1], np.int32)
    tables = jax.jit(lambda p, r: rotation_tables(ropes, p, r))(positions, rope_variant)
    assert [table[0].shape for table in tables] == [(6, 4), (6, 6)]
    for rope, (cos, sin, scale) in zip(ropes, tables, strict=True):
        assert scale is None
        per_token = np.stack([inverse_frequencies(rope, int(r)) for r in rope_variant])
        angles = positions[:, None] * per_token.astype(np.float64)
        np.testing.assert_allclose(cos, np.cos(angles) * rope.attention_factor, atol=1e-5)  # angles up to 63 * 6e-8
        np.testing.assert_allclose(sin, np.sin(angles) * rope.attention_factor, atol=1e-5)


def test_far_positions_are_as_exact_as_near_ones() -> None:
    """The angle is rounded to float32 (as in transformers); its cosine must not lose more."""
    rope = RopeConfig("default", 5e5, 128)
    positions = np.array([1, 4095, 131071, 1000003], np.int32)
    ((cos, sin, _),) = jax.jit(lambda p: rotation_tables([rope], p, jnp.zeros_like(p)))(positions)
    angles = (positions.astype(np.float32)[:, None] * inverse_frequencies(rope)).astype(np.float64)
    np.testing.assert_allclose(cos, np.cos(angles), atol=2e-7)
    np.testing.assert_allclose(sin, np.sin(angles), atol=2e-7)


@pytest.mark.parametrize("rotary", [6, 12])
def test_rotate_turns_each_pair_and_leaves_the_rest(rotary: int) -> None:
    """As complex numbers: pair (i, i + r / 2) times e^(i angle); elements from r on are untouched."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3, 12)).astype(np.float32)
    angles = rng.uniform(-3, 3, (5, rotary // 2))
    half = rotary // 2
    turned = (x[..., :half] + 1j * x[..., half:rotary]) * np.exp(1j * angles)[:, None]
    wanted = np.concatenate((turned.real, turned.imag, x[..., rotary:]), axis=-1)
    cos, sin = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
    ours = rotate(jnp.asarray(x), cos, sin)
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
    np.testing.assert_array_equal(ours[..., rotary:], x[..., rotary:])


def test_rotate_in_bfloat16_rounds_once() -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((4, 2, 8)), jnp.bfloat16)
    angles = rng.uniform(-3, 3, (4, 4))
    cos, sin = (jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
    np.testing.assert_array_equal(rotate(x, cos, sin), rotate(x.astype(jnp.float32), cos, sin).astype(jnp.bfloat16))


def test_queries_grow_with_every_stretch_of_the_trained_length() -> None:
    """1 + beta ln(1 + floor(position / trained)), from the position alone; keys stay as they are."""
    rope = RopeConfig("yarn", 1e4, 8, factor=4.0, original_max_position_embeddings=24, query_scaling=0.3)
    positions = np.array([0, 23, 24, 47, 48, 24 * 1000 - 1, 24 * 1000], np.int32)
    (rotation,) = jax.jit(lambda p: rotation_tables([rope], p, jnp.zeros_like(p)))(positions)
    stretches = np.array([0, 0, 1, 1, 2, 999, 1000])
    wanted = 1 + 0.3 * np.log(1.0 + stretches)
    np.testing.assert_allclose(rotation.query_scale, wanted, rtol=3e-7)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((7, 2, 12)), jnp.float32)
    rotated = np.asarray(rotate(x, rotation.cos, rotation.sin))
    np.testing.assert_array_equal(rotation.of_keys(x), rotated)
    np.testing.assert_allclose(rotation.of_queries(x), rotated * wanted[:, None, None], rtol=1e-6)


def test_query_scaling_needs_a_trained_length() -> None:
    with pytest.raises(ConfigError, match=r"query_scaling is 0\.1.*original_max_position_embeddings"):
        RopeConfig("default", 1e4, 8, query_scaling=0.1)


@pytest.mark.parametrize(
    ("sections", "interleaved"), [((2, 3, 3), False), ((4, 2, 2), False), ((3, 3, 2), True), ((4, 2, 2), True)]
)
def test_mrope_of_a_text_is_plain_rope(sections: tuple[int, int, int], interleaved: bool) -> None:
    """Multimodal RoPE by its formula: each pair of a head takes the angle of one of three positions. In a text all
    three are the token's place; an image between would tell the two apart."""
    rope = RopeConfig("default", 1e4, 16)
    frequencies = inverse_frequencies(rope)
    if (
        interleaved
    ):  # pairs 1, 4, 7, ... are of the second position, 2, 5, 8, ... of the third, as long as there are any
        of_pair = np.zeros(8, int)
        for which in (1, 2):
            of_pair[which : 3 * sections[which] : 3] = which
    else:
        of_pair = np.repeat([0, 1, 2], sections)
    text = np.arange(1000, 1050, dtype=np.int32)
    ((cos, sin, _),) = rotation_tables([rope], jnp.asarray(text), jnp.zeros(50, jnp.int32))

    def angles(positions: np.ndarray) -> np.ndarray:
        return positions[of_pair].T.astype(np.float32) * frequencies  # (T, 8)

    np.testing.assert_allclose(cos, np.cos(angles(np.stack([text] * 3)).astype(np.float64)), atol=2e-7)
    np.testing.assert_allclose(sin, np.sin(angles(np.stack([text] * 3)).astype(np.float64)), atol=2e-7)
    image = np.stack([text, text + 500, text + 900])
    assert np.abs(np.cos(angles(image)) - np.asarray(cos)).max() > 0.1
