"""How layers share the KV pool: groups, page tables, and how many layers a page holds."""

from __future__ import annotations

import pytest

from jaxinfer.cache_groups import MOST_TABLES, CacheGroups, CacheSpec

FULL, WINDOWED = CacheSpec(8, 64), CacheSpec(8, 64, window=512)


@pytest.mark.parametrize(
    ("full", "windowed", "depth", "tables"),
    [
        (32, 0, 32, 1),  # as if there were no groups
        (0, 32, 32, 1),  # Mistral
        (13, 13, 13, 2),  # Gemma 2 2B
        (10, 52, 10, 7),  # Gemma 3 27B
        (4, 22, 4, 7),  # Gemma 3 1B
        (21, 7, 7, 4),  # Qwen2 with max_window_layers
        (27, 1, 9, 4),  # pages of one layer would waste nothing and take 28 tables
    ],
)
def test_depth(full: int, windowed: int, depth: int, tables: int) -> None:
    groups = CacheGroups.of([FULL] * full + [WINDOWED] * windowed)
    assert (groups.depth, groups.num_tables) == (depth, tables)
    assert groups.num_tables <= MOST_TABLES


def test_no_two_layers_share_memory() -> None:
    specs = [FULL if layer % 6 == 5 else WINDOWED for layer in range(26)]
    groups = CacheGroups.of(specs)
    places = groups.places()
    assert len(set(places.values())) == len(places) == 26
    assert all(array < groups.depth for _, array in places.values())
    for group in groups.groups:
        assert {specs[layer] for layer in group.layers} == {group.spec}
        assert {places[layer][0] for layer in group.layers} == set(group.tables)


def test_layers_that_keep_nothing_have_no_place() -> None:
    groups = CacheGroups.of([FULL, None, WINDOWED, None, FULL])
    assert (groups.depth, groups.num_tables) == (1, 3)
    assert groups.places() == {0: (0, 0), 4: (1, 0), 2: (2, 0)}


def test_what_a_window_still_sees() -> None:
    assert [WINDOWED.first_kept(p) for p in (0, 511, 512, 8191)] == [0, 0, 1, 7680]
    assert FULL.first_kept(8191) == 0
