"""What `jaxinfer eval` asks, and which of its options can go together: all that is known before a model is there."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from jaxinfer.evaluation.item import Kind, held_out_items
from jaxinfer.evaluation.items import Task, read_items
from serving.commands.access_options import check_client_options
from serving.commands.early import check_output
from serving.commands.evaluation_plot import require_matplotlib
from serving.commands.options import runtime_given
from serving.commands.parsing import CommandError, meant

Kinds = Callable[[], Mapping[str, Kind]]
Stories = Callable[[int, int], list[str]]


def check_options(arguments: argparse.Namespace) -> None:
    """Raises CommandError for option values that cannot be, or not together."""
    for name, least in (("limit", 1), ("texts", 0), ("positions", 1), ("concurrency", 1)):
        value = getattr(arguments, name)
        if value < least:
            raise CommandError(f"--{name} is {value}; it must be {least} or more")
    others = [name for name in ("model", "server", "plot", "answers") if getattr(arguments, name) is not None]
    if arguments.compare and others:
        shown = others[0].upper() if others[0] == "model" else f"--{others[0]}"
        raise CommandError(f"{shown} cannot go with --compare, which names its two models itself")
    check_client_options(arguments)
    if arguments.server is not None:
        if arguments.model is not None:
            raise CommandError("MODEL cannot go with --server, which has its own")
        given = sorted(runtime_given(arguments))
        if given:
            raise CommandError(f"--{given[0].replace('_', '-')} is an option of the server; it cannot go with --server")
    paths = {f"--{name}": getattr(arguments, name) for name in ("json", "plot", "answers")}
    for option, path in paths.items():
        check_output(option, path)
        for other, taken in paths.items():
            if other < option and path is not None and taken is not None and path.resolve() == taken.resolve():
                raise CommandError(f"{other} and {option} are both {str(path)!r}; each needs a file of its own")
    if arguments.plot is not None:
        require_matplotlib()


class Questions:
    """Kinds drawn with the seed, the user's own items, and stories. Names and files are checked when it is made:
    CommandError or ItemsError; `draw` takes seconds."""

    def __init__(self, arguments: argparse.Namespace, kinds: Kinds, stories: Stories) -> None:
        self._limit, self._seed, self._texts, self._stories = (
            arguments.limit,
            arguments.seed,
            arguments.texts,
            stories,
        )
        self._own = read_items(arguments.items) if arguments.items is not None else {}
        self._kinds = {} if arguments.tasks is None and self._own else kinds()
        if arguments.tasks is None:
            return
        names = [name.strip() for name in arguments.tasks.split(",")]
        for name in names:
            if name not in self._kinds:
                hint = meant(name, self._kinds)
                raise CommandError(f"--tasks names {name!r}; tasks are {', '.join(self._kinds)}{hint}")
            if name in self._own:
                raise CommandError(
                    f"--items has items of kind {name!r}, which --tasks names too; give them another kind"
                )
        self._kinds = {name: self._kinds[name] for name in names}

    def texts(self) -> list[str]:
        return self._stories(self._texts, self._seed) if self._texts else []

    def draw(self) -> dict[str, Task]:
        """Raises CommandError when a kind has fewer items than were asked for."""
        try:
            drawn = {
                name: Task(kind, held_out_items(kind, self._limit, self._seed)) for name, kind in self._kinds.items()
            }
        except ValueError as error:
            raise CommandError(f"--limit is {self._limit}; {error}") from error
        return {**drawn, **self._own}
