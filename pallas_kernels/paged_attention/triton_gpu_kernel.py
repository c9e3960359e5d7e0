"""The Triton kernel of `triton_gpu.py`: a program attends with M query vectors to one part of a row's keys.

Legend: T tokens, S rows, MP page-table width, N query heads, K kv heads, G = N // K, H head_dim, P pages, W pieces of
work, M query vectors of a program, L keys of a block, Z parts, X places of the outputs.

A program walks the blocks of L keys that its queries see, finds each key's page in the table, multiplies and folds the
block into the online softmax (Milakov and Gimelshein, 2018), in float32 and to base 2. Blocks that every query sees
whole take a path without masks. In the others, what no query sees is not loaded but replaced by zeros, as it may be
NaN; what some query does not see gets the weight 0.

Products are of bfloat16 on tensor cores with sums in float32; or of float32, without tensor cores and TF32, if queries
or pages are float32: those of queries and keys in chunks of columns, as their factors lie in registers. Quantized pages
are widened exactly, and their scales multiply scores and weights.

Importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pallas_kernels.triton_numbers import e4m3_over_256

LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32
CHUNK = tl.constexpr(32)  # columns of a product of float32
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend(
    total: tl.tensor, row: tl.tensor, base: tl.tensor, length: tl.tensor, token: tl.tensor, place: tl.tensor,
    tables: tl.tensor, q: tl.tensor, k_pages: tl.tensor, k_scales: tl.tensor, v_pages: tl.tensor, v_scales: tl.tensor,
    sinks: tl.tensor, table_width: tl.tensor, places: tl.tensor,
    out: tl.tensor, highest_out: tl.tensor, sums_out: tl.tensor,
    kv_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr, columns: tl.constexpr, page_size: tl.constexpr,
    vectors: tl.constexpr, keys: tl.constexpr, blocks: tl.constexpr, parts: tl.constexpr, last_first: tl.constexpr,
    wide: tl.constexpr, pages: tl.constexpr, scale: tl.constexpr, soft_cap: tl.constexpr, window: tl.constexpr,
    has_sinks: tl.constexpr,
) -> None:  # fmt: skip
    """One program of W * Z * blocks * K.

    Args:
        total: (1,) how many of the W pieces there are.
        row, base, length: (W,) as in `work.Pieces`.
        token, place: (W,) a piece's first token in `q`, and its first place in the outputs.
        tables: (S, MP) int32. q: (T, N, H). sinks: (N,) float32, read if `has_sinks`.
        k_pages, v_pages: (P, K, page_size, H), float8_e4m3fn as uint8. k_scales, v_scales: (P, K, page_size) float32,
            read if quantized.
        table_width, places: MP and X.
        out: (Z, X, N, H). highest_out (units of log2), sums_out: (Z, X, N) float32, written if there are parts.
        columns: H, filled up to a power of two. vectors: M. keys: L. blocks: programs that share a piece's vectors.
        last_first: whether the last piece begins first. wide: whether products are of float32. pages: "plain", "int8"
            or "fp8". soft_cap, window: 0 is none.
    """
    program = tl.program_id(0)
    head = program % kv_heads
    block = program // kv_heads % blocks
    part = program // (kv_heads * blocks) % parts
    piece = program // (kv_heads * blocks * parts)
    count = tl.load(total)
    if piece >= count:
        return
    if last_first:
        piece = count - 1 - piece
    num_tokens = tl.load(length + piece)
    if block * vectors >= num_tokens * group:
        return
    first_position = tl.load(base + piece)
    table = tables + tl.load(row + piece) * table_width

    vector = block * vectors + tl.arange(0, vectors)
    in_piece = vector // group
    query_head = head * group + vector % group
    real = vector < num_tokens * group
    column = tl.arange(0, columns)
    inside = column < head_dim
    source = q + ((tl.load(token + piece) + in_piece).to(tl.int64) * (kv_heads * group) + query_head) * head_dim

    highest = tl.full([vectors], LOWEST, tl.float32)
    sums = tl.zeros([vectors], tl.float32)
    if has_sinks:  # one more key, of the first part
        sink = tl.where(part == 0, tl.load(sinks + query_head, mask=real, other=0.0), float("-inf"))
        highest = tl.maximum(highest, sink * LOG2E)
        sums = tl.where(sink > float("-inf"), 1.0, 0.0)
    acc = tl.zeros([vectors, columns], tl.float32)
    position = first_position + in_piece
    acc, highest, sums = _walk(
        source, real, acc, highest, sums, position, first_position, num_tokens, part, head, table, inside, column,
        k_pages, k_scales, v_pages, v_scales, kv_heads, head_dim, page_size, keys, parts, wide, pages, scale, soft_cap,
        window,
    )  # fmt: skip

    target = ((part * places).to(tl.int64) + tl.load(place + piece) + in_piece) * (kv_heads * group) + query_head
    acc = acc / tl.where(sums > 0, sums, 1.0)[:, None]
    tl.store(
        out + target[:, None] * head_dim + column[None, :],
        acc.to(out.dtype.element_ty),
        mask=real[:, None] & inside[None, :],
    )
    if parts > 1:
        tl.store(highest_out + target, highest, mask=real)
        tl.store(sums_out + target, sums, mask=real)


@triton.jit
def _walk(
    source: tl.tensor, real: tl.tensor, acc: tl.tensor, highest: tl.tensor, sums: tl.tensor, position: tl.tensor,
    first_position: tl.tensor, num_tokens: tl.tensor, part: tl.tensor, head: tl.tensor, table: tl.tensor,
    inside: tl.tensor, column: tl.tensor, k_pages: tl.tensor, k_scales: tl.tensor, v_pages: tl.tensor,
    v_scales: tl.tensor, kv_heads: tl.constexpr, head_dim: tl.constexpr, page_size: tl.constexpr, keys: tl.constexpr,
    parts: tl.constexpr, wide: tl.constexpr, pages: tl.constexpr, scale: tl.constexpr, soft_cap: tl.constexpr,
    window: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Folds the part's keys into the softmax: blocks at the window's border, whole blocks, blocks at the last token."""
    first, last, begin, whole_begin, whole_end, end = _bounds(first_position, num_tokens, part, keys, parts, window)
    if not wide:
        queries = tl.load(source[:, None] + column[None, :], mask=real[:, None] & inside[None, :], other=0.0)
    for stretch in tl.static_range(0 if window > 0 else 1, 3):
        from_block = begin if stretch == 0 else (whole_begin if stretch == 1 else whole_end)
        to_block = whole_begin if stretch == 0 else (whole_end if stretch == 1 else end)
        key = from_block * keys + tl.arange(0, keys)
        page = tl.load(table + key // page_size, mask=key <= last, other=0)
        for number in range(from_block, to_block):
            key = number * keys + tl.arange(0, keys)
            slot = (page.to(tl.int64) * kv_heads + head) * page_size + key % page_size
            # Those of the next block, so that its keys can be copied while this one's are multiplied.
            page = tl.load(table + (key + keys) // page_size, mask=key + keys <= last, other=0)
            if stretch != 1:
                known = (key >= first) & (key <= last)
                mask = known[:, None] & inside[None, :]
            else:
                mask = inside[None, :]
            place = slot[:, None] * head_dim + column[None, :]
            if wide:
                scores = tl.zeros([acc.shape[0], keys], tl.float32)
                for begin_column in tl.static_range(0, column.shape[0], CHUNK):
                    some = begin_column + tl.arange(0, CHUNK)
                    in_head = (some < head_dim)[None, :]
                    a = tl.load(source[:, None] + some[None, :], mask=real[:, None] & in_head, other=0.0)
                    b_mask = known[:, None] & in_head if stretch != 1 else in_head
                    b = tl.load(k_pages + slot[:, None] * head_dim + some[None, :], mask=b_mask, other=0)
                    b = _widened(b, wide, pages)
                    scores = tl.dot(a.to(tl.float32), tl.trans(b), scores, input_precision="ieee")
            else:
                k = _widened(tl.load(k_pages + place, mask=mask, other=0), wide, pages)
                scores = tl.dot(queries, tl.trans(k))
            if pages != "plain":
                k_scale = tl.load(k_scales + slot, mask=known, other=0.0) if stretch != 1 else tl.load(k_scales + slot)
                scores *= k_scale[None, :]
            scores = _to_log2(scores, scale * (256 if pages == "fp8" else 1), soft_cap)
            if stretch != 1:
                seen = key[None, :] <= position[:, None]
                if window > 0:
                    seen = seen & (key[None, :] > position[:, None] - window)
                scores = tl.where(seen, scores, float("-inf"))
            # `highest` starts finite, so that what a query does not see weighs 0 and never NaN.
            top = tl.maximum(highest, tl.max(scores, axis=1))
            keep = tl.exp2(highest - top)
            weights = tl.exp2(scores - top[:, None])
            sums, highest = sums * keep + tl.sum(weights, axis=1), top
            v = _widened(tl.load(v_pages + place, mask=mask, other=0), wide, pages)
            if pages != "plain":
                v_scale = tl.load(v_scales + slot, mask=known, other=0.0) if stretch != 1 else tl.load(v_scales + slot)
                weights *= v_scale[None, :] * (256.0 if pages == "fp8" else 1.0)
            acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
    return acc, highest, sums


@triton.jit
def _bounds(
    first_position: tl.tensor, num_tokens: tl.tensor, part: tl.tensor, keys: tl.constexpr, parts: tl.constexpr,
    window: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The first and the last key that some query sees, and the part's blocks: where they begin, where those that every
    query sees whole begin and end, and where they end."""
    last = first_position + num_tokens - 1
    first = 0
    whole = 0
    if window > 0:
        first = tl.maximum(first_position - (window - 1), 0)
        whole = (tl.maximum(last - window + 1, 0) + (keys - 1)) // keys
    end = last // keys + 1
    each = (end - first // keys + (parts - 1)) // parts
    begin = tl.minimum(first // keys + part * each, end)
    end = tl.minimum(begin + each, end)
    whole_begin = tl.minimum(tl.maximum(whole, begin), end)
    whole_end = tl.minimum(tl.maximum((first_position + 1) // keys, whole_begin), end)
    return first, last, begin, whole_begin, whole_end, end


@triton.jit
def _widened(stored: tl.tensor, wide: tl.constexpr, pages: tl.constexpr) -> tl.tensor:
    """Stored keys or values in the type of the products; float8_e4m3fn, as uint8, divided by 256."""
    if pages == "fp8":
        stored = e4m3_over_256(stored)
    return stored.to(tl.float32 if wide else tl.bfloat16)


@triton.jit
def _to_log2(scores: tl.tensor, scale: tl.constexpr, soft_cap: tl.constexpr) -> tl.tensor:
    """Products of queries and keys as scores in units of log2."""
    if soft_cap > 0:
        # tanh(x) = 1 - 2 / (1 + e^2x)
        power = tl.exp2(scores * (2 * LOG2E * scale / soft_cap))
        scores = (soft_cap * LOG2E) * (1.0 - tl.div_rn(2.0, 1.0 + power))
    else:
        scores = scores * (scale * LOG2E)
    return scores
