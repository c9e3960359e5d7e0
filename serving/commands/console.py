"""What `serve` shows: a bar on a terminal, plain lines in a log, the same facts in both."""

from __future__ import annotations

import contextlib
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
from serving.commands.patient_stream import PatientStream, patient
from serving.commands.progress import PlainLines, ProgressView
from serving.frontend.engine_link import EngineEnd

_STAGES = {"load": ("loading weights", "bytes"), "warmup": ("compiling", "programs")}


class StartUpView(ProgressView):
    """Progress of loading and warm-up. On a terminal bars that stay when full; elsewhere a line when a stage ends
    (`brief`: none) and, while one takes long, a line now and then."""

    def __init__(self, console: Console, *, brief: bool = False) -> None:
        super().__init__(console)
        self._brief = brief
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, float] = {}
        self._latest = 0.0  # when there was news last: a stage begins where the one before it ended

    def start(self) -> None:
        """Something moves from the first moment: importing the engine's libraries alone takes seconds."""
        if not self._console.is_terminal:
            self._lines = PlainLines(self._console)
            self._lines.doing("starting the engine")
            return
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
        now = time.monotonic()
        self._began.setdefault(progress.stage, self._latest or now)
        self._latest = now
        title, unit = _STAGES.get(progress.stage, (progress.stage, ""))
        if self._bars is not None:
            self._draw(self._bars, title, unit, progress)
        elif self._lines is not None:
            self._log(self._lines, title, unit, progress)

    def _draw(self, bars: Bars, title: str, unit: str, progress: Progress) -> None:
        bars.update(self._tasks[""], total=1, completed=1)
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = bars.add_task(title, total=progress.total, count="", detail="")
        bars.update(
            self._tasks[progress.stage],
            completed=progress.done,
            total=progress.total,
            count=f"{_amount(progress.done, unit)} of {_amount(progress.total, unit)}",
            detail=escape(progress.detail) if progress.done < progress.total else "",
        )

    def _log(self, lines: PlainLines, title: str, unit: str, progress: Progress) -> None:
        if progress.done < progress.total:
            lines.doing(f"{title}: {_amount(progress.done, unit)} of {_amount(progress.total, unit)}")
            return
        lines.doing("compiling" if progress.stage == "load" else "almost ready")
        if not self._brief:
            seconds = time.monotonic() - self._began[progress.stage]
            lines.say(f"{title}: {_amount(progress.total, unit)} in {seconds:.1f} s")


def _amount(value: int, unit: str) -> str:
    """Programs are counted; bytes are given as `plan` gives them."""
    if unit != "bytes":
        return f"{value} {unit}".rstrip()
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


class ServeConsole:
    """The observer of `serve`. called: how a line to paste begins. detailed: what was compiled, too, for debugging."""

    _chats = False

    def __init__(
        self,
        called: str,
        stream: TextIO | None = None,
        *,
        secure: bool = False,
        keys: bool = False,
        detailed: bool = False,
    ) -> None:
        self._called = called
        self._secure, self._keys, self._detailed = secure, keys, detailed
        self._scheme = "https" if secure else "http"
        self._stream = patient(stream or sys.stdout)
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
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
        for label, value in _summary(info, detailed=self._detailed):
            self._console.print(f"[dim]{label:<12}[/dim] {escape(value)}")
        addresses = f"[bold]{address}[/bold]"
        if http_address is not None:
            addresses += f" (gRPC) and [bold]{self._scheme}://{reachable(http_address)}/v1[/bold] (OpenAI's HTTP)"
        self._console.print(
            f"[bold green]ready[/bold green] after {seconds:.1f} s: {escape(name)} on {addresses}. Ctrl-C stops. Try:"
        )
        lines = [self.client_line(address)]
        if http_address is not None:
            lines.append(self.curl_line(http_address))
        self._console.print("\n" + "".join(f"    {escape(line)}\n" for line in lines))
        if http_address is not None:
            self._console.print(f"or open {self._scheme}://{reachable(http_address)}/ in a browser.\n")

    def client_line(self, address: str) -> str:
        what = '--chat "What is 347 + 586?"' if self._chats else '--max-tokens 24 "Once upon a time"'
        tls = " --tls-ca CA.pem" if self._secure else ""
        key = " --api-key-file KEY.txt" if self._keys else ""
        return f"{self._called} generate --server {reachable(address)}{tls}{key} {what}"

    def curl_line(self, address: str) -> str:
        """One that a shell takes as it is; with TLS and keys the user has to fill in his own."""
        question = '"messages": [{"role": "user", "content": "What is 347 + 586?"}]'
        endpoint, body = (
            ("chat/completions", question)
            if self._chats
            else (
                "completions",
                '"prompt": "Once upon a time", "max_tokens": 24',
            )
        )
        tls = " --cacert CA.pem" if self._secure else ""
        key = ' -H "Authorization: Bearer $KEY"' if self._keys else ""
        where = f"{self._scheme + '://' if self._secure else ''}{reachable(address)}"
        return f"curl{tls} {where}/v1/{endpoint}{key} -H \"Content-Type: application/json\" -d '{{{body}}}'"

    def warmed(self, info: EngineInfo, seconds: float) -> None:
        self._console.print(f"all {len(info.executables)} programs are compiled after {seconds:.1f} s")

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
        if isinstance(self._stream, PatientStream):
            self._stream.close()
        end, self._end = self._end, None
        if end is not None:
            last = patient(sys.stderr)
            if end.traceback:
                print(end.traceback.rstrip(), file=last)
            print(f"jaxinfer serve: error: the engine failed: {end.reason}", file=last)
            if isinstance(last, PatientStream):
                last.close()


def _summary(info: EngineInfo, *, detailed: bool) -> Iterator[tuple[str, str]]:
    """What the engine settled on, and in detail what it compiled: (label, value) in reading order."""
    yield "model", f"{info.architecture}, {info.dtype}, {info.device}"
    yield "context", f"{info.max_model_len:,} tokens, {info.max_num_seqs} sequences a step"
    yield "KV pool", f"{info.kv_tokens:,} tokens"
    yield "backends", ", ".join(f"{op}: {backend}" for op, backend in sorted(info.backends.items()))
    width = max((len(name) for name, _ in info.executables), default=0)
    for i, (name, seconds) in enumerate(info.executables if detailed else ()):
        yield "" if i else "executables", f"{name:<{width}}  {seconds:6.2f} s to compile"
    if detailed and "vocabulary_seconds" in info.extra:
        yield "grammars", f"{info.extra['vocabulary_seconds']:.2f} s for their vocabulary, beside the rest"


def _has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer's files bring a chat template; the tokenizer itself is loaded elsewhere, later."""
    settings = folder / "tokenizer_config.json"
    named = False
    with contextlib.suppress(OSError, ValueError):  # whoever loads the tokenizer says what is wrong with it
        named = "chat_template" in json.loads(settings.read_text(encoding="utf-8"))
    return named or (folder / "chat_template.jinja").exists()


def reachable(address: str) -> str:
    """The address as a client on this machine writes it."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in ("0.0.0.0", "127.0.0.1", "[::]", "[::1]", "localhost") else address
