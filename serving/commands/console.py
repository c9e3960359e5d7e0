"""What `serve` shows: a bar on a terminal, plain lines in a log, the same facts in both."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from jaxinfer.messages import EngineInfo, Progress
from serving.engine_client import EngineEnd

_STAGES = {"load": "loading weights", "warmup": "compiling"}
_PLAIN_SECONDS = 10.0  # between the lines of one stage in a log


class StartUpView:
    """Progress of loading and warm-up. On a terminal bars that stay when full, elsewhere a line when a stage ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, float] = {}
        self._last_line = time.monotonic()

    def start(self) -> None:
        """Something moves from the first moment: importing the engine's libraries alone takes seconds."""
        if self._console.is_terminal:
            self._bars = Bars(
                SpinnerColumn(finished_text="[green]✓[/green]"),
                TextColumn("{task.description:<16}"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[count]:>13}"),
                TimeElapsedColumn(),
                TextColumn("[dim]{task.fields[detail]}"),
                console=self._console,
            )
            self._bars.start()
            self._tasks[""] = self._bars.add_task("starting engine", total=None, count="", detail="")

    def show(self, progress: Progress) -> None:
        title = _STAGES.get(progress.stage, progress.stage)
        self._began.setdefault(progress.stage, time.monotonic())
        if self._bars is not None:
            self._draw(self._bars, title, progress)
        elif not self._console.is_terminal:
            self._log(title, progress)

    def _draw(self, bars: Bars, title: str, progress: Progress) -> None:
        bars.update(self._tasks[""], total=1, completed=1)
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = bars.add_task(title, total=progress.total, count="", detail="")
        bars.update(
            self._tasks[progress.stage],
            completed=progress.done,
            total=progress.total,
            count=f"{_amount(progress.done)}/{_amount(progress.total)}",
            detail=escape(progress.detail) if progress.done < progress.total else "",
        )

    def _log(self, title: str, progress: Progress) -> None:
        now = time.monotonic()
        if progress.done >= progress.total:
            self._console.print(f"{title}: {_amount(progress.total)} in {now - self._began[progress.stage]:.1f} s")
        elif now - self._last_line > _PLAIN_SECONDS:
            self._console.print(
                f"{title}: {_amount(progress.done)} of {_amount(progress.total)}, {progress.detail}", markup=False
            )
        else:
            return
        self._last_line = now

    def close(self) -> None:
        """Leaves the terminal in order; idempotent."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _amount(value: int) -> str:
    """A count of executables as it is, one of parameters in millions or billions."""
    if value < 100_000:
        return str(value)
    return f"{value / 1e6:.1f}M" if value < 10**9 else f"{value / 1e9:.2f}B"


class ServeConsole:
    """The observer of `serve`. `client_line` makes the command to paste out of an address."""

    _chats = False

    def __init__(self, program: str, stream: TextIO | None = None, *, secure: bool = False) -> None:
        self._program = program
        self._scheme = "https" if secure else "http"
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._view = StartUpView(self._console)
        self._end: EngineEnd | None = None

    def start(self, version: str, model: str, folder: str) -> None:
        self._chats = _has_chat_template(Path(folder))
        self._console.print(f"[bold]jaxinfer {version}[/bold]  {escape(model)}  [dim]{escape(folder)}[/dim]")
        self._view.start()

    def progress(self, progress: Progress) -> None:
        self._view.show(progress)

    def ready(self, info: EngineInfo, name: str, address: str, http_address: str | None, seconds: float) -> None:
        self._view.close()
        for note in info.notes:
            self._console.print(f"[dim]·[/dim] {escape(note)}")
        for label, value in _summary(info):
            self._console.print(f"[dim]{label:<12}[/dim] {escape(value)}")
        doors = f"[bold]{address}[/bold]"
        if http_address is not None:
            doors += f" (gRPC) and [bold]{self._scheme}://{reachable(http_address)}/v1[/bold] (OpenAI's HTTP)"
        self._console.print(
            f"[bold green]ready[/bold green] after {seconds:.1f} s: {escape(name)} on {doors}. Ctrl-C stops. Try:"
        )
        self._console.print(f"\n    {escape(self.client_line(address))}\n")
        if http_address is not None:
            self._console.print(f"or open http://{reachable(http_address)}/ in a browser.\n")

    def client_line(self, address: str) -> str:
        what = '--chat "What is 347 + 586?"' if self._chats else '--max-tokens 24 "Once upon a time"'
        tls = " --tls-ca CA.pem" if self._scheme == "https" else ""
        return f"{self._program} generate --server {reachable(address)}{tls} {what}"

    def draining(self, open_requests: int, grace_seconds: float) -> None:
        self._view.close()
        what = f"{open_requests} running request{'s' if open_requests != 1 else ''}"
        wait = f"waiting up to {grace_seconds:g} s for {what}; a second signal ends them" if open_requests else "idle"
        self._console.print(f"stopping: {wait}")

    def ended(self, end: EngineEnd) -> None:
        self._view.close()
        self._end = end

    def close(self) -> None:
        """The last word: how the engine failed, if it did, behind everything that is in the log."""
        self._view.close()
        end, self._end = self._end, None
        if end is not None:
            if end.traceback:
                print(end.traceback.rstrip(), file=sys.stderr)
            print(f"{self._program} serve: error: the engine failed: {end.reason}", file=sys.stderr)


def _summary(info: EngineInfo) -> Iterator[tuple[str, str]]:
    """What the engine settled on and what it compiled: (label, value) in reading order."""
    tokens = (info.num_pages - 1) * info.page_size
    yield "model", f"{info.architecture}, {info.dtype}, {info.device}"
    yield "context", f"{info.max_model_len:,} tokens, {info.max_num_seqs} sequences a step"
    yield "KV pool", f"{tokens:,} tokens in {info.num_pages - 1:,} pages of {info.page_size}"
    yield "backends", ", ".join(f"{op}: {backend}" for op, backend in sorted(info.backends.items()))
    width = max((len(name) for name, _ in info.executables), default=0)
    for i, (name, seconds) in enumerate(info.executables):
        yield "" if i else "executables", f"{name:<{width}}  {seconds:6.2f} s to compile"


def _has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer's files bring a chat template; the tokenizer itself is loaded elsewhere, later."""
    settings = folder / "tokenizer_config.json"
    named = settings.exists() and "chat_template" in json.loads(settings.read_text(encoding="utf-8"))
    return named or (folder / "chat_template.jinja").exists()


def reachable(address: str) -> str:
    """The address as a client on this machine writes it."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in ("0.0.0.0", "127.0.0.1", "[::]", "[::1]", "localhost") else address
