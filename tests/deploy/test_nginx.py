"""The nginx example, and a real nginx in front of two replicas: one is killed, one is drained, under load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from tests.deploy.files import DEPLOY, free_port, program
from tests.fakes import ALPHABET, write_model
from tests.serving.harness import greedy
from tests.serving.test_processes import ServerProcess, server, wait

CONFIG = DEPLOY / "nginx/jaxinfer.conf"
TOKENS = 100
STEP_SECONDS = 0.01
CLIENTS = 8
TRIES = 10
MAIN = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/jaxinfer.conf;
}}
"""


@dataclass
class Proxy:
    """http, grpc: ports. certificate: what clients trust."""

    folder: Path
    http: int
    grpc: int

    @property
    def certificate(self) -> Path:
        return self.folder / "tls.crt"

    def client(self) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(base_url=f"https://localhost:{self.http}", verify=trusted, timeout=30)


def write(folder: Path, http: tuple[int, int], grpc_: tuple[int, int]) -> Proxy:
    """The example with other addresses, and a certificate of its own."""
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {folder}/tls.key"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-out", f"{folder}/tls.crt"],
        check=True,
        capture_output=True,
    )
    proxy = Proxy(folder, free_port(), free_port())
    replaced = {
        "listen 443 ": f"listen 127.0.0.1:{proxy.http} ",
        "listen 50052 ": f"listen 127.0.0.1:{proxy.grpc} ",
        "127.0.0.1:8001 ": f"127.0.0.1:{http[0]} ",
        "127.0.0.1:8002 ": f"127.0.0.1:{http[1]} ",
        "127.0.0.1:50061 ": f"127.0.0.1:{grpc_[0]} ",
        "127.0.0.1:50062 ": f"127.0.0.1:{grpc_[1]} ",
        "/etc/nginx/tls/jaxinfer.crt": f"{folder}/tls.crt",
        "/etc/nginx/tls/jaxinfer.key": f"{folder}/tls.key",
    }
    text = CONFIG.read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "jaxinfer.conf").write_text(text)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    return proxy


def nginx(folder: Path, *words: str) -> list[str]:
    return [program("nginx", "nginx-light"), "-p", str(folder), "-c", str(folder / "nginx.conf"), *words]


def test_nginx_takes_it(tmp_path):
    program("nginx", "nginx-light")
    write(tmp_path, (8001, 8002), (50061, 50062))
    done = subprocess.run(nginx(tmp_path, "-t"), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "[warn]" in line and "user" not in line]


