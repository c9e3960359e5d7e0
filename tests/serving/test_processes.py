"""The server as an operator runs it: its own process, the (fake) engine in another, signals and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from tests.fakes import write_model
from tests.serving.harness import full_pipe, greedy

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from tests.fakes import main; sys.exit(main(sys.argv[1:]))"
SECONDS = 20.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@dataclass
class ServerProcess:
    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def address(self) -> str:
        wait(lambda: "Try:" in self.output, f"the server is ready: {self.output}")
        found = re.search(r"on (127\.0\.0\.1:\d+)", self.output)
        assert found is not None
        return found[1]

    def engine_pid(self) -> int:
        """The child that runs the engine; another child is multiprocessing's resource tracker."""
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = stat.read_text().rpartition(")")[2].split()[1]
                command = (stat.parent / "cmdline").read_bytes()
            except OSError:
                continue  # it ended in the meantime
            if int(parent) == self.process.pid and b"spawn_main" in command:
                pids.append(int(stat.parent.name))
        assert len(pids) == 1, pids
        return pids[0]

    def exit_code(self) -> int:
        return self.process.wait(SECONDS)


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def server(model: Path, *arguments: str, **options: object) -> Iterator[ServerProcess]:
    """`jaxinfer serve` with the fake engine; keywords are FakeOptions'. Its own process group, as from a shell."""
    command = [sys.executable, "-c", CODE, json.dumps(options), "serve", str(model), "--port", "0", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    running = ServerProcess(process)
    reader = threading.Thread(target=running.read, daemon=True)
    reader.start()
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the engine, too, should a test have failed to end it
        process.wait(SECONDS)
        reader.join(SECONDS)
        process.stdout.close()


class Stream(threading.Thread):
    """A Generate call in a thread of its own: its text and the status it ended with."""

    def __init__(self, address: str, request: pb.GenerateRequest) -> None:
        super().__init__(daemon=True)
        self.text = ""
        self.error: grpc.RpcError | None = None
        self._channel = grpc.insecure_channel(address)
        self._call = pb_grpc.InferenceStub(self._channel).Generate(request, timeout=SECONDS)
        self.start()

    def run(self) -> None:
        try:
            for event in self._call:
                self.text += event.delta.text
        except grpc.RpcError as error:
            self.error = error

    def begun(self) -> Stream:
        wait(lambda: self.text != "" or self.error is not None, "the stream begins")
        return self

    def ended(self) -> Stream:
        self.join(SECONDS)
        assert not self.is_alive()
        self._channel.close()
        return self


def new_request(address: str) -> grpc.RpcError:
    return Stream(address, greedy()).ended().error


def test_sigterm_drains_and_exits_with_0(model):
    with server(model, "--served-model-name", "mine", step_seconds=0.01) as s:
        address = s.address()
        engine = s.engine_pid()
        stream = Stream(address, greedy(max_tokens=100)).begun()
        s.process.send_signal(signal.SIGTERM)
        wait(lambda: "stopping" in s.output, "the drain begins")
        refused = new_request(address)
        assert refused.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in refused.details()
        assert stream.ended().error is None
        assert len(stream.text) == 100
        assert s.exit_code() == 0
        assert not alive(engine)
    port = address.rpartition(":")[2]
    for expected in (  # what is shown where there is no terminal
        f"mine  {model}",
        "loading weights: 0.0 MiB in ",
        "compiling: 2 programs in ",
        "· max_model_len is 4096, the model's own",
        "KV pool      16,000 tokens\n",
        "backends     paged_attention: fake",
        f'    jaxinfer generate --server localhost:{port} --chat "What is 347 + 586?"',
        "    curl localhost:",
        "stopping: waiting up to 30 s for 1 running request; a second signal ends them",
    ):
        assert expected in s.output
    assert "\x1b" not in s.output
    assert "to compile" not in s.output  # of what was compiled only a debugger wants to know


def test_ctrl_c_reaches_both_processes_and_leaves_a_grace_period(model):
    """A terminal sends SIGINT to the whole group; the engine must not die of it."""
    with server(model, "--grace-seconds", "0.5", step_seconds=0.01) as s:
        address = s.address()
        short = Stream(address, greedy(max_tokens=20)).begun()
        long = Stream(address, greedy(max_tokens=4000)).begun()
        os.killpg(s.process.pid, signal.SIGINT)
        assert short.ended().error is None
        assert len(short.text) == 20
        error = long.ended().error
        assert error is not None
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "the server is shutting down and its grace period is over",
        )
        assert s.exit_code() == 0
    assert "Traceback" not in s.output


