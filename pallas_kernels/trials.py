"""Each op once, on a tiny batch, by one backend and by XLA in float32: does a backend compute what it should here?

A kernel that was proven in an interpreter and by a compiler can still be wrong, hang or abort on a device: a driver, a
card or a compiler of another version. Here is what such a test runs; `jaxinfer/runtime/self_test.py` runs it where it
can do no harm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import DeviceTarget, Op
from pallas_kernels.grouped_matmul import api as grouped
from pallas_kernels.paged_attention import AttentionOptions, RaggedBatch, layout
from pallas_kernels.paged_attention import api as attention
from pallas_kernels.paged_attention.head_packing import packed_keys
from pallas_kernels.qtensor import Activations, Kind, QTensor, dequantize, quantize
from pallas_kernels.quantized_matmul import api as matmul
from pallas_kernels.quantized_matmul.layout import for_target

XLA = "xla"
# Of the largest number of the right result. bfloat16 rounds to 2^-9 of a number, int8 activations to 2^-8 of a token's
# largest; a kernel may round what lies between, too. What reads a wrong page or drops a tile is off by far more.
TOLERANCE = 0.04
_TOKENS = 16  # of a trial's step, padding included
_EXPERTS = 4


Program = tuple[Callable[..., jax.Array], tuple[Any, ...]]
"""A function, and the arguments that it is called with."""


class Prepared(NamedTuple):
    """op, case: what dispatch chooses a backend by. program: of a backend, by its name. right: what it should give,
    float32."""

    op: Op[Any]
    case: Any
    program: Callable[[str], Program]
    right: Callable[[], np.ndarray]

    def run(self, backend: str) -> np.ndarray:
        """The result by a backend, float32."""
        return _result(*self.program(backend))

    def deviation(self, backend: str) -> float:
        """The largest difference from the right result, as a share of that one's largest number; inf for NaN."""
        right, found = self.right(), self.run(backend)
        difference = np.abs(found - right).max()
        return float(difference / np.abs(right).max()) if np.isfinite(difference) else math.inf


