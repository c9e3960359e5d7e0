"""What attention is measured on, and how much work that needs. Standard library only: the torch peers read it too.

Heads 32/8 x 128, queries in bfloat16. A step is rows of (query tokens, tokens of the sequence with them). Needed bytes
are those of the keys and values that some query sees, each once, with their scales; needed operations are two products
(4 * head_dim for a query head and a key that it sees). What a backend does beyond that, writing the new keys and values
into the pages included, is its own affair and part of its time.
"""

from __future__ import annotations

import dataclasses

from device_checks.settings import Settings

BFLOAT16, INT8, FP8 = "bfloat16", "int8", "float8_e4m3fn"
Rows = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Heads:
    query: int = 32
    kv: int = 8
    dim: int = 128


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """One line of the table.

    Attributes:
        name: what the results call it.
        kind: "decode", "prefill" or "mixed".
        rows: the step.
        page_size, kv_dtype: of the pages.
        launches: how many are timed together; slow backends take fewer.
        num_rows, num_tokens, row_tokens: the compiled shape: rows, query tokens, and tokens that a page table can hold.
            Cases that share it share a program.
        pool_tokens: tokens of the page pool. What a step reads is taken from it in turn, so that a step does not find
            its keys in the cache of the step before.
    """

    name: str
    kind: str
    rows: Rows
    page_size: int
    kv_dtype: str
    launches: int
    num_rows: int
    num_tokens: int
    row_tokens: int
    pool_tokens: int
    heads: Heads = Heads()

    @property
    def sets(self) -> int:
        """Distinct steps that fit into the pool."""
        return max(1, min(64, self.pool_tokens // (self.num_rows * self.row_tokens)))

    @property
    def pages_per_row(self) -> int:
        return -(-self.row_tokens // self.page_size)

    @property
    def program(self) -> tuple[object, ...]:
        """Equal for cases that run through the same compiled program."""
        return (self.num_rows, self.num_tokens, self.row_tokens, self.page_size, self.kv_dtype, self.launches)

    @property
    def needed_bytes(self) -> int:
        per_head = self.heads.dim * 2 if self.kv_dtype == BFLOAT16 else self.heads.dim + 4
        return 2 * self.heads.kv * per_head * sum(length for count, length in self.rows if count)

    @property
    def needed_flops(self) -> int:
        visible = sum(count * length - count * (count - 1) // 2 for count, length in self.rows)
        return 4 * self.heads.query * self.heads.dim * visible


def attention_cases(settings: Settings, part: str = "whole") -> list[AttentionCase]:
    """All cases, the ones that have a target first: what time is short for is what comes last. Of a part: "first", one
    that decodes and one of a prompt; or "more", all others."""
    cases = _rehearsed() if settings.rehearse else _real()
    if part == "whole":
        return cases
    first = [next(case for case in cases if case.kind == kind) for kind in ("decode", "prefill")]
    return first if part == "first" else [case for case in cases if case not in first]


def _real() -> list[AttentionCase]:
    long, short, pool = 8192, 1024, 128 * 8192
    cases = []
    for page in (64, 16):
        cases.append(decode(32, long, page, BFLOAT16, 200, long, pool))
    cases.append(decode(32, long, 64, INT8, 200, long, pool // 2))
    cases.append(prefill(((long, long),), 4, long, long, 20, pool))
    cases.append(decode(32, long, 64, FP8, 200, long, pool // 2))
    for page in (64, 16):
        for rows, launches in ((32, 200), (1, 1000), (128, 50)):
            contexts = (short,) if rows == 32 else (long, short)
            cases += [decode(rows, context, page, BFLOAT16, launches, long, pool) for context in contexts]
    cases.append(prefill(((2048, 2048),) * 4, 4, long, long, 20, pool))
    cases.append(prefill(((short, long),), 4, short, long, 100, pool))
    cases.append(_mixed(((1, 4096),) * 31 + ((short, 3072),), 32, 31 + short, long, 100, pool))
    return cases


def _rehearsed() -> list[AttentionCase]:
    small = Heads(4, 2, 64)
    cases = [
        decode(4, 128, 16, BFLOAT16, 2, 128, 2048),
        decode(4, 128, 32, INT8, 2, 128, 1024),
        prefill(((128, 128),), 2, 128, 128, 2, 2048),
        decode(1, 64, 16, BFLOAT16, 2, 64, 2048),
        prefill(((32, 128),), 2, 32, 128, 2, 2048),
        _mixed(((1, 64),) * 3 + ((32, 48),), 4, 35, 128, 2, 2048),
    ]
    return [dataclasses.replace(case, heads=small) for case in cases]


def decode(
    rows: int, context: int, page_size: int, kv_dtype: str, launches: int, row_tokens: int, pool: int
) -> AttentionCase:
    suffix = "" if kv_dtype == BFLOAT16 else f", {kv_dtype.split('_')[0]} KV"
    return AttentionCase(
        name=f"decode {rows} x {context}, page {page_size}{suffix}", kind="decode", rows=((1, context),) * rows,
        page_size=page_size, kv_dtype=kv_dtype, launches=launches, num_rows=rows, num_tokens=rows,
        row_tokens=row_tokens, pool_tokens=pool,
    )  # fmt: skip


def prefill(rows: Rows, num_rows: int, num_tokens: int, row_tokens: int, launches: int, pool: int) -> AttentionCase:
    count, length = rows[0]
    name = f"prefill {len(rows)} x {length}" if count == length else f"chunk of {count} at {length - count}"
    return AttentionCase(
        name=name, kind="prefill", rows=rows, page_size=64 if row_tokens > 1000 else 16, kv_dtype=BFLOAT16,
        launches=launches, num_rows=num_rows, num_tokens=num_tokens, row_tokens=row_tokens, pool_tokens=pool,
    )  # fmt: skip


def _mixed(rows: Rows, num_rows: int, num_tokens: int, row_tokens: int, launches: int, pool: int) -> AttentionCase:
    count, length = rows[-1]
    name = f"{len(rows) - 1} rows at {rows[0][1]} + chunk of {count} at {length - count}"
    case = prefill(rows, num_rows, num_tokens, row_tokens, launches, pool)
    return dataclasses.replace(case, name=name, kind="mixed")
