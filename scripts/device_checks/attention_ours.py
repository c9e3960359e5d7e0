"""Our attention op, one backend a process. Its time includes writing the step's own keys and values into the pages.

A turn of the timed program (`jax_timing`) is a step of several layers, as a model has them: they share the rows, and
with them the lists of work that a backend makes of the rows, which XLA computes once. The pages are donated and updated
in place; every layer takes the next of several sets of page tables, which together read far more than the device's
cache holds; its queries, keys and values depend on the layer before, as a model's do, through a term too small to
change them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from device_checks.attention_cases import AttentionCase, attention_cases
from device_checks.child import Case
from device_checks.jax_timing import lower_loop, time_loop
from device_checks.settings import Settings
from pallas_kernels.dispatch import DeviceTarget, select
from pallas_kernels.paged_attention import AttentionOptions, KVLayout, RaggedBatch, kv_layout, layout, paged_attention
from pallas_kernels.paged_attention.api import OP, PagedAttentionCase

LAYERS = 8  # of a turn
SLOW_TURNS = 3  # of the XLA backend: it is no kernel, and takes a hundred times longer
NO_CHANGE = 1e-30  # times an output, added to inputs: a dependency and nothing else


def cases(settings: Settings, backend: str, part: str = "whole") -> Iterator[Case]:
    if backend not in {known.name for known in OP.backends}:
        yield Case("all", functools.partial(_refuse, f"this version has no attention backend {backend!r}"))
        return
    bench = AttentionBench(backend)
    for case in attention_cases(settings, part):
        yield Case(case.name, functools.partial(bench.measure, case))


def _refuse(reason: str) -> dict[str, Any]:
    raise NotImplementedError(reason)


def options_of(case: AttentionCase) -> AttentionOptions:
    """The usual scale, and nothing else."""
    return AttentionOptions(case.heads.dim**-0.5)


def described(case: AttentionCase) -> PagedAttentionCase:
    """What dispatch is told of a case."""
    return PagedAttentionCase(
        num_tokens=case.num_tokens,
        num_rows=case.num_rows,
        num_query_heads=case.heads.query,
        num_kv_heads=case.heads.kv,
        head_dim=case.heads.dim,
        page_size=case.page_size,
        pages_per_row=case.pages_per_row,
        query_dtype=np.dtype(jnp.bfloat16),
        kv_dtype=np.dtype(case.kv_dtype),
        options=options_of(case),
    )


class AttentionBench:
    """Keeps compiled programs and one pool of pages between cases."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._target = DeviceTarget.of(jax.devices()[0])
        self._programs: dict[Any, Any] = {}
        self._pool_key: Any = None
        self._pool: Any = None

    def measure(self, case: AttentionCase) -> dict[str, Any]:
        """Compiles if need be, runs, and returns what was read. Raises Unsupported, before anything is made."""
        select(OP, self._target, described(case), self.backend)
        kv = layout_of(case, self._target)
        self._make_pool(case, kv)
        operands = step_arrays(case)
        out = jnp.zeros((case.num_tokens, case.heads.query, case.heads.dim), jnp.bfloat16)
        carry, self._pool = (out, *self._pool), None  # donated: whatever fails from here on, the pool is made again
        compile_seconds = 0.0
        if case.program not in self._programs:
            begin = time.perf_counter()
            self._programs[case.program] = lower(case, self._target, self.backend, carry, operands).compile()
            compile_seconds = time.perf_counter() - begin
        calls, turns, layers = loop_of(case, self.backend, self._target)
        program = called(self._programs[case.program], calls)
        timing, carry = time_loop(program, carry, operands, calls * turns * layers)
        finite = bool(jnp.isfinite(carry[0]).all())
        self._pool = carry[1:]
        if not finite:
            raise ValueError("the outputs are not finite")
        return {
            "kind": case.kind,
            "needed_bytes": case.needed_bytes,
            "needed_flops": case.needed_flops,
            "compile_seconds": compile_seconds,
            **timing.fields(),
        }

    def _make_pool(self, case: AttentionCase, kv: KVLayout) -> None:
        key = (case.page_size, case.kv_dtype, case.pool_tokens)
        if self._pool is not None and self._pool_key == key:
            return
        self._pool, self._pool_key = None, key
        make = jax.jit(random_pages, static_argnums=(1, 2))
        self._pool = tuple(make(jax.random.key(seed), kv, num_pages(case)) for seed in range(2))


def layout_of(case: AttentionCase, target: DeviceTarget) -> KVLayout:
    return kv_layout(target, np.dtype(case.kv_dtype), case.heads.kv, case.heads.dim, case.page_size)


