"""The ASGI application: routes, and what is sent for each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving import garbage, json_text
from serving.errors import Refusal, RequestError
from serving.http.api import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    ENDPOINTS,
    INPUT_TOKENS,
    RENDER,
    Api,
    TextReply,
    as_api_error,
)
from serving.http.body import App, BodyReader, ClientGone, Receive, Scope, Send
from serving.http.decode import Body
from serving.http.envelope import CorsConfig, enveloped
from serving.http.errors import ApiError, as_answered, error_response, internal, new_request_id, speaks_anthropic
from serving.http.event_stream import EventStream
from serving.http.gate import HttpGate
from serving.http.information import Information
from serving.http.page import Page
from serving.http.reply import Reply
from serving.http.sessions import HEADER
from serving.http.stored_responses import responses_routes
from serving.observing.record import Origin
from serving.observing.tracing import TRACE_HEADERS

_LOG = logging.getLogger("serving.http")

_NO_CORS = CorsConfig()
_SESSION = HEADER.encode()
_JSON = (b"content-type", b"application/json")
_EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the events
)


def make_app(api: Api, max_body_bytes: int, cors: CorsConfig = _NO_CORS, *, closing: bool = False) -> App:
    """closing: every answer says that its connection ends with it."""
    reader = BodyReader(max_body_bytes)
    information = Information(api)
    routes = [Route(path, Generate(api, reader, path), methods=["POST"]) for path in ENDPOINTS]
    for path in (COMPLETIONS, CHAT):
        answer = Answer(api, reader, path + RENDER, partial(api.render, path))
        routes.append(Route(path + RENDER, answer, methods=["POST"]))
    routes += [
        Route("/tokenize", Answer(api, reader, "/tokenize", api.tokenize), methods=["POST"]),
        Route("/detokenize", Answer(api, reader, "/detokenize", api.detokenize), methods=["POST"]),
        Route(INPUT_TOKENS, Answer(api, reader, INPUT_TOKENS, api.count_input_tokens), methods=["POST"]),
        *responses_routes(api),
        Route(COUNT_TOKENS, Answer(api, reader, COUNT_TOKENS, api.count_tokens), methods=["POST"]),
        Route("/v1/models", information.models, methods=["GET"]),
        Route("/v1/models/{name:path}", information.model, methods=["GET"]),
        Route("/health", information.health, methods=["GET"]),
        Route("/ping", information.health, methods=["GET", "POST"]),
        Route("/load", information.load, methods=["GET"]),
        Route("/server_info", information.server_info, methods=["GET"]),
        Route("/ready", information.ready, methods=["GET"]),
        Route("/version", information.version, methods=["GET"]),
        Route("/metrics", information.metrics, methods=["GET"]),
        Route("/debug/experts", information.experts, methods=["GET"]),
        Route("/debug/pins", information.pins, methods=["GET"]),
        Route("/debug/requests/{name:path}", information.explain, methods=["GET"]),
        Route("/openapi.json", information.openapi, methods=["GET"]),
        *Page().routes(),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(HttpGate, access=api.frontend.access)],
        exception_handlers={HTTPException: _unrouted, RequestError: _failed, Exception: _unforeseen},
    )
    app.router.redirect_slashes = False
    frontend = api.frontend
    paths = frozenset(route.path for route in routes if len(route.path) > 1 and "{" not in route.path)
    return enveloped(app, paths, lambda: closing or frontend.draining or frontend.failing, cors)


class Generate:
    """One of the endpoints that generate: an ASGI application, so that an event costs one `send`."""

    def __init__(self, api: Api, reader: BodyReader, path: str) -> None:
        self._api, self._reader, self._path = api, reader, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Origin("http", self._path, trace=_trace(scope))
        try:
            body = await self._reader.read(scope, receive)
            session = _header(scope, _SESSION)
            reply = await self._api.begin(self._path, body, replace(origin, received=time.monotonic()), session)
        except ClientGone:
            return
        except ApiError as error:
            body = bytearray()  # else it would be there as long as this frame; see `garbage.let_go`
            self._api.frontend.recorder.refused(origin, str(error.status), error)
            await send_error(send, error, self._path)
            return
        watch = asyncio.create_task(_watch(receive, reply))
        try:
            if reply.stream:
                await self._send_events(reply, send)
            else:
                await send_json(send, 200, await reply.result(), reply.headers)
        except RequestError as error:
            await send_error(send, as_api_error(error), self._path)
        finally:
            watch.cancel()
            reply.close()

    async def _send_events(self, reply: Reply, send: Send) -> None:
        stream = EventStream(send, lambda: [*_EVENTS, *reply.headers], reply.sign_of_life)
        try:
            async for data in reply.events():
                await stream.push(data)
        except ApiError:
            raise
        except Exception as error:
            _LOG.exception("a request failed in a way that nobody foresaw")
            if not stream.begun:
                raise internal(error) from error
            await stream.push(reply.failed(internal(error)))
        finally:
            stream.close()
        await stream.end()


async def _watch(receive: Receive, reply: Reply) -> None:
    """Ends the request in the engine when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    # One of its own: an exception keeps the frames of every place that ever raised it.
    reply.fail(Refusal(grpc.StatusCode.CANCELLED, "the client closed its connection"))


