"""What the gateways' services share: the way of a request to the engine, and what the server says of its state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc

from jaxinfer.sampling_params import InvalidRequest
from serving.engine_client import EngineClient
from serving.faults import renamed
from serving.observing.record import Origin
from serving.request import GenerationRequest, ModelContext, prepare
from serving.servicer import trace_headers
from serving.status import BAD_INPUT, Refusal, invalid, unavailable
from serving.stream import GenerationStream
from serving.text_worker import TextWorker

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


@dataclass
class Door:
    """One service's way to the engine. Serves once `model` is set.

    name: in metrics, logs, ledger and traces. folder: of the model's files; None where the engine has none. names: the
    doors' shared field names -> those of this service's clients, for errors.
    """

    name: str
    client: EngineClient
    worker: TextWorker
    folder: Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    model: ModelContext | None = None
    started: float = field(default_factory=time.monotonic)

    def ready(self) -> ModelContext:
        """Raises Refusal while the model is loading."""
        if self.model is None:
            raise unavailable("the model is still loading")
        return self.model

    @property
    def state(self) -> str:
        """Why requests cannot be served; "" when they can."""
        client = self.client
        if client.failing or client.ended.done():
            return "the engine has ended"
        if self.model is None:
            return "the model is still loading"
        if client.draining:
            return "the server is shutting down"
        return "the engine has no news of its requests" if client.stuck else ""

    async def submit(
        self, endpoint: str, size: int, convert: Callable[[ModelContext], tuple[GenerationRequest, T]], context: Context
    ) -> tuple[GenerationStream, T]:
        """Converts, checks and admits a request of `size` bytes; also returns what `convert` made beside it. The caller
        must close the stream. Raises Refusal."""
        origin = Origin(self.name, endpoint, trace=trace_headers(context), received=time.monotonic())
        try:
            model = self.ready()
            prepared, more = await self.worker.run(size, lambda: self._prepare(convert, model))
            return self.client.submit(prepared, model.tokenizer, origin), more
        except (Refusal, *BAD_INPUT) as error:
            refusal = self.refusal(error)
            self.client.refused += 1
            self.client.recorder.refused(origin, refusal.code.name, error)
            raise refusal from error

    def _prepare(self, convert: Callable[[ModelContext], tuple[GenerationRequest, T]], model: ModelContext) -> Any:
        request, more = convert(model)
        return prepare(request, model), more

    def refusal(self, error: Exception) -> Refusal:
        """The status that bad input ends with, in the client's names."""
        if isinstance(error, InvalidRequest):
            error = renamed(error, self._in_its_names)
        return error if isinstance(error, Refusal) else invalid(error)

    def _in_its_names(self, fault: InvalidRequest) -> InvalidRequest:
        name = self.names.get(fault.field)
        return fault if name is None else InvalidRequest(name, fault.value, fault.allowed)


def refuse_others(message: Any, handled: frozenset[str], path: str = "") -> None:
    """Raises InvalidRequest for a set field that is not in `handled`: a later version of a published protocol may know
    more fields than this server."""
    for descriptor, value in message.ListFields():
        if descriptor.name not in handled:
            shown = str(value) if isinstance(value, str | bytes | int | float) else "set"
            raise InvalidRequest(path + descriptor.name, shown, "this server does not support it")


async def unimplemented(context: Context, method: str, why: str) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not supported: {why}")
