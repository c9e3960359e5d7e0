"""The paged attention op: its contract, its checks, and the choice of a backend.

Legend: T tokens, S rows, N query heads, K kv heads, G = N // K, H head_dim, P pages, MP page-table width.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import triton_support
from pallas_kernels.dispatch import Backend, DeviceTarget, Op, select
from pallas_kernels.mesh_axes import MeshAxes, devices_along, names_of
from pallas_kernels.paged_attention import layout
from pallas_kernels.paged_attention.head_packing import with_packed_heads
from pallas_kernels.paged_attention.options import AttentionOptions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RaggedBatch:
    """Which tokens of a step belong to which row, and where their K and V live. All int32.

    Row s owns query tokens query_start_loc[s] .. query_start_loc[s + 1] - 1, which may be none. Its query j sits at
    position seq_lens[s] - query_len[s] + j of its sequence. Tokens from query_start_loc[-1] on are padding.

    Attributes:
        query_start_loc: (S + 1,) non-decreasing, starting at 0.
        seq_lens: (S,) tokens of each row's sequence, this step's included. Ignored where a row has no query token.
        page_tables: (S, MP) the pages of each row in order; entries beyond a row's length are never used.
        slot_mapping: (T,) kv slot of each token, page * page_size + offset; padding has slots of the null page 0.
    """

    query_start_loc: jax.Array
    seq_lens: jax.Array
    page_tables: jax.Array
    slot_mapping: jax.Array


@dataclasses.dataclass(frozen=True)
class PagedAttentionCase:
    """What a backend is told before it is chosen; every size is a device's own share, after sharding over heads."""

    num_tokens: int
    num_rows: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    pages_per_row: int
    query_dtype: np.dtype
    kv_dtype: np.dtype
    options: AttentionOptions
    sinks: bool = False


def _xla_supports(target: DeviceTarget, case: PagedAttentionCase) -> str | None:
    """Plain XLA serves every case on every device."""
    del target, case
    return None


def _mosaic_tpu_supports(target: DeviceTarget, case: PagedAttentionCase) -> str | None:
    """The TPU kernel reads whole tiles: 128 lanes, which pages there have, and rows that fill 32 bits eight times."""
    if target.platform != "tpu":
        return "it runs on TPU only"
    rows = 32 // case.kv_dtype.itemsize
    if case.page_size % rows:
        return f"page_size is {case.page_size}; with {case.kv_dtype.name} pages it must be a multiple of {rows}"
    return None


def _mosaic_gpu_supports(target: DeviceTarget, case: PagedAttentionCase) -> str | None:
    """The Hopper kernel multiplies bfloat16 by whole tiles, and copies whole pages or slices of 64 tokens."""
    quantized = case.kv_dtype in layout.QUANTIZED_DTYPES
    sizes = (32, 64, 128, 256) if quantized else (16, 32, 64, 128, 256)
    if target.platform != "gpu":
        return "it runs on NVIDIA GPUs only"
    if target.compute_capability is None or target.compute_capability[0] != 9:  # later ones have no wgmma either
        return f"compute capability is {target.compute_capability}; it must be (9, 0), Hopper"
    if case.query_dtype != np.dtype("bfloat16"):
        return f"queries are {case.query_dtype.name}; they must be bfloat16"
    if case.kv_dtype == np.float32:
        return "pages are float32; they must be bfloat16, int8 or float8_e4m3fn"
    if case.head_dim not in (64, 80, 96, 128, 256):
        return f"head_dim is {case.head_dim}; it must be 64, 80, 96, 128 or 256"
    if case.page_size not in sizes:
        return f"page_size is {case.page_size}; with {case.kv_dtype.name} pages it must be one of {sizes}"
    if case.num_query_heads // case.num_kv_heads > 64:
        return f"{case.num_query_heads} query heads share {case.num_kv_heads} kv heads; at most 64 may share one"
    return None


