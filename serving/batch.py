"""OpenAI's batch files: requests in, one line each; answers out, one line each, in the order in which they are ready.

The output is the only record of what is done. A run that was killed leaves whole lines and perhaps the beginning of
one, which the next run cuts off; then it does what has no line yet.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from jaxinfer.errors import together
from serving import json_text
from serving.append_file import AppendFile
from serving.errors import Refusal
from serving.http.api import ENDPOINTS, Api
from serving.http.errors import ApiError, from_refusal, invalid

MAX_CUSTOM_ID = 512  # characters
_SYNC_SECONDS = 1.0  # what a power cut may cost
_LINE_ID = "batch_req_"
_LINE_BEGINS = b'{"id":"' + _LINE_ID.encode()  # as every line of an output does


class BatchError(Exception):
    """A batch cannot be run, or not to its end. One sentence."""


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _OnlyLine(_Line, forbid_unknown_fields=True):
    pass


class _Done(msgspec.Struct):
    custom_id: str
    response: msgspec.Raw
    error: msgspec.Raw


class BatchEntry(NamedTuple):
    """Where a request is in the input file."""

    custom_id: str
    offset: int
    length: int


class _Body(NamedTuple):
    """A line's request. beside: names of what it has besides, which says nothing."""

    custom_id: str
    url: str
    body: bytes
    beside: tuple[str, ...]


def read_input(path: Path, *, strict: bool = False) -> list[BatchEntry]:
    """Every request's place. strict: lines have nothing but what is known. Raises BatchError naming the first line that
    is none: before any work is done."""
    entries: list[BatchEntry] = []
    lines: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            if not file.seekable():
                raise BatchError(f"cannot read {path}: it is no file, and is read twice")
            offset = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    custom_id = _check(f"{path} line {number}", line, _OnlyLine if strict else _Line)
                    if custom_id in lines:
                        first = lines[custom_id]
                        raise BatchError(f"{path} line {number}: custom_id is {custom_id!r}, as in line {first}")
                    lines[custom_id] = number
                    entries.append(BatchEntry(custom_id, offset, len(line)))
                offset += len(line)
    except OSError as error:
        raise BatchError(f"cannot read {path}: {error.strerror or error}") from error
    return entries


def _check(where: str, line: bytes, kind: type[_Line]) -> str:
    try:
        request = msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shape = '{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}'
        raise BatchError(f"{where}: {error}; it must be {shape}") from error
    faults: list[str] = []
    if not 0 < len(request.custom_id) <= MAX_CUSTOM_ID:
        faults.append(f"custom_id has {len(request.custom_id)} characters; 1 to {MAX_CUSTOM_ID} are allowed")
    if request.method != "POST":
        faults.append(f"method is {request.method!r}; it must be POST")
    if request.url not in ENDPOINTS:
        faults.append(f"url is {request.url!r}; it must be one of {', '.join(ENDPOINTS)}")
    if faults:
        raise BatchError(f"{where}: {together(faults)}")
    return request.custom_id


