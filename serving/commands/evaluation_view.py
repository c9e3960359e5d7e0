"""What `jaxinfer eval` prints: a bar while it runs, then tables. Works on the record that --json writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from serving.commands.progress import PlainLines

_BAR = 20  # characters of an accuracy bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
_GOOD, _FAIR = 0.9, 0.5


class _Counted(MofNCompleteColumn):
    """Nothing, rather than 0/?, of what has no known length."""

    def render(self, task: RichTask) -> Text:
        return super().render(task) if task.total is not None else Text("")


class EvaluationProgress:
    """One bar at a time for whatever runs; elsewhere than on a terminal a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: PlainLines | None = None
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            _Counted(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._what = ""

    def __enter__(self) -> EvaluationProgress:
        self._bars.start()
        if not self._console.is_terminal:
            self._lines = PlainLines(self._console)
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        if self._lines is not None:
            self._lines.close()

    def waiting(self, what: str) -> None:
        """Something of unknown length runs."""
        self._begin(what, None)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what or not done:
            self._begin(what, total)
        self._bars.update(self._task, completed=done, total=total)
        if self._lines is not None:
            self._lines.doing(f"{what}: {done} of {total}")

    def _begin(self, what: str, total: int | None) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._what = what
        self._task = self._bars.add_task(escape(what), total=total)
        if self._lines is not None:
            self._lines.doing(what)


def print_report(console: Console, record: Mapping[str, Any]) -> None:
    """The tables of one model."""
    settings = record["settings"]
    console.print(
        f"[bold]{escape(record['model'])}[/bold]  {escape(record['where'])}, {escape(str(settings.get('dtype')))}, "
        f"{escape(str(settings.get('device')))}; prompts by {escape(record['prompts'])}"
    )
    if record["tasks"]:
        console.print()
        console.print(_task_table(record["tasks"]))
        console.print("[dim]· baseline: what always giving the commonest answer would score[/dim]")
        _notes(console, record["tasks"])
    if record["recall_by_depth"]:
        console.print()
        console.print(_depth_table(record["recall_by_depth"]))
    if record["json_validity"]:
        valid = record["json_validity"]
        console.print(
            f"\nJSON validity: [bold]{_percent(valid['share'])}[/bold] of {valid['n']:,} answers parse "
            f"[dim]({_interval(valid)})[/dim]"
        )
    if record["perplexity"]:
        console.print(f"\nHeld-out stories: {_perplexity(record['perplexity'])}")


def print_comparison(console: Console, record: Mapping[str, Any]) -> None:
    """The tables of --compare."""
    for side in ("a", "b"):
        one = record[side]
        settings = one["settings"]
        console.print(
            f"[bold]{side.upper()}[/bold]  {escape(one['spec'])}: {escape(str(settings.get('dtype')))}, "
            f"{escape(str(settings.get('device')))}; prompts by {escape(one['prompts'])}"
        )
    if record["tasks"]:
        console.print()
        console.print(_difference_table(record))
        dropped = {name: task["dropped"] for name, task in record["tasks"].items() if task["dropped"]}
        skipped = {name: task["skipped"] for name, task in record["tasks"].items() if task["skipped"]}
        _list_counts(console, "left out because only one of the two could take them", dropped)
        _list_counts(console, "skipped because neither can take the prompt and its answer", skipped)
    found = record["divergence"]
    if found:
        how = (
            "exact"
            if found["exact"]
            else f"a lower bound, from the {found['alternatives']:,} likeliest and one bucket for the rest"
        )
        top1 = found["top1_agreement"]
        console.print(
            f"\nNext token over {found['positions']:,} positions of held-out stories: mean KL(A||B) "
            f"[bold]{found['mean_kl']:.2e}[/bold] nats ({how}; largest {found['largest_kl']:.2e}), top-1 agreement "
            f"[bold]{_percent(top1['share'], 2)}[/bold] [dim]({_interval(top1, 2)})[/dim]"
        )
    for side in ("a", "b"):
        if record[side]["perplexity"]:
            console.print(f"\nHeld-out stories, {side.upper()}: {_perplexity(record[side]['perplexity'])}", end="")
    console.print()


def _task_table(tasks: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("task")
    table.add_column("accuracy", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", style="dim", no_wrap=True)
    table.add_column("items", justify="right")
    table.add_column("baseline", justify="right", no_wrap=True)
    for name, task in tasks.items():
        share = task["accuracy"]
        colour = _colour(share)
        table.add_row(
            escape(name),
            Text(_bar(share), style=f"{colour} on grey23"),
            Text(_percent(share), style=f"bold {colour}"),
            _interval(task) if task["n"] else "-",
            f"{task['n']:,}",
            _percent(task["baseline"]),
        )
    return table


def _notes(console: Console, tasks: Mapping[str, Any]) -> None:
    _list_counts(console, "skipped because prompt and answer do not fit the context", _nonzero(tasks, "skipped"))
    what = "not asked because the prompt shows nothing of tools or thinking"
    _list_counts(console, what, _nonzero(tasks, "unheard"))
    _list_counts(console, "responses without an answer to be found", _nonzero(tasks, "unanswered"))
    _list_counts(console, "responses cut off at the item's max_tokens", _nonzero(tasks, "cut_off"))


def _nonzero(tasks: Mapping[str, Any], field: str) -> dict[str, int]:
    return {name: task[field] for name, task in tasks.items() if task[field]}


def _list_counts(console: Console, what: str, counts: Mapping[str, int]) -> None:
    if counts:
        console.print(f"[dim]·[/dim] {what}: " + ", ".join(f"{escape(n)} {count:,}" for n, count in counts.items()))


def _depth_table(bins: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("recall over", no_wrap=True)
    table.add_column("accuracy", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", style="dim", no_wrap=True)
    table.add_column("items", justify="right")
    for entry in bins:
        colour = _colour(entry["accuracy"])
        table.add_row(
            f"{entry['from']:,} to {entry['to']:,} tokens",
            Text(_bar(entry["accuracy"]), style=f"{colour} on grey23"),
            Text(_percent(entry["accuracy"]), style=f"bold {colour}"),
            _interval(entry),
            f"{entry['n']:,}",
        )
    return table


def _difference_table(record: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("task", "A", "B", "B - A", "95 % interval", "items", ""):
        table.add_column(title, justify="left" if title in ("task", "") else "right", no_wrap=True)
    rows = list(record["tasks"].items())
    if len(rows) > 1 and record["overall"]:
        rows.append(("all items", record["overall"]))
    for name, task in rows:
        if not task["n"]:
            table.add_row(escape(name), "-", "-", "-", "-", "0", "")
            continue
        verdict = Text("within noise", style="dim")
        if task["low"] > 0:
            verdict = Text("B is better", style="green")
        elif task["high"] < 0:
            verdict = Text("B is worse", style="red")
        table.add_row(
            escape(name),
            _percent(task["a"]),
            _percent(task["b"]),
            _points(task["difference"]),
            f"{_points(task['low'])} to {_points(task['high'])}",
            f"{task['n']:,}",
            verdict,
        )
    return table


def _perplexity(found: Mapping[str, Any]) -> str:
    note = f"; {found['skipped']} skipped, they do not fit the context" if found["skipped"] else ""
    if found["per_token"] is None:
        return f"nothing was scored{note}"
    return (
        f"perplexity [bold]{found['per_token']:.3f}[/bold] per token, [bold]{found['bits_per_byte']:.4f}[/bold] bits "
        f"per byte [dim]({found['tokens']:,} tokens, {found['bytes']:,} bytes, {found['texts']:,} texts{note})[/dim]"
    )


def _bar(share: float | None) -> str:
    eighths = round((share or 0.0) * _BAR * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(_BAR)


def _colour(share: float | None) -> str:
    if share is None:
        return "dim"
    return "green" if share >= _GOOD else "yellow" if share >= _FAIR else "red"


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{share * 100:.{digits}f} %"


def _points(difference: float) -> str:
    return f"{difference * 100:+.1f}"


def _interval(entry: Mapping[str, Any], digits: int = 1) -> str:
    return f"{entry['low'] * 100:.{digits}f} to {entry['high'] * 100:.{digits}f}"
