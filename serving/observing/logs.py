"""Logs: a line for each event, as JSON or for people; a line for each request; nobody's text unless it is asked for.

Messages of exceptions are withheld, too, since they may quote what a client sent: a traceback shows its frames and the
exceptions' types. Those of the operating system say what an operator must know and quote no client; they are shown.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import datetime
import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal, TextIO

from serving import json_text
from serving.observing.record import RequestRecord

LogFormat = Literal["auto", "json", "text"]
LEVELS = ("debug", "info", "warning", "error")
WITHHELD = "(message withheld; --log-content shows it)"
_SHOWN = (OSError, EOFError, MemoryError)
_MAX_QUEUED = 10_000  # lines; a reader that stands still must not stop the server
_ACCESS = logging.getLogger("serving.access")


class _Formatter(logging.Formatter):
    def __init__(self, *, content: bool) -> None:
        super().__init__()
        self._content = content

    def _event(self, record: logging.LogRecord) -> dict[str, Any]:
        event: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            event["traceback"] = self._traceback(record.exc_info[1])
        return event

    def _traceback(self, error: BaseException) -> str:
        if self._content:
            return "".join(traceback.format_exception(error)).rstrip()
        parts, seen, found = [], set(), error
        while found is not None and id(found) not in seen:
            seen.add(id(found))
            kind = f"{type(found).__module__}.{type(found).__qualname__}".removeprefix("builtins.")
            said = str(found) if isinstance(found, _SHOWN) else WITHHELD
            frames = "".join(traceback.format_list(traceback.extract_tb(found.__traceback__)))
            parts.append(f"Traceback (most recent call last):\n{frames}{kind}: {said}")
            found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)  # type: ignore[assignment]
        return "\nwhich came from\n".join(parts)


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json_text.line_safe_text(json.dumps(self._event(record), ensure_ascii=False, default=str))


class TextFormatter(_Formatter):
    """The same for people: name=value behind the message. Values cannot begin a line of their own."""

    def format(self, record: logging.LogRecord) -> str:
        event = self._event(record)
        head = [event.pop("time"), event.pop("level").upper(), event.pop("logger") + ":", event.pop("message")]
        trace = event.pop("traceback", None)
        values = [f"{name}={json.dumps(value, default=str)}" for name, value in event.items()]
        return " ".join([*head, *values]) + (f"\n{trace}" if trace else "")


class _Writer(logging.Handler):
    """Writes from a thread of its own. Lines that do not fit the queue, or that nobody takes, are counted, and the
    count is a line. A line of which a part was taken is written to its end before another begins."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_QUEUED)
        self._lost = 0
        self._torn = b""  # what is left of a line
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            lost, self._lost = self._lost, 0
            if lost:
                line += f"\n{lost} lines of the log are lost: nobody took them in time"
            if not self._write(line + "\n"):
                self._lost += lost + 1

    def _write(self, text: str) -> bool:
        """False where nothing of it was taken."""
        try:
            file = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # a stream of Python's alone
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
                return True
            return False
        data = text.encode(errors="backslashreplace")
        begun = False
        try:
            while self._torn:  # of an earlier line
                self._torn = self._torn[os.write(file, self._torn) :]
            while data:
                data = data[os.write(file, data) :]
                begun = True
        except OSError:
            if begun:
                self._torn = data
            return begun
        return True

    def close(self) -> None:
        """Writes what is queued, for at most a few seconds. Idempotent."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(3.0)
        super().close()


@contextlib.contextmanager
def logging_to(
    stream: TextIO | None = None, *, form: LogFormat = "auto", level: str = "info", content: bool = False
) -> Iterator[None]:
    """Logs go to `stream` (stderr) within. auto: text on a terminal, else JSON. level: of this server's own loggers;
    others are heard from warnings on, unless it is debug."""
    stream = stream or sys.stderr
    form = ("text" if stream.isatty() else "json") if form == "auto" else form
    handler = _Writer(stream)
    handler.setFormatter((JsonFormatter if form == "json" else TextFormatter)(content=content))
    root, own = logging.getLogger(), logging.getLogger("serving")
    before = root.level, own.level, list(root.handlers)
    root.handlers = [handler]
    own.setLevel(level.upper())
    root.setLevel("DEBUG" if level == "debug" else max(logging.WARNING, own.level))
    try:
        yield
    finally:
        root.setLevel(before[0])
        own.setLevel(before[1])
        root.handlers = before[2]
        handler.close()


class EngineLogs:
    """A build of an engine whose process logs as the server does. Picklable, as it goes to that process."""

    def __init__(self, build: Callable[..., Any], form: LogFormat, level: str, *, content: bool) -> None:
        self._build, self._form, self._level, self._content = build, form, level, content

    def __call__(self, progress: Callable[[Any], None]) -> Any:
        stack = contextlib.ExitStack()
        stack.enter_context(logging_to(form=self._form, level=self._level, content=self._content))
        atexit.register(stack.close)
        return self._build(progress)


def tame_loop(loop: asyncio.AbstractEventLoop) -> None:
    """What asyncio says of a lost exception quotes its message: here it goes the way of every traceback."""

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        logging.getLogger("serving").error(
            "%s", "a task failed and nobody took its exception" if error else context["message"], exc_info=error
        )

    loop.set_exception_handler(handle)


# -- a line for each request ------------------------------------------------------------------------------------------


def log_access(record: RequestRecord) -> None:
    """Ids, sizes, times in milliseconds, and how it ended."""
    if not _ACCESS.isEnabledFor(logging.INFO):
        return
    origin, phases = record.origin, record.phases()
    first = record.first_token
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "door": origin.server,
        "endpoint": origin.endpoint,
        "tenant": origin.tenant,
        "finish_reason": record.finish_reason,
        "n": record.n,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.output_tokens,
        "queue_ms": milliseconds(record.queue_seconds),
        "first_token_ms": milliseconds(first - record.received) if first else None,
        "total_ms": milliseconds(sum(phases.values())),
        "device_ms": milliseconds(record.device_seconds),
        **({"ignored": list(record.ignored)} if record.ignored else {}),
        **(record.content or {}),
    }
    _ACCESS.info("request", extra={"fields": fields})


def milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
