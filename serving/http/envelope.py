"""Around the whole application: what concerns every request and every answer, those refused at the gate too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from serving.http.body import App, Receive, Scope, Send

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s*]+")  # RFC 6454: no path, not even a slash
_METHOD = _HEADER = re.compile(r"\*|[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110's token
EXPOSED = (
    "x-request-id",
    "request-id",
    "x-jaxinfer-ignored",
    "retry-after",
    "retry-after-ms",
)  # headers of ours that a page's script may read


class CorsError(ValueError):
    """A setting that no browser's request could fit: one sentence that begins with the setting's name."""


@dataclass(frozen=True)
class CorsConfig:
    """Which pages of other origins may call (the Fetch standard's CORS). Names, defaults and effect are vLLM's.

    allowed_origins: scheme://host[:port] each, or "*" for any; none: browsers let no page of another origin read an
    answer. Raises CorsError.
    """

    allowed_origins: Sequence[str] = ()
    allowed_methods: Sequence[str] = ("*",)
    allowed_headers: Sequence[str] = ("*",)
    allow_credentials: bool = False

    def __post_init__(self) -> None:
        for name, form, what in (
            ("allowed_origins", _ORIGIN, 'each must be "*" or like "https://example.org:8080", without a path'),
            ("allowed_methods", _METHOD, 'each must be "*" or a method such as "POST"'),
            ("allowed_headers", _HEADER, 'each must be "*" or the name of a header'),
        ):
            for value in getattr(self, name):
                if form.fullmatch(value) is None:
                    raise CorsError(f"{name} has {value!r}; {what}")


def enveloped(app: App, paths: frozenset[str], leaving: Callable[[], bool], cors: CorsConfig) -> App:
    """`app` with: a slash behind one of `paths` taken away, where a redirection would lose a POST's body or a client's
    key; `Connection: close` in every answer that begins while the server is `leaving`; and CORS, where preflights are
    answered before a key is asked for (browsers send none with them) and refusals and errors carry its headers too."""
    if cors.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=tuple(cors.allowed_origins),
            allow_methods=tuple(method if method == "*" else method.upper() for method in cors.allowed_methods),
            allow_headers=tuple(cors.allowed_headers),
            allow_credentials=cors.allow_credentials,
            expose_headers=EXPOSED,
        )
    return _Slashes(_Closing(app, leaving), paths)


class _Slashes:
    def __init__(self, app: App, paths: frozenset[str]) -> None:
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        bare = path.rstrip("/")
        if bare != path and bare in self._paths:
            scope = {**scope, "path": bare, "raw_path": bare.encode()}
        await self._app(scope, receive, send)


class _Closing:
    """A client that keeps its connection would send its next request to a server that is about to end."""

    def __init__(self, app: App, leaving: Callable[[], bool]) -> None:
        self._app, self._leaving = app, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start" and self._leaving():
                headers = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, sending)
