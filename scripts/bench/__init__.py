"""Comparisons with other programs on the same machine."""
