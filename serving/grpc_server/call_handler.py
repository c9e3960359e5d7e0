"""What the services on the gRPC port share: a call's way to the frontend. A `Refusal` that is raised ends the call with
its status (`guard.py`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from jaxinfer.errors import BAD_INPUT, InvalidRequest, renamed
from serving.errors import Refusal, invalid
from serving.frontend.frontend import Frontend, Prepare
from serving.frontend.stream import GenerationStream
from serving.grpc_server.convert import refuse_unknown_fields
from serving.observing.record import Origin
from serving.observing.tracing import TRACE_HEADERS
from serving.request import GenerationRequest, ModelContext

_LOG = logging.getLogger("serving")
STALL_SECONDS = 120.0  # without taking any of the answer, as over HTTP

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
Servicer = TypeVar("Servicer")
Asked = TypeVar("Asked", bound=Message)


@dataclass
class CallHandler:
    """One service's way to the frontend.

    name: in metrics, logs, ledger and traces. folder: of the model's files; None where the engine has none. names: the
    servers' shared field names -> those of this service's clients, for errors.
    """

    name: str
    frontend: Frontend
    folder: Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    async def submit(
        self, endpoint: str, size: int, convert: Callable[[ModelContext], tuple[GenerationRequest, T]], context: Context
    ) -> tuple[GenerationStream, T]:
        """Converts, checks and admits a request of `size` bytes; also returns what `convert` made beside it. The caller
        must close the stream. Raises Refusal."""
        origin = Origin(self.name, endpoint, trace=trace_headers(context), received=time.monotonic())

        def prepared(model: ModelContext, prepare: Prepare) -> Any:
            request, more = convert(model)
            return prepare([request]), more

        try:
            (stream,), more = await self.frontend.submit(size, prepared, origin)
            return stream, more
        except (Refusal, *BAD_INPUT) as error:
            raise self.refused(origin, error) from error

    async def text(self, endpoint: str, size: int, work: Callable[[ModelContext], T]) -> T:
        """What `work` makes of the model and a message of `size` bytes, without the engine. Raises Refusal."""
        try:
            return await self.frontend.run(size, work)
        except (Refusal, *BAD_INPUT) as error:
            raise self.refused(Origin(self.name, endpoint), error) from error

    def refused(self, origin: Origin, error: Exception) -> Refusal:
        """The status that a refused request ends with, in the client's names; metrics and logs know of it then."""
        if isinstance(error, InvalidRequest):
            error = renamed(error, self.names)
        refusal = error if isinstance(error, Refusal) else invalid(error)
        self.frontend.recorder.refused(origin, refusal.code.name, error)
        return refusal


@contextmanager
def checking(request: Message) -> Iterator[None]:
    """Refuses fields of the request that nobody knows, and bad input within. Raises Refusal."""
    try:
        refuse_unknown_fields(request)
        yield
    except BAD_INPUT as error:
        raise invalid(error) from error


def answering(
    work: Callable[[Servicer, Asked], T],
) -> Callable[[Servicer, Asked, Context], Coroutine[Any, Any, T]]:
    """The method of a call whose answer `work` makes of the request at once."""

    @wraps(work)
    async def call(self: Servicer, request: Asked, context: Context) -> T:
        with checking(request):
            return work(self, request)

    return call


def trace_headers(context: Context) -> tuple[tuple[str, str], ...]:
    """The W3C headers of distributed traces, as the client's metadata."""
    found = context.invocation_metadata() or ()
    return tuple((name, str(value)) for name, value in found if name in TRACE_HEADERS)


async def write(context: Context, message: Any, seconds: float = STALL_SECONDS) -> None:
    """Waits while the client's flow-control window is full, but not for ever. Raises Refusal."""
    try:
        async with asyncio.timeout(seconds):
            await context.write(message)
    except TimeoutError:
        _LOG.warning("a client took nothing of its answer for %g s; its call is ended", seconds)
        raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing of the answer was taken for {seconds:g} s") from None


def refuse_others(message: Any, handled: frozenset[str], path: str = "") -> None:
    """Raises InvalidRequest for a set field that is not in `handled`: a later version of a published protocol may know
    more fields than this server."""
    for descriptor, value in message.ListFields():
        if descriptor.name not in handled:
            shown = str(value) if isinstance(value, str | bytes | int | float) else "set"
            raise InvalidRequest(path + descriptor.name, shown, "this server does not support it")


def unimplemented(method: str, why: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not supported: {why}")
