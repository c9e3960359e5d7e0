"""An interceptor around every call of our service: bytes that are no message, and faults that nobody foresaw.

Without it gRPC answers both with UNKNOWN and writes a traceback of the client's mistake into the server's log.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_LOG = logging.getLogger("serving")


@dataclass(frozen=True)
class Malformed:
    """Stands for a request that could not be parsed, until the call can be ended with a status."""

    error: str


class Guard(grpc.aio.ServerInterceptor):
    """Wraps the methods of `service`; others pass unchanged."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        if method not in self._wrapped:
            self._wrapped[method] = _wrap(handler)
        return self._wrapped[method]


def _wrap(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour = handler.unary_stream or handler.unary_unary

    def deserialize(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError as error:
            return Malformed(str(error))

    async def call(request: Any, context: Any) -> Any:
        if isinstance(request, Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the request is no valid message: {request.error}")
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if context.done():
                return None  # writing to a client that has left
            _LOG.exception("a call failed in a way that nobody foresaw")
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")

    make = grpc.unary_stream_rpc_method_handler if handler.unary_stream else grpc.unary_unary_rpc_method_handler
    return make(call, request_deserializer=deserialize, response_serializer=handler.response_serializer)
