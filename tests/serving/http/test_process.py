"""`jaxinfer serve` with both servers, as an operator runs it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from tests.fakes import write_model
from tests.serving.test_processes import CODE, ROOT, server, wait


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


def base_url(running) -> str:
    running.address()
    found = re.search(
        r"ready after .* s: tiny on 127\.0\.0\.1:\d+ \(gRPC\) and (http://localhost:\d+)/v1 ", running.output
    )
    assert found is not None, running.output
    return found[1]


def test_any_free_ports_are_taken_for_both_servers(model):
    with server(model) as running:
        models = httpx.get(base_url(running) + "/v1/models").json()
        assert [entry["id"] for entry in models["data"]] == ["tiny"]


def test_sigterm_lets_a_stream_finish(model):
    with server(model, step_seconds=0.01) as running:
        url = base_url(running)
        body = {"prompt": "x", "temperature": 0, "max_tokens": 100, "stream": True}
        lines: list[str] = []

        def read() -> None:
            with httpx.stream("POST", url + "/v1/completions", json=body, timeout=20) as response:
                lines.extend(response.iter_lines())

        thread = threading.Thread(target=read)
        thread.start()
        wait(lambda: bool(lines), "the stream begins")
        running.process.send_signal(signal.SIGTERM)
        wait(lambda: "stopping:" in running.output, "the server drains")
        assert "1 running request;" in running.output
        assert httpx.post(url + "/v1/completions", json=body).status_code == 503
        thread.join(20)
        assert lines[-2] == "data: [DONE]"
        assert '"finish_reason":"length"' in lines[-4]
        assert running.exit_code() == 0


def test_an_engine_that_dies_ends_the_stream_and_the_server(model):
    with server(model, crash_at_step=20, step_seconds=0.01) as running:
        body = {"prompt": "x", "temperature": 0, "max_tokens": 100, "stream": True}
        answer = httpx.post(base_url(running) + "/v1/completions", json=body, timeout=20)
        assert '"error":{"message":"the engine failed: RuntimeError' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        assert running.exit_code() == 1
        assert running.output.count("Traceback") == 1  # the engine's own


def test_no_http_server(model):
    with server(model, "--http-port", "none") as running:
        running.address()
        assert "http" not in running.output


def serve(model, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", CODE, "{}", "serve", str(model), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


def test_a_taken_port_and_a_wrong_one(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = serve(model, "--port", "0", "--http-port", str(port))
        assert refused.returncode == 1
        said = f"cannot listen on 127.0.0.1:{port} for HTTP: Address already in use (--http-port takes another port, "
        assert refused.stderr.rstrip().endswith(said + "or none)")
    refused = serve(model, "--http-port", "70000")
    assert refused.returncode == 2
    assert "--http-port is '70000'; it must be a port from 0 to 65535, or none" in refused.stderr