def _header(scope: Scope, wanted: bytes) -> str:
    """The header's value; "" where there is none."""
    found = (bytes(value).decode("latin-1") for name, value in scope["headers"] if bytes(name).lower() == wanted)
    return next(found, "")


def _trace(scope: Scope) -> tuple[tuple[str, str], ...]:
    """The W3C headers of distributed traces."""
    found = (
        (bytes(name).decode("latin-1").lower(), bytes(value).decode("latin-1")) for name, value in scope["headers"]
    )
    return tuple((name, value) for name, value in found if name in TRACE_HEADERS)


class Answer:
    """An endpoint that makes one JSON object out of a body."""

    def __init__(self, api: Api, reader: BodyReader, path: str, work: Callable[[Body], Awaitable[TextReply]]) -> None:
        self._api, self._reader, self._path, self._work = api, reader, path, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = await self._work(await self._reader.read(scope, receive))
            headers = list(reply.ignored.headers)
            if speaks_anthropic(self._path):
                headers.append((b"request-id", new_request_id().encode()))
            await send_json(send, 200, reply.body, headers)
        except ClientGone:
            return
        except ApiError as error:
            self._api.frontend.recorder.refused(Origin("http", self._path), str(error.status), error)
            await send_error(send, error, self._path)


# -- sending ----------------------------------------------------------------------------------------------------------


async def send_json(send: Send, status: int, data: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Long answers are encoded and sent in parts; other tasks run in between."""
    parts = [part async for part in json_text.encode_in_parts(data)]
    length = (b"content-length", b"%d" % sum(map(len, parts)))
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": parts[-1], "more_body": False})


async def send_error(send: Send, error: ApiError, path: str) -> None:
    garbage.let_go(error, raised=False)  # with the body, which can have megabytes
    body, headers = as_answered(error, path)
    await send_json(send, error.status, body, headers)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(as_api_error(error), request.url.path)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """uvicorn writes the traceback to the log."""
    return error_response(internal(error), request.url.path)


async def _unrouted(request: Request, error: Exception) -> Response:
    """A path or method that no route has."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    shown = path if len(path) <= 200 else path[:200] + "..."
    if error.status_code == 405:
        found = ApiError(405, f"method is {method}; {shown} does not take it", code="method_not_allowed")
    elif error.status_code == 404:
        found = ApiError(
            404, f"path is {shown!r}; this server has no such endpoint (see /openapi.json)", code="not_found"
        )
    else:
        found = ApiError(error.status_code, str(error.detail))
    answer = error_response(found, path)
    answer.headers.update(error.headers or {})
    return answer
