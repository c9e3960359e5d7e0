"""Imported by test_dispatch through a backend's path, and by nothing else."""


def run(value: int) -> int:
    return 2 * value
