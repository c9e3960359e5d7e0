"""The server's composition root and life: bind, load, serve, drain, exit code.

loading    ports bound, health NOT_SERVING, calls get UNAVAILABLE (HTTP: 503)
warming    with `serve_while_warming`: health SERVING, HTTP's /ready says "warming"; steps are small
serving    health SERVING
draining   after SIGTERM or SIGINT: health NOT_SERVING, new work gets UNAVAILABLE, running work has `grace_seconds`
ended      exit code 0 after a drain, 1 when the engine failed, 2 when the model cannot be served
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import EngineInfo, Progress
from jaxinfer.text import Tokenizer, TokenizerError
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving import garbage
from serving.access.access import Access, AccessConfig, AccessError
from serving.engine_process import EXIT_CRASHED, EXIT_OK, EXIT_REFUSED
from serving.errors import unavailable
from serving.filters.contract import Filter, FilterError, load_filter
from serving.filters.inputs import prompt_filter
from serving.frontend.engine_link import EngineEnd, StartedEngine
from serving.frontend.frontend import Frontend
from serving.frontend.watchdog import watch
from serving.gateways.services import GatewayConfig, Gateways
from serving.grpc_server.gate import GrpcGate
from serving.grpc_server.guard import Guard
from serving.grpc_server.options import bracketed, check_free, grpc_options
from serving.grpc_server.servicer import InferenceServicer
from serving.http.api import Api, ApiConfig
from serving.http.http_server import HttpConfig, HttpServer, bind
from serving.observing.ledger import LedgerError
from serving.observing.setup import Observing, ObservingConfig
from serving.observing.tracing import TracingError
from serving.refusal_log import refusal_log
from serving.request import ModelContext, sampling_params
from serving.stable_prefix import StablePrefix
from serving.text_worker import TextWorker

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_WARMING = "steps are small until all programs are compiled (--serve-while-warming)"
_CLOSE_SECONDS = 2.0  # for statuses to reach their clients, and for the engine to leave by itself
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ServerError(Exception):
    """The server cannot start: one sentence, the exit code, and the engine's traceback where a bug is the reason."""

    def __init__(self, message: str, code: int = EXIT_CRASHED, traceback: str = "") -> None:
        super().__init__(message)
        self.code, self.traceback = code, traceback


