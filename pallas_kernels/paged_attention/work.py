"""How a step's query tokens are cut into work for a kernel: rows that decode, and tiles of tokens of the other rows.

On a GPU a row decodes if it has up to `SHORT_TOKENS` query tokens: speculation gives it a few, and a tile for a prompt
would be empty but for those.

Legend: T tokens, S rows, W pieces of work, H head_dim, Z parts into which the keys of a piece are cut. All lists are
made on the device, as a step's rows are not known before.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.api import RaggedBatch

SHORT_TOKENS = 8


class Singles(NamedTuple):
    """Rows with one query token, longest first, so that those that run side by side end together.

    Attributes:
        total: () how many there are.
        row: (S,) the rows, then the others in any order.
        rank: (S,) each row's place in that list.
    """

    total: jax.Array
    row: jax.Array
    rank: jax.Array


class Tiles(NamedTuple):
    """Pieces of rows with two query tokens or more; a piece is what a row has in one aligned tile of the token axis.

    Attributes:
        total: () how many there are; entries behind them repeat the last one.
        row: (W,) whose tokens.
        tile: (W,) which tile of the token axis; not falling, so that a tile's pieces follow each other.
        begin, end: (W,) the tokens inside the tile, begin <= t < end.
        base: (W,) position in the sequence of the tile's first token, as if it were the row's; may be negative.
    """

    total: jax.Array
    row: jax.Array
    tile: jax.Array
    begin: jax.Array
    end: jax.Array
    base: jax.Array


class Pieces(NamedTuple):
    """A list of work for a kernel, int32.

    Attributes:
        total: () how many there are; entries behind them mean nothing.
        row: (W,) whose tokens.
        base: (W,) position in the sequence of the piece's first token.
        length: (W,) its tokens, at least 1.
    """

    total: jax.Array
    row: jax.Array
    base: jax.Array
    length: jax.Array


class ShortRows(NamedTuple):
    """Rows with few query tokens, a piece each; those with the longest sequences first, so that those that run side by
    side end together.

    Attributes:
        pieces: the rows, S of them with the others behind.
        token: (S,) each piece's first token.
        rank: (S,) each row's place in that list.
        first: (S,) how many tokens the short rows before each row have.
    """

    pieces: Pieces
    token: jax.Array
    rank: jax.Array
    first: jax.Array


class RowTiles(NamedTuple):
    """The other rows, cut into tiles from the row's first token on.

    Attributes:
        pieces: the W tiles.
        token: (W,) each tile's first token.
        first: (S,) each row's first tile.
    """

    pieces: Pieces
    token: jax.Array
    first: jax.Array


def single_rows(batch: RaggedBatch) -> Singles:
    """The rows of the step that have one query token."""
    is_single = jnp.diff(batch.query_start_loc) == 1
    order = jnp.argsort(jnp.where(is_single, -batch.seq_lens, 1)).astype(jnp.int32)
    return Singles(jnp.sum(is_single, dtype=jnp.int32), order, jnp.argsort(order).astype(jnp.int32))


def short_rows(batch: RaggedBatch, most: int) -> ShortRows:
    """The rows of the step that have query tokens, but no more than `most`."""
    lengths = jnp.diff(batch.query_start_loc)
    is_short = (lengths > 0) & (lengths <= most)
    row = jnp.argsort(jnp.where(is_short, -batch.seq_lens, 1)).astype(jnp.int32)
    pieces = Pieces(
        total=jnp.sum(is_short, dtype=jnp.int32),
        row=row,
        base=(batch.seq_lens - lengths)[row],
        length=lengths[row],
    )
    counted = jnp.where(is_short, lengths, 0)
    first = (jnp.cumsum(counted) - counted).astype(jnp.int32)
    return ShortRows(pieces, batch.query_start_loc[row], jnp.argsort(row).astype(jnp.int32), first)


def row_tiles(batch: RaggedBatch, num_tokens: int, tile: int, most: int) -> RowTiles:
    """The rows with more than `most` query tokens in tiles of `tile` tokens.

    At most T / tile of them are full, and each row has one that is not.
    """
    starts = batch.query_start_loc[:-1]
    lengths = jnp.diff(batch.query_start_loc)
    counts = jnp.where(lengths > most, -(-lengths // tile), 0)
    ends = jnp.cumsum(counts)
    some = num_tokens // tile + min(lengths.shape[0], num_tokens // (most + 1))
    index = jnp.arange(max(1, some), dtype=jnp.int32)
    row = row_of(ends, index)
    offset = (index - (ends - counts)[row]) * tile
    pieces = Pieces(
        total=ends[-1].astype(jnp.int32),
        row=row,
        base=batch.seq_lens[row] - lengths[row] + offset,
        length=jnp.minimum(lengths[row] - offset, tile),
    )
    return RowTiles(pieces, starts[row] + offset, (ends - counts).astype(jnp.int32))


def aligned_tiles(batch: RaggedBatch, num_tokens: int, tile: int) -> Tiles:
    """The pieces of the other rows.

    There are at most T / tile tiles, and each row adds one piece more than the tile borders inside it.
    """
    starts, ends = batch.query_start_loc[:-1], batch.query_start_loc[1:]
    lengths = ends - starts
    first, last = starts // tile, (ends - 1) // tile
    pieces = jnp.where(lengths > 1, last - first + 1, 0)
    cumulative = jnp.cumsum(pieces)
    count = cumulative[-1].astype(jnp.int32)
    most = -(-num_tokens // tile) + min(lengths.shape[0], num_tokens // 2)
    index = jnp.minimum(jnp.arange(max(most, 1), dtype=jnp.int32), jnp.maximum(count - 1, 0))
    row = row_of(cumulative, index)
    place = first[row] + index - (cumulative - pieces)[row]
    token = place * tile
    return Tiles(
        total=count,
        row=row,
        tile=jnp.where(count > 0, place, 0),
        begin=jnp.maximum(starts[row] - token, 0),
        end=jnp.minimum(ends[row] - token, tile),
        base=batch.seq_lens[row] - lengths[row] + token - starts[row],
    )


def in_token_order(batch: RaggedBatch, from_singles: jax.Array, rank: jax.Array, from_tiles: jax.Array) -> jax.Array:
    """Outputs of all tokens (T, ...): of rows with one token from (S, ...) by rank, else from (T, ...); padding is 0.

    Places that no piece of work wrote hold anything: they are left out, not multiplied.
    """
    place = jnp.arange(from_tiles.shape[0], dtype=jnp.int32)
    row = row_of(batch.query_start_loc[1:], place)

    def column(chosen: jax.Array) -> jax.Array:
        return chosen.reshape(-1, *(1,) * (from_tiles.ndim - 1))

    is_single = (jnp.diff(batch.query_start_loc) == 1)[row]
    out = jnp.where(column(is_single), from_singles[rank[row]], from_tiles)
    return jnp.where(column(place < batch.query_start_loc[-1]), out, 0.0)


class Tokens(NamedTuple):
    """Where each of the T tokens of a step is; padding is anywhere.

    Attributes:
        row: (T,) whose it is.
        in_row: (T,) which one of the row's query tokens.
    """

    row: jax.Array
    in_row: jax.Array


def tokens_of(batch: RaggedBatch, num_tokens: int) -> Tokens:
    """The step's tokens, in their order."""
    place = jnp.arange(num_tokens, dtype=jnp.int32)
    row = row_of(batch.query_start_loc[1:], place)
    return Tokens(row, place - batch.query_start_loc[row])