# -- live -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def replicas(tmp_path, request) -> Iterator[tuple[Proxy, list[ServerProcess]]]:
    """A parameter is more of `jaxinfer serve`'s arguments."""
    program("nginx", "nginx-light")
    model = write_model(tmp_path / "tiny")
    with contextlib.ExitStack() as stack:
        options = {"step_seconds": STEP_SECONDS, "max_num_seqs": 4}
        more = getattr(request, "param", ())
        servers = [stack.enter_context(server(model, *more, **options)) for _ in range(2)]
        grpc_ports = tuple(int(each.address().rpartition(":")[2]) for each in servers)
        http_ports = tuple(int(re.search(r"http://localhost:(\d+)/v1", each.output)[1]) for each in servers)
        proxy = write(tmp_path, http_ports, grpc_ports)
        process = subprocess.Popen(nginx(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with proxy.client() as client:
                wait(lambda: _answers(client), "nginx answers")
            yield proxy, servers
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(20)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Load:
    """Clients that ask one after the other until `enough`. An answer that is not complete is asked for again."""

    proxy: Proxy
    ask: Callable[[httpx.Client], str]
    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # tries that failed
    given_up: int = 0
    enough: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with self.proxy.client() as client:
            while not self.enough.is_set():
                self._until_answered(client)

    def _until_answered(self, client: httpx.Client) -> None:
        for _ in range(TRIES):
            try:
                self.answers.append(self.ask(client))
                return
            except (httpx.HTTPError, Broken) as error:
                self.failures.append(repr(error))
                time.sleep(0.05)
        self.given_up += 1

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.run) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            wait(lambda: len(self.answers) >= CLIENTS, f"the load goes: {self.failures[:3]}")
            yield
            before = len(self.answers)
            wait(lambda: len(self.answers) >= before + 3 * CLIENTS, f"the load goes on: {self.failures[-3:]}")
        finally:
            self.enough.set()
            for thread in threads:
                thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


class Broken(Exception):
    """A stream without its end."""


BODY = {"prompt": "x", "temperature": 0, "max_tokens": TOKENS}
EXPECTED = (ALPHABET * TOKENS)[:TOKENS]


def whole(client: httpx.Client) -> str:
    answer = client.post("/v1/completions", json=BODY)
    answer.raise_for_status()
    return answer.json()["choices"][0]["text"]


def streamed(client: httpx.Client) -> str:
    text, ended = "", False
    with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise Broken(event["error"]["message"])
                text += event["choices"][0]["text"]
    if not ended:
        raise Broken(text)
    return text


def kill(replica: ServerProcess) -> None:
    """The server and its engine at once, as when a machine goes."""
    os.killpg(replica.process.pid, signal.SIGKILL)


def drain(replica: ServerProcess) -> None:
    replica.process.send_signal(signal.SIGTERM)


def number(replica: ServerProcess, name: str) -> float:
    """Of the replica's own metrics, over all labels."""
    port = re.search(r"http://localhost:(\d+)/v1", replica.output)[1]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return sum(float(value) for value in re.findall(rf"^jaxinfer:{name}\{{.*\}} (\S+)$", text, re.M))


def wait_for_the_middle(replica: ServerProcess) -> None:
    """Until it has sent the first tokens of answers that have long to go."""
    finished = tokens = -1.0

    def is_there() -> bool:
        nonlocal finished, tokens
        now, sent = number(replica, "request_success_total"), number(replica, "generation_tokens_total")
        if now != finished:
            finished, tokens = now, sent
        return number(replica, "requests_open") >= 1 and sent >= tokens + 10

    wait(is_there, "the replica is in the middle of answers")


@pytest.mark.longer
def test_a_replica_that_is_killed_costs_no_whole_answer(replicas):
    """nginx asks the other one itself: nothing had been sent to the client yet. The clients try once only."""
    proxy, servers = replicas
    load = Load(proxy, whole)
    with load.going():
        wait_for_the_middle(servers[0])
        kill(servers[0])
        servers[0].process.wait(20)
    assert load.failures == []
    assert set(load.answers) == {EXPECTED}
    log = (proxy.folder / "error.log").read_text()
    assert "prematurely closed" in log or "refused" in log or "reset by peer" in log  # it did have to


@pytest.mark.longer
def test_a_replica_that_is_killed_breaks_streams_and_retries_lose_nothing(replicas):
    proxy, servers = replicas
    load = Load(proxy, streamed)
    with load.going():
        wait_for_the_middle(servers[0])
        kill(servers[0])
        servers[0].process.wait(20)
    assert load.failures  # streams that had begun on it
    assert len(load.failures) <= CLIENTS  # once each: afterwards nginx knows
    assert load.given_up == 0
    assert set(load.answers) == {EXPECTED}


@pytest.mark.longer
@pytest.mark.parametrize("ask", [whole, streamed])
def test_a_replica_that_drains_costs_nothing(replicas, ask):
    """What runs there ends there, what comes goes to the other one: no client tries twice."""
    proxy, servers = replicas
    load = Load(proxy, ask)
    with load.going():
        drain(servers[0])
        assert servers[0].exit_code() == 0
    assert load.failures == []
    assert set(load.answers) == {EXPECTED}


@pytest.mark.longer
def test_streams_pass_as_they_come_and_a_client_that_goes_is_noticed(replicas):
    proxy, servers = replicas
    with proxy.client() as client:
        began = time.monotonic()
        with client.stream("POST", "/v1/completions", json={**BODY, "max_tokens": 3000, "stream": True}) as answer:
            first = next(answer.iter_lines())
            assert time.monotonic() - began < 3000 * STEP_SECONDS / 4
            assert first.startswith("data: ")
            assert answer.headers["content-type"].startswith("text/event-stream")
        wait(
            lambda: sum(number(each, "requests_open") for each in servers) == 0,
            "the engine is told that the client went",
        )
        assert client.get("/metrics").status_code == 404
        assert client.get("/debug/requests/x").status_code == 404
        assert "<title>jaxinfer</title>" in client.get("/").text


@pytest.mark.longer
@pytest.mark.parametrize("replicas", [("--max-waiting=0",)], indirect=True)
def test_full_replicas_say_so_and_serve_on(replicas):
    """429 with a time to wait reaches the client. It is no failure of a replica: if nginx took one out of service for
    it, both would be gone for seconds."""
    proxy, _ = replicas
    statuses: list[int] = []
    waits: list[str | None] = []

    def ask() -> None:
        with proxy.client() as client:
            for _ in range(12):
                answer = client.post("/v1/completions", json=BODY)
                statuses.append(answer.status_code)
                if answer.status_code == 429:
                    waits.append(answer.headers.get("retry-after"))
                    time.sleep(0.05)

    threads = [threading.Thread(target=ask) for _ in range(3 * CLIENTS)]  # two replicas take 8 at a time
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(statuses) == {200, 429}
    assert None not in waits


@pytest.mark.longer
def test_grpc_passes_and_survives_a_replica(replicas):
    proxy, servers = replicas
    trusted = grpc.ssl_channel_credentials(proxy.certificate.read_bytes())
    with grpc.secure_channel(f"localhost:{proxy.grpc}", trusted) as channel:
        stub = pb_grpc.InferenceStub(channel)

        def ask() -> str:
            request = greedy("x", max_tokens=20)
            return "".join(event.delta.text for event in stub.Generate(request, timeout=20) if event.HasField("delta"))

        assert ask() == ALPHABET[:20]
        kill(servers[0])
        servers[0].process.wait(20)
        assert [ask() for _ in range(6)] == [ALPHABET[:20]] * 6
