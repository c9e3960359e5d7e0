"""The HTTP server's life: bind, serve, stop. uvicorn runs it on the server's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn

from serving.http.api import Api
from serving.http.app import make_app
from serving.http.envelope import CorsConfig
from serving.http.protocol import BoundedProtocol

KEEP_ALIVE_SECONDS = 75.0  # longer than a gateway keeps an idle connection, so that it never writes into a closed one
_BACKLOG = 2048
_START_SECONDS = 5.0


class _Uvicorn(uvicorn.Server):
    """Signals are the server's: it drains both servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError when the address cannot be had."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Finds clients that vanished without a word; accepted connections inherit it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True)
class HttpConfig:
    """keep_alive_seconds: how long a connection may be idle between two requests; 0 closes it behind each answer."""

    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    cors: CorsConfig = field(default_factory=CorsConfig)


class HttpServer:
    """Serves an Api on a socket. `stop` gives running answers `seconds` to end."""

    def __init__(
        self,
        api: Api,
        sock: socket.socket,
        max_body_bytes: int,
        tls: ssl.SSLContext | None = None,
        settings: HttpConfig | None = None,
    ) -> None:
        settings = settings or HttpConfig()
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a client's malformed request is no warning of ours
        config = uvicorn.Config(
            make_app(api, max_body_bytes, settings.cors, closing=settings.keep_alive_seconds == 0),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]  # seconds of loop.call_later
        )
        config.load()
        config.ssl = tls  # a context of ours, so that a renewed certificate can be loaded into it
        self.config = config
        self._server = _Uvicorn(config)
        self._sock = sock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self._sock]), name="http-door")
        async with asyncio.timeout(_START_SECONDS):
            while not self._server.started and not self._task.done():
                await asyncio.sleep(0.005)
        if self._task.done():
            self._task.result()

    async def stop(self, seconds: float) -> None:
        """Idempotent."""
        if self._task is None:
            self._sock.close()
            return
        self.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True
        task, self._task = self._task, None
        with contextlib.suppress(asyncio.CancelledError):
            await task
