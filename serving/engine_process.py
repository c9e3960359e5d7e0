"""The engine's process: how it is started, what runs in it, and how it ends.

The two processes watch each other. The server sees the socket close; the engine sees its parent's death on a pipe that
only the parent holds open, and exits even from the middle of a compilation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.messages import Died, EngineInfo, Progress, Ready
from serving import garbage
from serving.frames import SocketInbox, SocketPost

EXIT_OK = 0
EXIT_CRASHED = 1
EXIT_REFUSED = 2  # the model or the configuration cannot be served; nothing is wrong with the program
EXIT_ORPHANED = 3

# Both concern the server, which drains; a terminal sends Ctrl-C to the engine's process as well.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Engine(Protocol):
    """What runs in the process: `jaxinfer.engine.EngineLoop`, or a test's stand-in."""

    info: EngineInfo

    @property
    def warming(self) -> bool:
        """Programs are still being compiled; the engine will say when they are (`Warmed`)."""
        ...

    def run(self, inbox: Any, post: Callable[[Any], None]) -> None: ...

    def describe(self) -> dict[str, Any]:
        """The last plan, as JSON takes it. Called from another thread, while `run` may be stuck."""
        ...


Build = Callable[[Callable[[Progress], None]], Engine]


class EngineRefused(Exception):
    """The model or configuration cannot be served. One sentence; the server prints it without a traceback."""


def build_model_engine(model: str, runtime: RuntimeConfig, progress: Callable[[Progress], None]) -> Engine:
    """Loads the checkpoint folder `model`. Runs in the engine's process only: it imports jax."""
    from checkpoints.files import CheckpointError
    from jaxinfer.llm import build_engine

    try:
        return build_engine(model, runtime, progress)
    except (CheckpointError, ConfigError, NotImplementedError) as error:
        raise EngineRefused(str(error)) from error


def run_engine(sock: socket.socket, build: Build) -> int:
    """Builds the engine and runs it until it is told to stop; returns the exit code. A failure is told as `Died`."""
    post = SocketPost(sock)
    try:
        try:
            engine = build(post)
        except EngineRefused as error:
            post(Died(str(error), ""))
            post.flush()
            return EXIT_REFUSED
        except Exception as error:
            post(Died(f"{type(error).__name__}: {error}", traceback.format_exc()))
            post.flush()
            return EXIT_CRASHED
        garbage.settle()
        post(Ready(engine.info, engine.warming))
        engine.run(SocketInbox(sock, post), post)
        post.flush()
    except ConnectionError:
        return EXIT_ORPHANED  # nobody is left to be told anything
    except Exception:
        with contextlib.suppress(ConnectionError):
            post.flush()
        return EXIT_CRASHED  # the engine has posted `Died` before raising
    return EXIT_OK


def _process_main(sock: socket.socket, inquiries: socket.socket, build: Build) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()

    def answering(progress: Callable[[Progress], None]) -> Engine:
        engine = build(progress)
        threading.Thread(target=_answer, args=(inquiries, engine), name="inquiries", daemon=True).start()
        return engine

    sys.exit(run_engine(sock, answering))


def _answer(inquiries: socket.socket, engine: Engine) -> None:
    """A byte in, the engine's last plan out as a line: a thread of its own, for when the engine's is stuck."""
    while inquiries.recv(1):
        inquiries.sendall(json.dumps(engine.describe()).encode() + b"\n")


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(EXIT_ORPHANED)


class EngineProcess:
    """The server's handle. The process is spawned, not forked: it starts clean of the server's threads."""

    def __init__(self, build: Build) -> None:
        self.sock, self._child_sock = socket.socketpair()
        self._inquiries, self._child_inquiries = socket.socketpair()
        self._inquiries.setblocking(False)
        context = multiprocessing.get_context("spawn")
        children = (self._child_sock, self._child_inquiries)
        self._process = context.Process(target=_process_main, args=(*children, build), name="jaxinfer-engine")

    @classmethod
    def started(cls, build: Build) -> EngineProcess:
        process = cls(build)
        process.start()
        return process

    def start(self) -> None:
        # Blocked signals stay blocked in the child until it ignores them, so that an early Ctrl-C cannot kill it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._child_sock.close()  # else the end of the process would not close the connection
            self._child_inquiries.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def wait(self, timeout: float) -> int | None:
        """The exit code (negative: the signal that killed it), or None after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._process.exitcode is None and loop.time() < deadline:
            await asyncio.sleep(0.01)
        return self._process.exitcode

    async def describe(self, timeout: float) -> dict[str, Any] | None:
        """See EngineLink. None also when the interpreter of the process is held up, or the process stopped."""
        loop = asyncio.get_running_loop()
        answer = b""
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_sendall(self._inquiries, b"?")
                while not answer.endswith(b"\n"):
                    part = await loop.sock_recv(self._inquiries, 1 << 16)
                    if not part:
                        return None
                    answer += part
            found: dict[str, Any] = json.loads(answer)
        except (OSError, ValueError):  # TimeoutError is an OSError; half an answer is no JSON
            return None
        return found

    def kill(self) -> None:
        """Ends the process at once if it still runs."""
        if self._process.pid is not None and self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._inquiries.close()


def describe_exit(code: int | None) -> str:
    if code is None:
        return "the engine process closed its connection"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the engine process was killed by {name}"
    return f"the engine process ended with code {code}"