@dataclass(frozen=True)
class ServerConfig:
    """How to serve; how to run the model is `RuntimeConfig`'s.

    aliases: further names of the model. max_waiting: sequences accepted beyond those that can run. grace_seconds: what
    running work gets after SIGTERM. unready_seconds, stall_seconds: see serving.frontend.watchdog. sampling_defaults:
    what the model's generation config sets, by SamplingParams' names. notes: more to say when the model is ready. seed:
    starts the seeds that requests without one get; None draws each from the system. http_port: None starts no HTTP
    server. gateways: services of others on the gRPC port. input_filter, output_filter: see serving.filters.contract.
    stable_prefix: changes conversations (see serving.stable_prefix).
    """

    host: str = "127.0.0.1"
    port: int = 50051
    name: str | None = None
    aliases: tuple[str, ...] = ()
    max_waiting: int = 1024
    grace_seconds: float = 30.0
    unready_seconds: float = 60.0
    stall_seconds: float = 300.0
    max_message_bytes: int = 16 << 20
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seed: int | None = None
    http_port: int | None = None
    http: HttpConfig = field(default_factory=HttpConfig)
    api: ApiConfig = field(default_factory=ApiConfig)
    observing: ObservingConfig = field(default_factory=ObservingConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    gateways: GatewayConfig = field(default_factory=GatewayConfig)
    input_filter: str | None = None
    output_filter: str | None = None
    stable_prefix: StablePrefix | None = None


class Observer(Protocol):
    """Is told what an operator wants to see."""

    def progress(self, progress: Progress) -> None: ...

    def ready(self, info: EngineInfo, name: str, address: str, http_address: str | None, seconds: float) -> None: ...

    def warmed(self, info: EngineInfo, seconds: float) -> None:
        """After `ready`, when all programs are compiled; not called where they were before."""
        ...

    def draining(self, open_requests: int, grace_seconds: float) -> None: ...

    def ended(self, end: EngineEnd) -> None: ...


class Server:
    """All servers over one frontend. `run` is its whole life; tests use `start`, `wait_ready`, `drain` and `stop`.

    start_engine: returns a started engine. load_tokenizer: runs in a thread while the engine loads; None is a model
    without a tokenizer.
    """

    def __init__(
        self,
        config: ServerConfig,
        start_engine: Callable[[], StartedEngine],
        load_tokenizer: Callable[[], Tokenizer | None],
        observer: Observer,
    ) -> None:
        self.config = config
        self.address = ""  # of the gRPC server
        self.http_address: str | None = None
        self._start_engine = start_engine
        self._load_tokenizer = load_tokenizer
        self._observer = observer
        self._started_engine = False
        self._observing: Observing | None = None
        self._stop_requests: asyncio.Queue[None] = asyncio.Queue()
        self._watches: list[asyncio.Task[None]] = []
        self._http: HttpServer | None = None
        self._gateways = Gateways(config.gateways)

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serves until a signal or the engine's end; returns the exit code. Raises ServerError when it cannot start."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop_requests.put_nowait, None)
        try:
            await self.start()
            if not await self._unless_stopped(self.wait_ready()):
                return EXIT_OK
            garbage.settle()
            if not await self._unless_stopped(asyncio.shield(self.frontend.ended)):
                await self.drain()
                if not self._failed:
                    return EXIT_OK
        finally:
            await self.stop()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        self._observer.ended(self.frontend.ended.result())
        return EXIT_CRASHED

    async def _unless_stopped(self, work: Any) -> bool:
        """Waits for `work`; False when a signal came first, and then the work is cancelled. Raises what it raises."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop_requests.get())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            for waiter in (task, stop):
                waiter.cancel()

    async def start(self) -> None:
        """Binds the ports, starts the engine and answers calls with UNAVAILABLE until it is ready."""
        config = self.config
        with _refusing(AccessError, FilterError):
            config.access.check([config.host])
            access = Access(config.access)
            given = config.input_filter, config.output_filter
            self._input_filter, output_filter = (None if name is None else load_filter(name) for name in given)
        try:
            check_free(config.host, config.port)
        except OSError as error:
            message = f"cannot listen on {config.host}:{config.port}: {error.strerror or error}"
            # No such host: not for another try.
            raise ServerError(message, EXIT_REFUSED if isinstance(error, socket.gaierror) else EXIT_CRASHED) from error
        http = self._bind_http()
        self._open_grpc(access)
        self._started = time.monotonic()
        with _refusing(LedgerError, TracingError):
            observing = Observing(config.observing)
        observing.recorder.refusal_sinks.append(refusal_log(content=config.observing.log_content))
        access.audit_sinks.append(observing.recorder.refused_at_the_gate)
        if observing.audit is not None:
            access.audit_sinks.append(observing.audit.add)
        observing.recorder.metrics.model = config.name or ""
        engine = self._start_engine()
        try:
            self.worker = TextWorker(config.max_message_bytes)
            self.frontend = Frontend(
                config.max_waiting,
                self.worker,
                recorder=observing.recorder,
                access=access,
                output_filter=output_filter,
            )
            await self.frontend.connect([engine], self._observer.progress)
            self.api = Api(self.frontend, config.api)
            await self._add_services()
            await self._server.start()
            if http is not None:
                tls = None if access.tls is None else access.tls.context
                self._http = HttpServer(self.api, http, config.max_message_bytes, tls, config.http)
                await self._http.start()
        except BaseException:
            engine.kill()
            await observing.close()
            if http is not None:
                http.close()
            raise
        self._started_engine, self._observing = True, observing
        self._watches.append(asyncio.create_task(access.watch()))

    def _open_grpc(self, access: Access) -> None:
        config = self.config
        self._server = grpc.aio.server(
            interceptors=[GrpcGate(access), Guard(*self._services)], options=grpc_options(config.max_message_bytes)
        )
        host = bracketed(config.host)
        where = f"{host}:{config.port}"
        try:
            if access.tls is None:
                port = self._server.add_insecure_port(where)
            else:
                port = self._server.add_secure_port(where, access.tls.grpc_credentials())
        except RuntimeError as error:  # taken since it was found to be free
            raise ServerError(f"cannot listen on {where} for gRPC: {error}") from error
        self.address = f"{host}:{port}"

    def _bind_http(self) -> socket.socket | None:
        """Raises ServerError when the port cannot be had."""
        host, port = self.config.host, self.config.http_port
        if port is None:
            return None
        try:
            sock = bind(host, port)
        except OSError as error:
            what = f"cannot listen on {host}:{port} for HTTP: {error.strerror or error}"
            raise ServerError(f"{what} (--http-port takes another port, or none)") from error
        self.http_address = f"{bracketed(host)}:{sock.getsockname()[1]}"
        return sock

    async def _add_services(self) -> None:
        self.servicer = InferenceServicer(self.frontend, self.config.max_message_bytes)
        self._health = health.aio.HealthServicer()
        await self._set_health(_NOT_SERVING)
        pb_grpc.add_InferenceServicer_to_server(self.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._gateways.add_to(self._server, self.frontend)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def wait_ready(self) -> EngineInfo:
        """Waits for engine and tokenizer, then serves. Raises ServerError when either cannot be had."""
        ready, ended = self.frontend.ready, self.frontend.ended
        loading = asyncio.create_task(asyncio.to_thread(self._load_tokenizer))
        try:
            # Whichever fails is told at once; loading a large model takes minutes.
            await _first(ready, ended, loading)
            tokenizer = await loading if loading.done() else None
            await _first(ready, ended)
            if not ready.done():
                end = ended.result()
                raise ServerError(end.reason, EXIT_REFUSED if end.code == EXIT_REFUSED else EXIT_CRASHED, end.traceback)
            info = ready.result()
            tokenizer = tokenizer or await loading
            info = info._replace(notes=(*info.notes, *self.config.notes, *(tokenizer.notes if tokenizer else ())))
            context = model_context(info, tokenizer, self.config, self._input_filter)
            sampling_params({}, context)
        except InvalidRequest as error:
            raise ServerError(f"the model's generation_config.json: {error}", EXIT_REFUSED) from error
        except TokenizerError as error:
            raise ServerError(str(error), EXIT_REFUSED) from error
        finally:
            loading.cancel()
        self.api.open(context)
        self.frontend.open(context)
        await self._set_health(_SERVING)
        self.frontend.recorder.metrics.model = context.name
        limits = self.config.unready_seconds, self.config.stall_seconds
        for link in self.frontend.links:
            self._watches.append(asyncio.create_task(watch(link, *limits, self._tell_ready)))
        seconds = time.monotonic() - self._started
        shown = info if self.frontend.warm.done() else info._replace(notes=(*info.notes, _WARMING))
        self._observer.ready(shown, context.name, self.address, self.http_address, seconds)
        if self.frontend.warming:
            self._watches.append(asyncio.create_task(self._tell_warm()))
        return info

    async def _tell_warm(self) -> None:
        info = await self.frontend.warm
        self._observer.warmed(info, time.monotonic() - self._started)

    async def drain(self) -> None:
        """Lets running work finish for `grace_seconds` (a second signal ends it at once), then aborts it."""
        config, frontend = self.config, self.frontend
        await self._health.enter_graceful_shutdown()
        frontend.drain()
        self._observer.draining(frontend.open_requests, config.grace_seconds)
        waiting = asyncio.wait_for(frontend.idle.wait(), config.grace_seconds)
        try:
            in_time = await self._unless_stopped(waiting)
        except TimeoutError:
            in_time = False
        if in_time:  # the engine, too, has finished; or it has failed, and then the exit code must say so
            await frontend.drained(_CLOSE_SECONDS)
        else:
            frontend.fail_all(unavailable("the server is shutting down and its grace period is over"))

    async def stop(self) -> None:
        """Ends the server and the engine at once, whatever they are doing. Idempotent."""
        if not self._started_engine:
            return
        self._started_engine = False
        for task in self._watches:
            task.cancel()
        try:
            self.frontend.shutdown()
            self.frontend.fail_all(unavailable("the server is shutting down"))
            await self._health.enter_graceful_shutdown()
            closing = [self._server.stop(_CLOSE_SECONDS)]  # returns as soon as the last call is over
            if self._http is not None:
                closing.append(self._http.stop(_CLOSE_SECONDS))
            await asyncio.gather(*closing)
            if self.frontend.ready.done():  # an engine that is still loading does not listen yet
                await self.frontend.wait_for_exits(_CLOSE_SECONDS)
        finally:
            await self.frontend.disconnect()
            self.worker.close()
            if self._observing is not None:
                await self._observing.close()

    # -- help -----------------------------------------------------------------------------------------------------

    @property
    def _services(self) -> tuple[str, ...]:
        return (SERVICE, *self._gateways.services)

    @property
    def _failed(self) -> bool:
        return self.frontend.ended.done() and self.frontend.ended.result().code != EXIT_OK

    async def _set_health(self, status: Any) -> None:
        for name in ("", *self._services):
            await self._health.set(name, status)

    async def _tell_ready(self) -> None:
        """The watchdog's word to grpc.health.v1; HTTP's /ready reads the same flag. A draining server stays so."""
        await self._set_health(_NOT_SERVING if self.frontend.stuck else _SERVING)


@contextlib.contextmanager
def _refusing(*kinds: type[Exception]) -> Iterator[None]:
    """What cannot be served as it was asked for ends the start."""
    try:
        yield
    except kinds as error:
        raise ServerError(str(error), EXIT_REFUSED) from error


async def _first(*waiters: asyncio.Future[Any]) -> None:
    """Waits until one of them is done; cancels none."""
    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)


def model_context(
    info: EngineInfo, tokenizer: Tokenizer | None, config: ServerConfig, input_filter: Filter | None = None
) -> ModelContext:
    """What requests to this engine are checked against."""
    source = random.SystemRandom() if config.seed is None else random.Random(config.seed)
    return ModelContext(
        *(info, config.name or info.model, tokenizer, config.sampling_defaults, lambda: source.getrandbits(64)),
        gives_tokens=config.output_filter is None,
        aliases=config.aliases,
        trusts_chat_templates=config.api.trust_request_chat_template,
        filter_prompt=prompt_filter(input_filter, config.stable_prefix, tokenizer),
    )