def test_sigterm_while_loading(model):
    with server(model, load_seconds=1000) as s:
        wait(lambda: "tiny" in s.output, "the server starts")
        wait(lambda: _engine_started(s), "the engine starts")
        engine = s.engine_pid()
        s.process.send_signal(signal.SIGTERM)
        assert s.exit_code() == 0
        assert not alive(engine)


def _engine_started(s: ServerProcess) -> bool:
    try:
        return s.engine_pid() > 0
    except AssertionError:
        return False


def test_engine_crash_ends_streams_and_the_server_with_1(model):
    with server(model, step_seconds=0.01, crash_at_step=20) as s:
        streams = [Stream(s.address(), greedy(max_tokens=100)) for _ in range(3)]
        for stream in streams:
            error = stream.ended().error
            assert error is not None
            assert error.code() == grpc.StatusCode.INTERNAL
            assert "the fake engine crashes, as it was told to" in error.details()
        assert s.exit_code() == 1
    assert "Traceback" in s.output  # the engine's, for the operator
    assert "in _step" in s.output


def test_killed_engine_ends_streams_and_the_server_with_1(model):
    with server(model, step_seconds=0.01) as s:
        stream = Stream(s.address(), greedy(max_tokens=4000)).begun()
        os.kill(s.engine_pid(), signal.SIGKILL)
        error = stream.ended().error
        assert error is not None
        assert error.code() == grpc.StatusCode.INTERNAL
        assert "the engine process was killed by SIGKILL" in error.details()
        assert s.exit_code() == 1
    assert s.lines[-1].strip() == "jaxinfer serve: error: the engine failed: the engine process was killed by SIGKILL"


@pytest.mark.longer
def test_stopped_engine_counts_as_failed(model):
    """A process that is there but does nothing, as after a device that never answers."""
    with server(model, "--stall-seconds", "0.5", step_seconds=0.01) as s:
        stream = Stream(s.address(), greedy(max_tokens=4000)).begun()
        engine = s.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        error = stream.ended().error
        assert error is not None
        assert "said nothing for 0.5 s" in error.details()
        assert s.exit_code() == 1
        assert not alive(engine)


@pytest.mark.parametrize("options", [{}, {"hang_at_step": 5}, {"load_seconds": 1000}], ids=["idle", "hung", "loading"])
def test_the_engine_exits_when_the_server_is_killed(model, options):
    with server(model, **options) as s:
        if "load_seconds" in options:
            wait(lambda: _engine_started(s), "the engine starts")
            time.sleep(0.5)  # past its imports, into the load
        else:
            address = s.address()
        if "hang_at_step" in options:
            Stream(address, greedy(max_tokens=100)).begun()
        engine = s.engine_pid()
        s.process.kill()
        wait(lambda: not alive(engine), "the engine exits")


@pytest.mark.longer
def test_output_that_nobody_reads_stops_nothing(model):
    """Its pipe is full before the first word: it serves all the same, and ends when it is told to."""
    reading, writing = full_pipe()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-c", CODE, "{}", "serve", str(model), "--port", str(port), "--http-port", "none"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=writing)
    os.close(writing)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = pb_grpc.InferenceStub(channel).Generate
            for _ in range(3):
                assert list(ask(greedy(max_tokens=4), wait_for_ready=True, timeout=SECONDS))
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        os.close(reading)


def test_the_server_process_imports_no_jax(model):
    """Nor optax or transformers: start-up time, and memory that an accelerator's library would take."""
    code = (
        "import sys; from serving.commands.console import ServeConsole; import os, signal\n"
        "def ready(self, info, name, address, http_address, seconds):\n"
        "    found = {m.partition('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'flax', 'optax', 'transformers',"
        " 'torch', 'numpy', 'orbax'}\n"
        "    print('FOUND', sorted(found), flush=True); os.kill(os.getpid(), signal.SIGTERM)\n"
        "ServeConsole.ready = ready\n" + CODE
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "{}", "serve", str(model), "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "FOUND []" in done.stdout