@dataclasses.dataclass(frozen=True)
class AttentionTrial:
    """Paged attention: rows that decode, a prompt, a chunk of one, a row of nothing, and padding; everything that must
    not be read holds NaN, where the pages' type has one."""

    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: str
    kv_dtype: str
    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False

    def prepare(self, target: DeviceTarget) -> Prepared:
        rng = np.random.default_rng(0)
        # (tokens of this step, tokens of the sequence with them)
        rows = ((1, self.page_size + 5), (1, 1), (5, 5), (0, 0), (3, 2 * self.page_size + 3))
        queries = np.array([row[0] for row in rows])
        lengths = np.array([row[1] for row in rows])
        width = -(-int(lengths.max()) // self.page_size) + 1
        tables = rng.permutation(np.arange(1, 1 + len(rows) * width)).reshape(len(rows), width)
        where = [(row, length - count + i) for row, (count, length) in enumerate(rows) for i in range(count)]
        before = [(row, i) for row, (count, length) in enumerate(rows) for i in range(length - count)]
        bounds = np.concatenate([[0], np.cumsum(queries)])
        starts, seq_lens, page_tables = (jnp.asarray(x, jnp.int32) for x in (bounds, lengths, tables))
        batch = RaggedBatch(starts, seq_lens, page_tables, self._slots(tables, where, _TOKENS))
        shape = (self.kv_heads, self.head_dim)
        q = _numbers(rng, (_TOKENS, self.heads, self.head_dim), self.dtype)
        k, v = (_numbers(rng, (_TOKENS, *shape), self.dtype) for _ in range(2))
        past = [_numbers(rng, (len(before), *shape), self.dtype) for _ in range(2)]
        past_slots = self._slots(tables, before, len(before))
        sinks = jnp.asarray(rng.normal(size=self.heads), jnp.float32) if self.sinks else None
        options = AttentionOptions(self.scale, self.sliding_window, self.soft_cap)
        count = 1 + tables.size

        def program(backend: str, dtype: str, kv_dtype: str) -> Program:
            def attend(q: jax.Array, k: jax.Array, v: jax.Array, k_pages: Any, v_pages: Any, batch: Any) -> jax.Array:
                return attention.paged_attention(
                    q, k, v, k_pages, v_pages, batch, options=options, sinks=sinks, target=target, backend=backend
                )[0]

            pages = self._pages(target, kv_dtype, count, past, past_slots)
            return attend, (*(x.astype(dtype) for x in (q, k, v)), *pages, batch)

        case = attention.PagedAttentionCase(
            num_tokens=_TOKENS, num_rows=len(rows), num_query_heads=self.heads, num_kv_heads=self.kv_heads,
            head_dim=self.head_dim, page_size=self.page_size, pages_per_row=width, query_dtype=np.dtype(self.dtype),
            kv_dtype=np.dtype(self.kv_dtype), options=options, sinks=self.sinks,
        )  # fmt: skip
        # Numbers that are stored in less than bfloat16 are rounded alike by both.
        wide = self.kv_dtype if np.dtype(self.kv_dtype) in layout.QUANTIZED_DTYPES else "float32"
        return Prepared(
            attention.OP,
            case,
            lambda backend: program(backend, self.dtype, self.kv_dtype),
            lambda: _result(*program(XLA, "float32", wide)),
        )

    def _slots(self, tables: np.ndarray, places: list[tuple[int, int]], count: int) -> jax.Array:
        """The kv slots of (row, position)s; padding has one of the null page."""
        found = [tables[row, at // self.page_size] * self.page_size + at % self.page_size for row, at in places]
        return jnp.asarray(found + [0] * (count - len(found)), jnp.int32)

    def _pages(
        self, target: DeviceTarget, dtype: str, count: int, past: list[jax.Array], slots: jax.Array
    ) -> tuple[layout.Pages, layout.Pages]:
        kept = layout.kv_layout(target, dtype, self.kv_heads, self.head_dim, self.page_size)
        rows, lanes = kept.shape(count)[1], kept.lanes
        k, v = (
            layout.write(self._poisoned(pages), packed_keys(new, rows, lanes), slots, target)
            for pages, new in zip(kept.zeros(count), past, strict=True)
        )
        return k, v

    def _poisoned(self, pages: layout.Pages) -> layout.Pages:
        if isinstance(pages, layout.QuantizedPages):
            return dataclasses.replace(pages, scales=jnp.full_like(pages.scales, jnp.nan))
        nan = layout.to_storage(jnp.full((), jnp.nan), pages.dtype)
        return jnp.full_like(pages, nan)


@dataclasses.dataclass(frozen=True)
class MatmulTrial:
    """A product with a quantized weight."""

    kind: Kind
    group: int | None
    dtype: str
    activations: Activations | None = None
    outputs: int = 128
    inputs: int = 256

    def prepare(self, target: DeviceTarget) -> Prepared:
        rng = np.random.default_rng(1)
        weight = _weight(rng, (self.outputs, self.inputs), self, target)
        x = _numbers(rng, (_TOKENS, self.inputs), self.dtype)
        case = matmul.case_of(x, weight)
        return Prepared(
            matmul.OP,
            case,
            lambda backend: (partial(matmul.quantized_matmul, target=target, backend=backend), (x, weight)),
            lambda: np.asarray(x, np.float32) @ np.asarray(dequantize(weight), np.float32).T,
        )


@dataclasses.dataclass(frozen=True)
class GroupedTrial:
    """A product of rows with their experts, one of which has none."""

    dtype: str
    kind: Kind | None = None
    group: int | None = None
    activations: Activations | None = None
    outputs: int = 128
    inputs: int = 256

    def prepare(self, target: DeviceTarget) -> Prepared:
        rng = np.random.default_rng(2)
        sizes = np.array([3, 0, 6, 5], np.int32)
        assert len(sizes) == _EXPERTS
        shape = (_EXPERTS, self.outputs, self.inputs)
        weight = _numbers(rng, shape, self.dtype) if self.kind is None else _weight(rng, shape, self, target)
        x = _numbers(rng, (_TOKENS, self.inputs), self.dtype)
        experts = np.repeat(np.arange(_EXPERTS), sizes)

        def right() -> np.ndarray:
            wide = np.asarray(dequantize(weight) if isinstance(weight, QTensor) else weight, np.float32)
            rows = np.asarray(x, np.float32)[: len(experts)]
            products = np.einsum("ri,roi->ro", rows, wide[experts])
            return np.concatenate([products, np.zeros((_TOKENS - len(experts), self.outputs), np.float32)])

        return Prepared(
            grouped.OP,
            grouped.case_of(x, weight),
            lambda backend: (partial(grouped.grouped_matmul, target=target, backend=backend), (x, weight, sizes)),
            right,
        )


Trial = AttentionTrial | MatmulTrial | GroupedTrial
_KINDS = {kind.__name__: kind for kind in (AttentionTrial, MatmulTrial, GroupedTrial)}


def to_plain(trial: Trial) -> dict[str, Any]:
    """A trial as JSON has it."""
    return {"what": type(trial).__name__, **dataclasses.asdict(trial)}


def from_plain(plain: dict[str, Any]) -> Trial:
    """What `to_plain` was given."""
    fields = dict(plain)
    return _KINDS[fields.pop("what")](**fields)


def _result(function: Callable[..., jax.Array], arguments: tuple[Any, ...]) -> np.ndarray:
    return np.asarray(jax.jit(function)(*arguments), np.float32)


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), dtype)


def _weight(
    rng: np.random.Generator, shape: tuple[int, ...], trial: MatmulTrial | GroupedTrial, target: DeviceTarget
) -> QTensor:
    assert trial.kind is not None
    whole = quantize(_numbers(rng, shape, "float32"), trial.kind, trial.group, activations=trial.activations)
    return for_target(whole, target, leading=len(shape) - 2)
