"""An interceptor around every call of our services: bytes that are no message, and faults that nobody foresaw.

Without it gRPC answers both with UNKNOWN and writes a traceback of the client's mistake into the server's log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving import garbage
from serving.errors import Refusal
from serving.grpc_server.wire import MAX_PARTS, RECEIVED_BYTES, has_too_many_parts

_LOG = logging.getLogger("serving")
_LARGE = 1 << 16  # bytes; smaller messages are parsed on the event loop


@dataclass(frozen=True)
class Malformed:
    """Stands for a request that could not be parsed, until the call can be ended with a status."""

    error: str


@dataclass(frozen=True)
class Unparsed:
    """Stands for a large request: it is parsed beside the event loop."""

    data: bytes
    parse: Callable[[bytes], Any]


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


async def _checked(request: Any) -> Any:
    """The message. Raises Refusal."""
    large = isinstance(request, Unparsed)
    RECEIVED_BYTES.set(len(request.data) if large else None)
    if large:
        request = await asyncio.to_thread(_parse, request)
    if isinstance(request, Malformed):
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the request is no valid message: {request.error}")
    return request


def _parse(request: Unparsed) -> Any:
    # What grpcio has generated: the message's own method, which knows its type.
    owner = getattr(request.parse, "__self__", None)
    descriptor = getattr(owner, "DESCRIPTOR", None)
    if descriptor is not None and has_too_many_parts(request.data, descriptor):
        return Malformed(f"it has more than {MAX_PARTS} fields")
    try:
        return request.parse(request.data)
    except DecodeError as error:
        return Malformed(str(error))


async def _checked_all(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield await _checked(request)


def _forget(error: BaseException, _: Any) -> None:
    """Once a call has ended, when nobody raises its exception any more."""
    garbage.let_go(error, raised=False)


def _wrap(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour = handler.stream_stream or handler.unary_stream or handler.unary_unary

    def deserialize(data: bytes) -> Any:
        parse = handler.request_deserializer
        if parse is None:
            return data
        if len(data) > _LARGE:
            return Unparsed(data, parse)
        try:
            return parse(data)
        except DecodeError as error:
            return Malformed(str(error))

    async def answered(request: Any, context: Any) -> Any:
        try:
            return await behaviour(_checked_all(request) if handler.stream_stream else await _checked(request), context)
        except Refusal as refusal:
            await context.abort(refusal.code, refusal.message, refusal.metadata)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if context.done():
                return None  # writing to a client that has left
            _LOG.exception("a call failed in a way that nobody foresaw")
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")

    async def call(request: Any, context: Any) -> Any:
        given, request = [request], None  # so that this frame, which is still busy when a call is ended, holds it not
        try:
            return await answered(given.pop(), context)
        except BaseException as error:
            garbage.let_go(error)
            # gRPC keeps it in the call, and its frames lead to the call.
            context.add_done_callback(partial(_forget, error))
            raise

    make = grpc.unary_stream_rpc_method_handler if handler.unary_stream else grpc.unary_unary_rpc_method_handler
    if handler.stream_stream:
        make = grpc.stream_stream_rpc_method_handler
    return make(call, request_deserializer=deserialize, response_serializer=handler.response_serializer)
