"""Sizes that are whole multiples of others."""

from __future__ import annotations


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple`, which is above 0, that is not below `size`."""
    return -(-size // multiple) * multiple