def num_pages(case: AttentionCase) -> int:
    """Of the pool: the null page, and the pages of every set."""
    return 1 + max(case.pool_tokens // case.page_size, case.sets * case.num_rows * case.pages_per_row)


def random_pages(key: jax.Array, kv: KVLayout, count: int) -> layout.Pages:
    """Pages full of random numbers of size 1."""
    struct = kv.struct(count)
    if kv.dtype == np.int8:
        values = jax.random.randint(key, struct.values.shape, -127, 128, jnp.int8)
        return layout.QuantizedPages(values, jnp.full(struct.scales.shape, 1 / 64, jnp.float32))
    values = jax.random.normal(key, struct.shape, jnp.bfloat16)
    if kv.quantized:
        return layout.QuantizedPages(values.astype(kv.storage_dtype), jnp.ones(struct.scales.shape, jnp.float32))
    return layout.to_storage(values, kv.storage_dtype)


def step_arrays(case: AttentionCase) -> dict[str, Any]:
    """Queries, new keys and values, and the sets of page tables and kv slots that the turns take."""
    rng = np.random.default_rng(0)
    order = 1 + rng.permutation(num_pages(case) - 1)
    tables = order[: case.sets * case.num_rows * case.pages_per_row]
    tables = tables.reshape(case.sets, case.num_rows, case.pages_per_row).astype(np.int32)
    counts = np.zeros(case.num_rows, np.int32)
    lengths = np.zeros(case.num_rows, np.int32)
    counts[: len(case.rows)], lengths[: len(case.rows)] = np.array(case.rows, np.int32).T
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    slots = np.zeros((case.sets, case.num_tokens), np.int32)
    for row in range(len(case.rows)):
        positions = np.arange(lengths[row] - counts[row], lengths[row])
        pages = tables[:, row, positions // case.page_size]
        slots[:, starts[row] : starts[row + 1]] = pages * case.page_size + positions % case.page_size
    shape = (case.num_tokens, case.heads.query, case.heads.dim)
    new = (case.num_tokens, case.heads.kv, case.heads.dim)
    q, k, v = (
        jax.random.normal(jax.random.key(10 + i), size, jnp.bfloat16) for i, size in enumerate((shape, new, new))
    )
    arrays = {"q": q, "k": k, "v": v}
    return arrays | {
        name: jnp.asarray(value)
        for name, value in (("tables", tables), ("slots", slots), ("starts", starts), ("lengths", lengths))
    }


def lower(case: AttentionCase, target: DeviceTarget, backend: str, carry: Any, operands: Any) -> jax.stages.Lowered:
    """The timed program, for arrays or for shapes (to compile it for a device that is not here)."""
    attend = functools.partial(paged_attention, options=options_of(case), target=target, backend=backend)

    _, turns, layers = loop_of(case, backend, target)

    def turn(index: jax.Array, carry: Any, given: dict[str, Any]) -> Any:
        for layer in range(layers):
            out, k_pages, v_pages = carry
            taken = (index * layers + layer) % case.sets
            batch = RaggedBatch(
                query_start_loc=given["starts"],
                seq_lens=given["lengths"],
                page_tables=jax.lax.dynamic_index_in_dim(given["tables"], taken, keepdims=False),
                slot_mapping=jax.lax.dynamic_index_in_dim(given["slots"], taken, keepdims=False),
            )
            before = out[0, 0, 0] * jnp.bfloat16(NO_CHANGE)
            q, k, v = (given[name] + before for name in ("q", "k", "v"))
            carry = attend(q, k, v, k_pages, v_pages, batch)
        return carry

    return lower_loop(turn, carry, operands, turns)


def loop_of(case: AttentionCase, backend: str, target: DeviceTarget) -> tuple[int, int, int]:
    """Calls of the timed program, turns of its loop, and layers of a turn.

    A TPU's program is a single op, called many times without waiting: between ops that follow each other on the same
    pages libtpu's compiler copies the whole pool.
    """
    if target.platform == "tpu":
        return case.launches, 1, 1
    if backend == "xla":
        return 1, min(case.launches, SLOW_TURNS), 1
    return 1, max(1, case.launches // LAYERS), LAYERS


def called(program: Any, calls: int) -> Any:
    """A program's calls in a row, each on the carry of the one before."""

    def run(carry: Any, operands: Any) -> Any:
        for _ in range(calls):
            carry = program(carry, operands)
        return carry

    return run


def abstract_arguments(case: AttentionCase, target: DeviceTarget, sharding: Any) -> tuple[Any, Any]:
    """Carry and operands as shapes."""
    operands = jax.eval_shape(functools.partial(step_arrays, case))
    pages = layout_of(case, target).struct(num_pages(case))
    out = jax.ShapeDtypeStruct((case.num_tokens, case.heads.query, case.heads.dim), jnp.bfloat16)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), ((out, pages, pages), operands)
    )