class Output:
    """The output file, held by one process at a time. `done` are the custom ids that have a line."""

    def __init__(self, path: Path) -> None:
        """Raises BatchError when the file cannot be had, or holds what no batch wrote."""
        self.path = path
        self.done: set[str] = set()
        self._synced = time.monotonic()
        try:
            self._file = AppendFile(path, 0o644)
        except OSError as error:
            raise BatchError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise BatchError(f"cannot write {path}: another process is writing it") from error
        try:
            if not stat.S_ISREG(os.fstat(self._file.descriptor).st_mode):
                raise BatchError(f"{path} is no file; the answers of a batch need one, to go on after a kill")
            self._resume()
        except OSError as error:
            self.close()
            raise BatchError(f"cannot write {path}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def _resume(self) -> None:
        whole = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and _is_torn(line):
                    self._file.cut(whole)
                    break
                try:
                    self.done.add(msgspec.json.decode(line, type=_Done).custom_id)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise BatchError(
                        f"{self.path} line {number} is no answer of a batch; give another output file"
                    ) from error
                whole += len(line)

    def write(self, line: bytes) -> None:
        """Appends a line, whole or not at all. Raises BatchError, for instance when the disk is full."""
        try:
            self._file.append(line + b"\n")
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise BatchError(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        self._file.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        self._file.close()


def _is_torn(line: bytes) -> bool:
    """Without its end: a line that a kill or a full disk cut, or the zeros that a power cut leaves; nobody else's."""
    return line[: len(_LINE_BEGINS)] == _LINE_BEGINS[: len(line)] or not line.strip(b"\0")


@dataclass
class BatchProgress:
    """Requests: in all, with a line, of those refused or failed. Tokens: of this run."""

    total: int
    done: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    began: float = field(default_factory=time.monotonic)


class BatchRun:
    """Answers every entry that has no line yet, several at a time."""

    def __init__(
        self, path: Path, entries: list[BatchEntry], output: Output, show: Callable[[BatchProgress], None]
    ) -> None:
        """Raises BatchError when the output belongs to another batch."""
        known = {entry.custom_id for entry in entries}
        strange = next((custom_id for custom_id in output.done if custom_id not in known), None)
        if strange is not None:
            raise BatchError(
                f"{output.path} has an answer to custom_id {strange!r}, which {path} does not have; "
                "give another output file"
            )
        self._path, self._output, self._show = path, output, show
        self._todo = [entry for entry in entries if entry.custom_id not in output.done]
        self.progress = BatchProgress(len(entries), len(entries) - len(self._todo))

    @property
    def left(self) -> int:
        return self.progress.total - self.progress.done

    async def run(self, api: Api, at_a_time: int) -> None:
        """Raises BatchError when the engine fails or the output cannot be written."""
        self._show(self.progress)
        with self._path.open("rb") as file:
            entries = self._bodies(file)
            workers = min(at_a_time, len(self._todo))
            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(workers):
                        tasks.create_task(self._work(api, entries))
            except* BatchError as group:
                raise group.exceptions[0] from None
            except* OSError as group:
                raise BatchError(f"cannot read {self._path}: {group.exceptions[0]}") from None
        self._output.sync()

    def _bodies(self, file: Any) -> Iterator[_Body]:
        for entry in self._todo:
            file.seek(entry.offset)
            text = file.read(entry.length)
            line = msgspec.json.decode(text, type=_Line)
            names = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            beside = tuple(name for name in names if name not in _Line.__struct_fields__)
            yield _Body(line.custom_id, line.url, bytes(line.body), beside)

    async def _work(self, api: Api, entries: Iterator[_Body]) -> None:
        for custom_id, url, body, beside in entries:
            status, request_id, answer, ignored = await self._answer(api, url, body)
            ignored = beside + ignored
            response = {"status_code": status, "request_id": request_id, "body": answer}
            if ignored:
                response["ignored"] = ignored
            line = {
                "id": _LINE_ID + secrets.token_hex(12),
                "custom_id": custom_id,
                "response": response if status < 500 else None,
                "error": None if status < 500 else answer["error"],
            }
            self._output.write(b"".join([part async for part in json_text.encode_in_parts(line)]))
            self._count(status, answer)

    async def _answer(self, api: Api, url: str, body: bytes) -> tuple[int, str, dict[str, Any], tuple[str, ...]]:
        """Status, the request's id, the answer's body, and what of the request had no effect."""
        try:
            reply = await api.begin(url, body)
        except ApiError as error:
            return error.status, "", self._unless_over(api, error), ()
        try:
            request_id = reply.generation.streams[0].prepared.request_id
            if reply.stream:
                return 400, request_id, invalid("stream", "stream is True; a batch gives whole answers").body, ()
            return 200, request_id, dict(await reply.result()), reply.ignored.names
        except Refusal as refusal:
            failed = from_refusal(refusal)
            return failed.status, "", self._unless_over(api, failed), ()
        finally:
            reply.close()

    def _unless_over(self, api: Api, error: ApiError) -> dict[str, Any]:
        """A refusal is an answer; the end of the engine is not, and the request is left for another run."""
        if api.frontend.failed or error.status in (429, 503):
            raise BatchError(f"{error.message}; {self.left} of {self.progress.total} requests are left")
        return error.body

    def _count(self, status: int, answer: dict[str, Any]) -> None:
        progress = self.progress
        progress.done += 1
        progress.refused += status != 200
        usage = answer.get("usage") or {}
        progress.prompt_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        progress.completion_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))
        self._show(progress)
