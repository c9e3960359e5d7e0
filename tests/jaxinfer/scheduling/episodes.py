"""Random lives of a scheduler from a seed alone: the same rules as the state machine, without hypothesis."""

from __future__ import annotations

import random
from typing import Any

from jaxinfer.cache_groups import CacheGroups, CacheSpec
from jaxinfer.errors import InvalidRequest
from jaxinfer.scheduling.scheduler import SchedulerLimits
from tests.jaxinfer.scheduling.simulator import VOCAB, World

# (sliding windows of the layers, None: all before; how many layers of each): one to several page tables a group.
LAYERS: dict[str, list[int | None]] = {
    "uniform": [None],
    "one window": [6],
    "half windows": [None, 5],
    "five of six": [3] * 5 + [None],
    "two windows": [2, 9, None, 9],
    "no other": [4, 4, 11],
    "one of one token": [1, None, 4, 1],
}
# Whose plans are those of a scheduler without memory. Of a window of one token a prefix hit needs contents and no page:
# which contents are known then depends on who has looked them up.
WINDOWED = [name for name, windows in LAYERS.items() if name != "uniform" and 1 not in windows]


def groups_of(layers: str) -> CacheGroups:
    return CacheGroups.of([CacheSpec(1, 1, window) for window in LAYERS[layers]])


STREAMS = [tuple((i * k + k) % VOCAB for i in range(40)) for k in (1, 2, 5)]


def run_episode(
    seed: int,
    *,
    actions: int = 40,
    tenants: tuple[str, ...] = ("",),
    kind: type[World] = World,
    fail_every: int = 0,
    draws: int = 1,
    layers: str = "uniform",
    guided: float = 0.0,
    pinning: float = 0.0,
) -> World:
    """Plays one random episode to its end; raises AssertionError when a book or a token is wrong. tenants: whose
    requests come; one is drawn for each. fail_every: see SimulatedDevice. draws: as in SchedulerLimits. layers: one of
    LAYERS. guided: the share of requests that follow a grammar. pinning: the share that pins something."""
    rng = random.Random(seed)
    limits = SchedulerLimits(
        max_num_seqs=rng.randint(1, 4),
        max_num_batched_tokens=rng.randint(4, 16),
        max_model_len=32,
        eos_token_ids=(7,),
        longrope_border=rng.choice([None, None, 9]),
        priority_ageing_seconds=3.0,
        enable_prefix_caching=rng.random() < 0.8,
        draws=draws,
        cache_groups=groups_of(layers),
        max_pinned_ratio=rng.choice([0.4, 0.7, 1.0]) if pinning else 0.5,
    )
    world = kind(
        limits, page_size=rng.choice([1, 2, 4]), num_pages=1 + rng.randint(3, 19) * limits.cache_groups.num_tables
    )
    world.device.fail_every = fail_every
    for _ in range(actions):
        _act(world, rng, tenants, guided, pinning)
    world.finish()
    return world


def check_same_plans(seed: int, kind: type[World], **options: Any) -> World:
    """Raises AssertionError unless an episode has the same plans in a world of the other kind."""
    world, other = run_episode(seed, **options), run_episode(seed, kind=kind, **options)
    for i, (ours, theirs) in enumerate(zip(world.plans, other.plans, strict=True)):
        assert ours == theirs, f"step {i}: {ours} and {theirs}"
    return world


def _act(world: World, rng: random.Random, tenants: tuple[str, ...], guided: float, pinning: float) -> None:
    roll = rng.random()
    if roll < 0.35:
        max_tokens = rng.randint(1, 12)
        pins: dict[str, Any] = {}
        if pinning and rng.random() < pinning:
            pins["pins"] = tuple((rng.randint(1, 20), rng.choice([3.0, 30.0])) for _ in range(rng.randint(0, 2)))
            pins["pin_answer"] = rng.choice([0.0, 5.0])
        try:
            world.submit(
                rng.choice(STREAMS)[: rng.randint(1, 20)],
                max_tokens=max_tokens,
                min_tokens=rng.randint(0, min(3, max_tokens)),
                n=rng.choice([1, 1, 1, 2, 3]),
                priority=rng.randint(-1, 1),
                salt=rng.choice(["", "", "tenant"]),
                seed=rng.randint(0, 3),
                ignore_eos=rng.random() < 0.5,
                tenant=tenants[0] if len(tenants) == 1 else rng.choice(tenants),
                guided=bool(guided) and rng.random() < guided,
                logprobs=0 if guided and rng.random() < 0.2 else None,
                **pins,
            )
        except InvalidRequest as error:
            assert error.field in ("max_tokens", "prompt")
    elif roll < 0.42 and world.submitted:
        world.abort(f"r{rng.randrange(len(world.submitted))}", rng.choice([None, None, 0, 1]))
    else:
        for _ in range(rng.randint(1, 5)):
            world.step()
