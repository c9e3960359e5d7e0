"""The sizes that a scheduler works within."""

from __future__ import annotations

from dataclasses import dataclass

from jaxinfer.cache_groups import UNIFORM, CacheGroups


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes the scheduler works within. `longrope_border`: length (tokens) beyond which RoPE's long factors apply.
    `vocab_size`: None where nobody knows. `draws`: the most tokens that a row draws; above 1 a sequence
    waits until it is known how many of them are accepted. `max_pinned_ratio`: the share of the pool's pages that pins
    hold, at most; `max_pinned_ratio_per_tenant`: the share of those that one tenant's do."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()
    longrope_border: int | None = None
    priority_ageing_seconds: float = 30.0
    enable_prefix_caching: bool = True
    vocab_size: int | None = None
    draws: int = 1
    cache_groups: CacheGroups = UNIFORM
    max_pinned_ratio: float = 0.5
    max_pinned_ratio_per_tenant: float = 0.5