def _triton_gpu_supports(target: DeviceTarget, case: PagedAttentionCase) -> str | None:
    """The Triton kernel keeps the sums of a whole head in registers."""
    if (reason := triton_support.refusal(target)) is not None:
        return reason
    if case.head_dim > 256:
        return f"head_dim is {case.head_dim}; it must be at most 256"
    return None


def _native_cpu_supports(target: DeviceTarget, case: PagedAttentionCase) -> str | None:
    """The C++ kernel has vectors of 16 along a head, and pages of the queries' own type."""
    if target.platform != "cpu":
        return "it runs on CPUs only"
    if target.instructions is None:
        return "its kernels have not been loaded"
    if case.head_dim % 16:
        return f"head_dim is {case.head_dim}; it must be a multiple of 16"
    if case.kv_dtype != case.query_dtype:
        return f"pages are {case.kv_dtype.name}; they must be of the queries' type, {case.query_dtype.name}"
    return None


OP: Op[PagedAttentionCase] = Op(
    name="paged_attention",
    backends=(
        Backend("mosaic_tpu", _mosaic_tpu_supports, "pallas_kernels.paged_attention.mosaic_tpu:paged_attention"),
        Backend("mosaic_gpu", _mosaic_gpu_supports, "pallas_kernels.paged_attention.mosaic_gpu:paged_attention"),
        Backend("triton_gpu", _triton_gpu_supports, "pallas_kernels.paged_attention.triton_gpu:paged_attention"),
        Backend("native_cpu", _native_cpu_supports, "pallas_kernels.paged_attention.native_cpu:paged_attention"),
        Backend("xla", _xla_supports, "pallas_kernels.paged_attention.xla:paged_attention"),
    ),
)


def paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    batch: RaggedBatch,
    *,
    options: AttentionOptions,
    sinks: jax.Array | None = None,
    target: DeviceTarget,
    backend: str | None = None,
    mesh: Mesh | None = None,
    head_axis: MeshAxes = None,
) -> tuple[jax.Array, layout.Pages, layout.Pages]:
    """Writes this step's K and V into their pages, then attends causally over each row's sequence.

    Query head n reads kv head n // G. The pages are written at `batch.slot_mapping` first, so that a token sees itself
    and the tokens before it in this step; donate them and they are updated in place. What the null page, pages past a
    row's length and slots past it hold has no influence, NaN included.

    Args:
        q: (T, N, H) float32 or bfloat16.
        k, v: (T, K, H), rounded to the pages' type.
        k_pages, v_pages: (P, K, page_size, H), or on TPU fewer and wider rows, as `layout.kv_layout(target, ...)`
            describes: float32, bfloat16, or `layout.QuantizedPages` of int8 or float8_e4m3fn.
        batch: the ragged batch.
        options: how scores are made and which keys a query sees.
        sinks: (N,) a score for each query head that takes its share of the softmax and adds nothing to the output
            (attention sinks as gpt-oss learns them); neither scaled nor capped.
        target: the device being compiled for.
        backend: a backend's name; None takes the first that can serve.
        mesh, head_axis: if given and the mesh has more than one device, the op runs once on every device, with the
            device's share of the heads, which are split over this axis of the mesh, or over several as one.

    Returns:
        out (T, N, H) in q's dtype, exactly zero for padding; and the two page arrays.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend or mesh axis.
        dispatch.Unsupported: the backend cannot serve this case on this target.
    """
    if (mesh is None) != (head_axis is None):
        raise ValueError(f"mesh and head_axis go together; head_axis is {head_axis!r}, mesh is {mesh}")
    if mesh is not None and not set(names_of(head_axis)) <= set(mesh.shape):
        raise ValueError(f"head_axis is {head_axis!r}; the mesh has axes {', '.join(map(repr, mesh.shape))}")
    shards = 1 if mesh is None else devices_along(mesh.shape, head_axis)
    case = _checked_case(q, k, v, k_pages, v_pages, batch, options, sinks, target, shards)
    run = functools.partial(
        with_packed_heads(select(OP, target, case, backend).load()),
        options=options,
        target=target,
    )
    if mesh is not None and mesh.size > 1:
        heads = PartitionSpec(None, head_axis, None)
        pages = layout.page_partition_spec(head_axis, quantized=isinstance(k_pages, layout.QuantizedPages))
        # No output is replicated over the head axis, so there is nothing for check_vma to prove, and the loops of a
        # backend start from constants, which it would refuse to carry.
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(heads, heads, heads, pages, pages, PartitionSpec(), PartitionSpec(head_axis)),
            out_specs=(heads, pages, pages),
            check_vma=False,
        )
    return run(q, k, v, k_pages, v_pages, batch, sinks)


