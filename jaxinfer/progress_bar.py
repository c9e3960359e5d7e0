"""The progress bar of offline generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class progress_bar:  # noqa: N801 (reads as the function it is used as)
    """A rich progress bar, or nothing; enters to a function that advances it by one."""

    def __init__(self, total: int, show: bool) -> None:
        self._total, self._show = total, show
        self._bar: Any = None

    def __enter__(self) -> Callable[[], None]:
        if not self._show:
            return lambda: None
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"), TimeRemainingColumn()
        )
        self._bar.start()
        task = self._bar.add_task("generating", total=self._total)
        return lambda: self._bar.advance(task)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
