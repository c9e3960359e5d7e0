"""Paged attention for NVIDIA GPUs from Ampere on: the launches of the Triton kernel in `triton_gpu_kernel.py`.

Legend: T tokens, S rows, MP page-table width, N query heads, K kv heads, G = N // K, H head_dim, W pieces of work,
M query vectors of a program, Z parts into which the keys of a piece are cut, X places of a launch's outputs.

Two launches share one kernel. Rows that decode bring one token each, or up to 8 where some are speculated: G query
vectors per kv head and token, M of which a program takes, so that a row of one token has one program and a row of more
has as few as hold its vectors. The tokens of the other rows are cut into tiles from the row's first token on, as many
as fit beside their heads into a larger M; a step of 8 tokens has no such row, and no such launch. A kv head with more
than M query heads gets several programs, so G may be any number. Programs read the queries where they are and write
disjoint places, so nothing is gathered in front of a launch.

A launch of few pieces would leave processors idle: then the keys of every piece are cut into Z parts, each gives its
own softmax with its maximum and sum, and XLA puts them together.

New keys and values are scattered into the pages by XLA before the launches, so no program reads what another one of the
same launch writes.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import layout, work
from pallas_kernels.paged_attention.api import RaggedBatch
from pallas_kernels.paged_attention.options import AttentionOptions
from pallas_kernels.paged_attention.triton_gpu_plan import TritonPlan, is_wide, sizes
from pallas_kernels.triton_support import Launch, Run, capability_number, run

# Programs that a launch should have: two for each of the 108 multiprocessors of an A100, and enough for smaller cards.
_PROGRAMS_WANTED = 216
_PART_KEYS = 256  # no more parts than what gives each about so many keys where the table is full


@functools.partial(jax.jit, static_argnames=("options", "target", "run"))
def paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    batch: RaggedBatch,
    sinks: jax.Array | None,
    *,
    options: AttentionOptions,
    target: DeviceTarget,
    run: Run = run,
) -> tuple[jax.Array, layout.Pages, layout.Pages]:
    """See `api.paged_attention`. `run` launches the kernel: tests give one that runs it in Triton's interpreter.

    Jitted so that a model's equal layers are traced and lowered once.
    """
    k_pages = layout.write(k_pages, k, batch.slot_mapping, target)
    v_pages = layout.write(v_pages, v, batch.slot_mapping, target)
    num_tokens, num_heads, head_dim = q.shape
    num_rows = batch.seq_lens.shape[0]
    _, num_kv_heads, page_size, _ = k_pages.shape
    kv_dtype = np.dtype(k_pages.dtype)
    wide = is_wide(q.dtype, kv_dtype)
    capability = divmod(capability_number(target), 10)
    short = min(work.SHORT_TOKENS, num_tokens)
    decoding = TritonPlan(
        tile=short,
        decoding=True,
        num_kv_heads=num_kv_heads,
        group=num_heads // num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        parts=1,
        sizes=sizes(capability, head_dim, kv_dtype, wide, decoding=True),
        wide=wide,
        kv_dtype=kv_dtype,
        options=options,
        sinks=sinks is not None,
        compute_capability=capability_number(target),
    )
    inputs = (q, sinks, batch.page_tables, k_pages, v_pages, run)
    tokens = work.tokens_of(batch, num_tokens)
    rows = work.short_rows(batch, short)
    places = min(num_tokens, num_rows * short)
    out = _attend(decoding, rows.pieces, rows.token, rows.first[rows.pieces.row], places, *inputs)
    out = of_tiles = out[jnp.minimum(rows.first[tokens.row] + tokens.in_row, places - 1)]
    if num_tokens > short:
        larger = sizes(capability, head_dim, kv_dtype, wide, decoding=False)
        tile = min(max(1, larger.vectors // decoding.group), num_tokens)
        tiles = work.row_tiles(batch, num_tokens, tile, short)
        tiled = dataclasses.replace(decoding, tile=tile, decoding=False, sizes=larger)
        of_tiles = _attend(tiled, tiles.pieces, tiles.token, tiles.token, num_tokens, *inputs)
    return work.chosen(batch, tokens, out, of_tiles, short).astype(q.dtype), k_pages, v_pages


def _attend(
    plan: TritonPlan,
    pieces: work.Pieces,
    token: jax.Array,
    place: jax.Array,
    places: int,
    q: jax.Array,
    sinks: jax.Array | None,
    tables: jax.Array,
    k_pages: layout.Pages,
    v_pages: layout.Pages,
    run: Run,
) -> jax.Array:
    """Attention of the pieces whose first tokens are `token` (W,).

    Args:
        plan: all but the parts.
        place: (W,) where in the output a piece's first token goes.
        places: X.
        q: (T, N, H).
        sinks: (N,), or None.
        tables: (S, MP).

    Returns:
        (X, N, H) in the type of `q`, or in float32. Unspecified where no piece writes.
    """
    _, num_heads, head_dim = q.shape
    num_pieces = token.shape[0]
    most_keys = tables.shape[1] * plan.page_size
    if plan.options.sliding_window is not None:
        most_keys = min(most_keys, plan.options.sliding_window + plan.tile)
    parts = work.key_parts(_PROGRAMS_WANTED, num_pieces * plan.working, most_keys, _PART_KEYS)
    plan = dataclasses.replace(plan, parts=parts)
    nothing = jnp.zeros((1,), jnp.float32)  # in place of what the kernel does not read
    arguments = (
        pieces.total.reshape(1),
        pieces.row,
        pieces.base,
        pieces.length,
        token,
        place,
        tables,
        q,
        *_arrays(k_pages, nothing),
        *_arrays(v_pages, nothing),
        nothing if sinks is None else sinks.astype(jnp.float32),
        tables.shape[1],
        places,
    )
    shape = (parts, places, num_heads)
    results = jax.ShapeDtypeStruct(shape if parts > 1 else (1,), jnp.float32)
    attended = jax.ShapeDtypeStruct((*shape, head_dim), jnp.float32 if parts > 1 else q.dtype)
    launch = Launch(
        kernel="pallas_kernels.paged_attention.triton_gpu_kernel:attend",
        name="paged_attention_decode" if plan.decoding else "paged_attention_tiles",
        programs=num_pieces * plan.parts * plan.programs,
        constants=plan.constants(),
        num_warps=plan.sizes.num_warps,
        num_stages=plan.sizes.num_stages,
        compute_capability=plan.compute_capability,
    )
    out = run(launch, arguments, (attended, results, results))
    return work.together(tuple(out), None) if parts > 1 else out[0][0]


def _arrays(pages: layout.Pages, nothing: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pages, float8 as bytes (which costs nothing: XLA takes the array as it is), and their scales."""
    if not isinstance(pages, layout.QuantizedPages):
        return pages, nothing
    values = pages.values
    return lax.bitcast_convert_type(values, jnp.uint8) if values.dtype != jnp.int8 else values, pages.scales