def _checked_case(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    batch: RaggedBatch,
    options: AttentionOptions,
    sinks: jax.Array | None,
    target: DeviceTarget,
    shards: int,
) -> PagedAttentionCase:
    """Checks shapes and dtypes, and describes one shard of the work."""
    for name, array, rank in (("q", q, 3), ("k", k, 3), ("k_pages", k_pages, 4)):
        if array.ndim != rank:
            raise ValueError(f"{name} has shape {array.shape}; it needs {rank} axes")
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    num_pages, _, page_size, _ = k_pages.shape
    num_rows, pages_per_row = batch.seq_lens.shape[0], batch.page_tables.shape[-1]
    if min(num_tokens, num_rows, pages_per_row, num_kv_heads, head_dim, *k_pages.shape) < 1:
        raise ValueError(
            f"q {q.shape}, k {k.shape}, k_pages {k_pages.shape}, page_tables {batch.page_tables.shape}: "
            "no axis may be 0"
        )
    if num_kv_heads % shards:
        raise ValueError(f"k has {num_kv_heads} kv heads; the head axis of the mesh, {shards}, must divide them")
    dtype = layout.value_dtype(k_pages.dtype)
    page_shape = layout.kv_layout(target, dtype, num_kv_heads, head_dim, page_size, shards).shape(num_pages)
    for name, array, shape in (
        ("k", k, (num_tokens, num_kv_heads, head_dim)),
        ("v", v, (num_tokens, num_kv_heads, head_dim)),
        ("k_pages", k_pages, page_shape),
        ("v_pages", v_pages, page_shape),
        ("batch.query_start_loc", batch.query_start_loc, (num_rows + 1,)),
        ("batch.seq_lens", batch.seq_lens, (num_rows,)),
        ("batch.page_tables", batch.page_tables, (num_rows, pages_per_row)),
        ("batch.slot_mapping", batch.slot_mapping, (num_tokens,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; beside the other arguments it must be {shape}")
    if num_heads % num_kv_heads:
        raise ValueError(f"q has {num_heads} heads; it must be a multiple of the {num_kv_heads} kv heads of k")
    _check_types(k_pages, v_pages, batch)
    if sinks is not None and sinks.shape != (num_heads,):
        raise ValueError(
            f"sinks has shape {sinks.shape}; it must hold one score for each of the {num_heads} query heads"
        )
    return PagedAttentionCase(
        num_tokens=num_tokens,
        num_rows=num_rows,
        num_query_heads=num_heads // shards,
        num_kv_heads=num_kv_heads // shards,
        head_dim=head_dim,
        page_size=page_size,
        pages_per_row=pages_per_row,
        query_dtype=np.dtype(q.dtype),
        kv_dtype=dtype,
        options=options,
        sinks=sinks is not None,
    )


def _check_types(k_pages: layout.Pages, v_pages: layout.Pages, batch: RaggedBatch) -> None:
    for field in dataclasses.fields(batch):
        if getattr(batch, field.name).dtype != np.int32:
            raise ValueError(f"batch.{field.name} is {getattr(batch, field.name).dtype}; it must be int32")
    if k_pages.dtype != v_pages.dtype:
        raise ValueError(f"k_pages is {k_pages.dtype} and v_pages {v_pages.dtype}; they must be the same")
    if type(k_pages) is not type(v_pages) and layout.QuantizedPages in (type(k_pages), type(v_pages)):
        raise ValueError("k_pages and v_pages must both be quantized, or neither")
