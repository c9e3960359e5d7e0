"""Attention that comes with torch, on dense keys and values: `scaled_dot_product_attention`, compiled flex attention.

Neither reads pages nor writes a cache. Timed by replays of a CUDA graph (`torch_timing`), over several arrays in turn.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everyone uses)

from device_checks.attention_cases import BFLOAT16, AttentionCase, attention_cases
from device_checks.child import Case
from device_checks.settings import Settings
from device_checks.torch_timing import device, time_launches

_DENSE_BYTES = 400_000_000
_MOST_DENSE = 8
_LAUNCHES = 50  # in a graph
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def cases(settings: Settings, peer: str, part: str = "whole") -> Iterator[Case]:
    make = {"torch_sdpa": sdpa, "torch_flex": flex}[peer]
    seen = set()
    for case in attention_cases(settings, part):
        if case.kv_dtype != BFLOAT16 or case.kind == "mixed" or case.rows in seen:
            continue  # there are no pages here: one page size stands for all
        seen.add(case.rows)
        if peer == "torch_flex" and len(seen) > 2:
            continue  # it compiles for a long time: the two cases that have a target
        yield Case(case.name, functools.partial(_measure, case, make))


def _measure(case: AttentionCase, make: Callable[[AttentionCase], Attend]) -> dict[str, Any]:
    torch.manual_seed(0)
    (count, length), batch, heads = case.rows[0], len(case.rows), case.heads
    sets = max(2, min(_MOST_DENSE, -(-_DENSE_BYTES // case.needed_bytes)))
    place: Any = {"device": device(), "dtype": torch.bfloat16}
    q = torch.randn(batch, heads.query, count, heads.dim, **place)
    keys, values = ([torch.randn(batch, heads.kv, length, heads.dim, **place) for _ in range(sets)] for _ in range(2))
    attend = make(case)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timing, how = time_launches(
            lambda i: attend(q, keys[i % sets], values[i % sets]), min(case.launches, _LAUNCHES)
        )
        if not bool(attend(q, keys[0], values[0]).isfinite().all()):
            raise ValueError("the outputs are not finite")
    return {
        "kind": case.kind, "needed_bytes": case.needed_bytes, "needed_flops": case.needed_flops, "how": how,
        **timing.fields(),
    }  # fmt: skip


def sdpa(case: AttentionCase) -> Attend:
    count, length = case.rows[0]
    options: dict[str, Any] = {"enable_gqa": True, "is_causal": count == length}
    if 1 < count < length:
        from torch.nn.attention.bias import causal_lower_right

        options = {"enable_gqa": True, "attn_mask": causal_lower_right(count, length)}
    return functools.partial(F.scaled_dot_product_attention, **options)


def flex(case: AttentionCase) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    count, length = case.rows[0]
    mask = None
    if count > 1:
        offset = length - count
        mask = create_block_mask(
            lambda batch, head, query, key: query + offset >= key, None, None, count, length, device=device()
        )
    compiled = torch.compile(flex_attention, dynamic=False)
    return functools.partial(compiled, block_mask=mask, enable_gqa=True)
