"""An interceptor around every call of our services: bytes that are no message, and faults that nobody foresaw.

Without it gRPC answers both with UNKNOWN and writes a traceback of the client's mistake into the server's log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving.status import Refusal

_LOG = logging.getLogger("serving")


@dataclass(frozen=True)
class Malformed:
    """Stands for a request that could not be parsed, until the call can be ended with a status."""

    error: str


class Guard(grpc.aio.ServerInterceptor):
    """Wraps the methods of `services`; others pass unchanged."""

    def __init__(self, *services: str) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefixes):
            return handler
        if method not in self._wrapped:
            self._wrapped[method] = _wrap(handler)
        return self._wrapped[method]


def _checked(request: Any) -> Any:
    """Raises Refusal."""
    if isinstance(request, Malformed):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the request is no valid message: {request.error}")
    return request


async def _checked_all(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


def _wrap(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour = handler.stream_stream or handler.unary_stream or handler.unary_unary

    def deserialize(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data) if handler.request_deserializer else data
        except DecodeError as error:
            return Malformed(str(error))

    async def call(request: Any, context: Any) -> Any:
        try:
            return await behaviour(_checked_all(request) if handler.stream_stream else _checked(request), context)
        except Refusal as refusal:
            await context.abort(refusal.code, refusal.message, refusal.metadata)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if context.done():
                return None  # writing to a client that has left
            _LOG.exception("a call failed in a way that nobody foresaw")
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")

    make = grpc.unary_stream_rpc_method_handler if handler.unary_stream else grpc.unary_unary_rpc_method_handler
    if handler.stream_stream:
        make = grpc.stream_stream_rpc_method_handler
    return make(call, request_deserializer=deserialize, response_serializer=handler.response_serializer)
