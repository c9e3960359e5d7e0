"""On CPU the bits of a token's output do not depend on what it was computed with.

One sequence is computed in several ways, each time into its own fresh pages: at once, in chunks of 64 and of 7, token
by token, and among other rows with other buckets and a wider page table. All outputs must be the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, RaggedBatch, kv_layout, layout, paged_attention, xla
from tests.pallas_kernels.native_cpu.loaded import NAMES, target_for

CPU = DeviceTarget("cpu", "cpu")
CONTEXT = 150
Chunk = tuple[int, int, int]  # sequence, first position, tokens


@dataclasses.dataclass(frozen=True)
class Bucket:
    tokens: int
    rows: int
    extra_pages: int = 0


ALONE, MEDIUM, MIXED = Bucket(8, 1), Bucket(512, 2), Bucket(64, 20, extra_pages=3)


@dataclasses.dataclass(frozen=True)
class Model:
    """The op alone, or (`layers` 2) twice in a larger program with rotary embedding before and arithmetic between."""

    group: int
    head_dim: int
    page_size: int
    dtype: type = jnp.float32  # of the pages
    kv_heads: int = 2
    sliding_window: int | None = None
    soft_cap: float | None = None
    layers: int = 1
    instructions: str | None = None  # of the C++ kernel; None: XLA

    @property
    def pages_per_row(self) -> int:
        return -(-CONTEXT // self.page_size)

    def __str__(self) -> str:
        name = f"G{self.group}-H{self.head_dim}-page{self.page_size}-{np.dtype(self.dtype).name}-layers{self.layers}"
        return name + f"-{self.instructions}" * (self.instructions is not None)

    def __call__(self, q, k, v, positions, pages, batch):
        attend = functools.partial(
            paged_attention,
            options=AttentionOptions(self.head_dim**-0.5, self.sliding_window, self.soft_cap),
            target=CPU if self.instructions is None else target_for(self.instructions),
        )
        if self.instructions is not None:
            q = q.astype(self.dtype)  # whose type the pages have
        if self.layers == 1:
            out, *pages[0] = attend(q, k, v, *pages[0], batch)
            return out, pages
        out = q
        for layer in range(self.layers):
            query = jnp.tanh(q) * 1.5 if layer == 0 else rotated(out * 0.7 + q * 0.6, positions)
            key = rotated(k * (layer + 1), positions)
            attended, *pages[layer] = attend(query, key, v, *pages[layer], batch)
            out = jnp.tanh(attended) * 1.5 + out
        return out, pages


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding: a sum of two products, which a compiler may round in more than one way."""
    low, high = jnp.split(x, 2, axis=-1)
    angle = positions[:, None, None] * 10000.0 ** (-jnp.arange(low.shape[-1]) / low.shape[-1])
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