def chosen(batch: RaggedBatch, tokens: Tokens, of_short: jax.Array, of_tiles: jax.Array, most: int) -> jax.Array:
    """Outputs of all tokens (T, ...), of rows with up to `most` tokens from the first, else from the second; padding is
    0. What is not taken may hold anything: it is left out, not multiplied."""

    def column(of_token: jax.Array) -> jax.Array:
        return of_token.reshape(-1, *(1,) * (of_short.ndim - 1))

    is_short = (jnp.diff(batch.query_start_loc) <= most)[tokens.row]
    out = jnp.where(column(is_short), of_short, of_tiles)
    real = jnp.arange(tokens.row.shape[0], dtype=jnp.int32) < batch.query_start_loc[-1]
    return jnp.where(column(real), out, 0.0)


def key_parts(wanted: int, programs: int, most_keys: int, keys: int) -> int:
    """Z: into how many parts the keys of a piece are cut, so that `wanted` processors have work.

    Args:
        wanted: programs that a launch should have.
        programs: those that it has with one part.
        most_keys: what a piece may see.
        keys: a part has about so many where a piece sees them all; less would not be worth its putting together.
    """
    return max(1, min(wanted // programs, -(-most_keys // keys)))


def together(parts: tuple[jax.Array, ...], sinks: jax.Array | None) -> jax.Array:
    """One softmax from those of the parts, and from attention sinks.

    Args:
        parts: each part's own attention (Z, ..., H), its highest score (Z, ...), in units of log2, and its sum of
            weights (Z, ...), all float32.
        sinks: scores in units of log2 that the (...) broadcast against, or None.

    Returns:
        (..., H) float32.
    """
    out, highest, total = parts
    top = jnp.max(highest, axis=0)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    weights = total * jnp.exp2(highest - top)
    below = jnp.sum(weights, axis=0)
    if sinks is not None:
        below += jnp.exp2(sinks - top)
    return jnp.sum(out * weights[..., None], axis=0) / jnp.where(below > 0, below, 1.0)[..., None]


def row_of(ends: jax.Array, index: jax.Array) -> jax.Array:
    """Which row each index falls into when row r covers ends[r-1] .. ends[r]-1; the last row for what lies beyond."""
    row = jnp.searchsorted(ends, index, side="right", method="compare_all")
    return jnp.minimum(row, ends.shape[0] - 1).astype(jnp.int32)
