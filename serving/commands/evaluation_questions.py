"""The options of `jaxinfer eval` that say what is asked, and which can go together: known before a model is there."""

from __future__ import annotations

import argparse

from jaxinfer.evaluation import plot
from jaxinfer.evaluation.items import Task, read_items
from jaxinfer.evaluation.questions import Kinds, Questions, Stories
from serving.commands.access_options import check_client_options
from serving.commands.early import check_output
from serving.commands.options import runtime_given
from serving.commands.parsing import CommandError, meant


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
    if arguments.plot is not None and not plot.available():
        raise CommandError("--plot needs matplotlib, which is not installed: pip install 'jaxinfer[eval]'")


def questions(arguments: argparse.Namespace, kinds: Kinds, stories: Stories) -> Questions:
    """What the options ask for, names and files checked. Raises CommandError or ItemsError."""
    own = read_items(arguments.items) if arguments.items is not None else {}
    known = {} if arguments.tasks is None and own else kinds()
    if arguments.tasks is not None:
        names = [name.strip() for name in arguments.tasks.split(",")]
        for name in names:
            if name not in known:
                raise CommandError(f"--tasks names {name!r}; tasks are {', '.join(known)}{meant(name, known)}")
            if name in own:
                raise CommandError(
                    f"--items has items of kind {name!r}, which --tasks names too; give them another kind"
                )
        known = {name: known[name] for name in names}
    return Questions(known, own, stories, arguments.limit, arguments.texts, arguments.seed)


def draw(asked: Questions) -> dict[str, Task]:
    """Raises CommandError when a kind has fewer items than were asked for."""
    try:
        return asked.draw()
    except ValueError as error:
        raise CommandError(f"--limit is {asked.limit}; {error}") from error