class Player:
    """Computes chunks of three random sequences with one model, compiling each bucket once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._rng = np.random.default_rng(1)
        heads = (model.group * model.kv_heads, model.kv_heads, model.kv_heads)
        self._data = [
            [self._rng.standard_normal((CONTEXT, n, model.head_dim)).astype(np.float32) for n in heads]
            for _ in range(3)
        ]
        self._run = jax.jit(model.__call__, donate_argnums=(4,))

    def play(self, steps: Iterable[tuple[Bucket, list[Chunk]]]) -> dict[int, bytes]:
        """Runs steps from empty pages; returns sequence 0's outputs by position. Nothing unwritten holds a number."""
        model = self.model
        kv = kv_layout(CPU, model.dtype, model.kv_heads, model.head_dim, model.page_size)
        num_pages = 1 + 3 * model.pages_per_row
        nan = layout.to_storage(jnp.full(kv.shape(num_pages), jnp.nan), kv.storage_dtype)
        pages = [[nan.copy(), nan.copy()] for _ in range(model.layers)]
        tables = 1 + self._rng.permutation(num_pages - 1).reshape(3, model.pages_per_row)
        outputs = {}
        for bucket, chunks in steps:
            arrays, batch, owners = self._pack(bucket, chunks, tables)
            out, pages = self._run(*arrays, pages, batch)
            out = np.asarray(out)
            assert np.isfinite(out[: len(owners)].astype(np.float32)).all()
            outputs |= {position: out[t].tobytes() for t, (seq, position) in enumerate(owners) if seq == 0}
        return outputs

    def _pack(self, bucket: Bucket, chunks: list[Chunk], tables: np.ndarray):
        size = self.model.page_size
        starts = np.full(bucket.rows + 1, sum(n for _, _, n in chunks), np.int32)
        starts[: len(chunks) + 1] = np.cumsum([0] + [n for _, _, n in chunks])
        lengths = np.zeros(bucket.rows, np.int32)
        page_tables = np.zeros((bucket.rows, self.model.pages_per_row + bucket.extra_pages), np.int32)
        owners = [(seq, position) for seq, first, n in chunks for position in range(first, first + n)]
        for row, (seq, first, n) in enumerate(chunks):
            lengths[row] = first + n
            page_tables[row, : tables.shape[1]] = tables[seq]
        slots, positions = np.zeros(bucket.tokens, np.int32), np.zeros(bucket.tokens, np.int32)
        arrays = [np.zeros((bucket.tokens, *a.shape[1:]), np.float32) for a in self._data[0]]
        for t, (seq, position) in enumerate(owners):
            slots[t] = tables[seq, position // size] * size + position % size
            positions[t] = position
            for array, source in zip(arrays, self._data[seq], strict=True):
                array[t] = source[position]
        values = [jnp.asarray(a) for a in arrays]  # float32 whatever the pages are: rounding would hide differences
        batch = RaggedBatch(*(jnp.asarray(a) for a in (starts, lengths, page_tables, slots)))
        return (*values, jnp.asarray(positions)), batch, owners


def at_once() -> Iterator[tuple[Bucket, list[Chunk]]]:
    yield MEDIUM, [(0, 0, CONTEXT)]


def in_chunks(count: int, bucket: Bucket) -> Iterator[tuple[Bucket, list[Chunk]]]:
    for first in range(0, CONTEXT, count):
        yield bucket, [(0, first, min(count, CONTEXT - first))]


def among_others() -> Iterator[tuple[Bucket, list[Chunk]]]:
    """Three prompts in one step, then decoding beside the others, a chunk beside decoding, and decoding to the end."""
    yield MIXED, [(1, 0, 25), (0, 0, 20), (2, 0, 3)]
    for i in range(10):
        yield MIXED, [(2, 3 + i, 1), (1, 25 + i, 1), (0, 20 + i, 1)]
    yield MIXED, [(1, 35, 1), (0, 30, 37), (2, 13, 20)]
    yield MIXED, [(1, 36, 1), (0, 67, 2), (2, 33, 40)]
    for i in range(CONTEXT - 69):
        yield MIXED, [(1, 37 + i, 1), (0, 69 + i, 1)]


WAYS: dict[str, Callable[[], Iterator[tuple[Bucket, list[Chunk]]]]] = {
    "chunks of 64": lambda: in_chunks(64, MIXED),
    "chunks of 7": lambda: in_chunks(7, ALONE),
    "token by token": lambda: in_chunks(1, ALONE),
    "among others": among_others,
}


def check(model: Model) -> None:
    player = Player(model)
    want = player.play(at_once())
    assert len(want) == CONTEXT
    for name, way in WAYS.items():
        got = player.play(way())
        assert got.keys() == want.keys()
        different = [position for position in want if got[position] != want[position]]
        assert not different, f"{model}, {name}: other bits at positions {different}"


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Model(group=4, head_dim=64, page_size=64), marks=pytest.mark.longer),
        Model(group=1, head_dim=64, page_size=16, dtype=jnp.bfloat16, sliding_window=50),
        pytest.param(Model(group=2, head_dim=16, page_size=16, layers=2), marks=pytest.mark.longer),
        pytest.param(Model(group=3, head_dim=128, page_size=128, kv_heads=1, soft_cap=20.0), marks=pytest.mark.longer),
        pytest.param(Model(group=2, head_dim=24, page_size=16, sliding_window=20), marks=pytest.mark.longer),
        pytest.param(Model(group=4, head_dim=96, page_size=64), marks=pytest.mark.longer),
        pytest.param(
            Model(group=8, head_dim=256, page_size=16, dtype=jnp.bfloat16, kv_heads=1), marks=pytest.mark.longer
        ),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_the_company(model: Model):
    check(model)


@pytest.mark.parametrize("instructions", NAMES)
@pytest.mark.parametrize(
    "model",
    [
        Model(group=4, head_dim=64, page_size=64, dtype=jnp.bfloat16),
        Model(group=1, head_dim=80, page_size=5, sliding_window=50, soft_cap=20.0),
        Model(group=40, head_dim=16, page_size=16, kv_heads=1, dtype=jnp.bfloat16, sliding_window=1),
        Model(group=3, head_dim=128, page_size=128),
    ],
    ids=str,
)
def test_bits_of_the_native_kernel(model: Model, instructions: str):
    target_for(instructions)
    check(dataclasses.replace(model, instructions=instructions))


@pytest.mark.parametrize("head_dim", [16, 24, 80])
def test_weighted_values_do_not_depend_on_how_many_queries_there_are(head_dim: int):
    rng = np.random.default_rng(3)
    probs = rng.random((1, 2, 128, 64), np.float32)
    v = rng.standard_normal((1, 2, 64, head_dim), np.float32)
    weigh = jax.jit(functools.partial(xla._weigh, target=CPU))
    few = np.asarray(weigh(probs[:, :, :4], v))
    for count in (32, 64, 128):  # what one token and what a tile of one, two or four heads for each KV head has
        assert np.asarray(weigh(probs[:, :, :count], v))[:, :, :4].tobytes() == few.tobytes(), count


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("page_size", [16, 64, 128])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_bits_over_the_grid(group: int, head_dim: int, page_size: int, dtype: type):
    check(Model(group=group, head_dim=head_dim, page_size=page_size, dtype=dtype))
    check(Model(group, head_dim, page_size, dtype, sliding_window=50, soft_cap=20.0, layers=2))
