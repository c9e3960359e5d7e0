"""A server as an operator runs it, with keys, TLS and everything that records: what nobody may find anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from tests.fakes import write_model
from tests.serving.access.harness import Authority, Keys, bearer
from tests.serving.harness import collect, greedy, status

pytestmark = pytest.mark.longer

ROOT = Path(__file__).resolve().parents[3]
CODE = "import sys; from tests.fakes import main; sys.exit(main(sys.argv[1:]))"
ASKED, ANSWERED = "kanarienfrage", "kanarienantwort "


class Collector:
    """Takes OTLP over gRPC and keeps the bytes."""

    def __init__(self) -> None:
        self.got = b""
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._take)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _take(self, data: bytes, _: grpc.ServicerContext) -> bytes:
        self.got += data
        return b""

    def close(self) -> None:
        self._server.stop(0)


@contextlib.contextmanager
def live(
    tmp_path: Path, *arguments: str, **options: object
) -> Iterator[tuple[subprocess.Popen[bytes], Path, str, str]]:
    """The process, its output, and the two servers' addresses."""
    model = write_model(tmp_path / "tiny")
    output = tmp_path / "output"
    command = [sys.executable, "-c", CODE, json.dumps(options), "serve", str(model), "--port", "0", *arguments]
    with output.open("wb") as file:
        environment = {**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 30
        while (found := re.search(r"on (\S+) \(gRPC\) and (https?://\S+)/v1", output.read_text())) is None:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.02)
        yield process, output, found[1].replace("0.0.0.0", "localhost"), found[2]
    finally:
        process.kill()
        process.wait()


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxinfer", "generate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40)


def test_nobodys_text_and_no_key_is_anywhere(tmp_path: Path) -> None:
    authority, keys, collector = Authority(tmp_path), Keys(tmp_path), Collector()
    infer, admin = keys.new(), keys.new("ops", ["admin"])
    wrong = infer[:-8] + "verkehrt"
    files = {name: tmp_path / f"{name}.jsonl" for name in ("ledger", "audit")}
    chain, private = authority.issue("server")
    arguments = [
        *("--host", "0.0.0.0", "--api-keys", str(keys.path), "--tls-cert", str(chain), "--tls-key", str(private)),
        *("--ledger", str(files["ledger"]), "--audit-log", str(files["audit"])),
        *("--log-format", "json", "--log-level", "debug"),
        *("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.port}"),
    ]
    with live(tmp_path, *arguments, script=ANSWERED) as (process, output, address, url):
        metrics = asyncio.run(asyncio.wait_for(drive(address, url, authority, infer, admin, wrong), 40))
        key_file = tmp_path / "key"
        key_file.write_text(infer + "\n")
        client = ["--server", address, "--tls-ca", str(authority.ca_file)]
        good = generate(*client, "--api-key-file", str(key_file), "--temperature", "0", "--max-tokens", "15", ASKED)
        assert (good.returncode, good.stdout) == (0, ANSWERED.strip() + "\n"), good.stderr
        refused = generate(*client, ASKED)
        assert refused.returncode == 1
        assert "no API key is given" in refused.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    collector.close()
    said = output.read_text()
    places = {
        "log": said,
        "ledger": files["ledger"].read_text(),
        "audit": files["audit"].read_text(),
        "metrics": metrics,
        "traces": collector.got.decode("latin-1"),
    }
    for place, text in places.items():
        assert len(text) > 200, f"{place} is as good as empty"
        assert ("ops" if place == "audit" else "acme") in text, place
        for canary in ("kanarien", infer.split("-", 2)[2], admin.split("-", 2)[2], "verkehrt"):
            assert canary not in text, (place, canary, [line for line in text.splitlines() if canary in line][:3])
    log = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert {"serving.access", "serving.audit"} <= {event["logger"] for event in log}
    assert {event["tenant"] for event in log if event["logger"] == "serving.access"} == {"acme"}
    sums = dict.fromkeys(("prompt", "completion", "cached"), 0)
    for line in places["ledger"].splitlines():
        for kind in sums:
            sums[kind] += json.loads(line)[f"{kind}_tokens"]
    # The one that jaxinfer generate asked came after the metrics were read.
    last = json.loads(places["ledger"].splitlines()[-1])
    for kind, total in sums.items():
        found = re.search(rf'tenant_tokens_total\{{.*kind="{kind}".*tenant="acme"\}} (\S+)', metrics) or re.search(
            rf'tenant_tokens_total\{{.*tenant="acme".*kind="{kind}".*\}} (\S+)', metrics
        )
        assert found is not None, metrics
        assert float(found[1]) == total - last[f"{kind}_tokens"], kind


async def drive(address: str, url: str, authority: Authority, infer: str, admin: str, wrong: str) -> str:
    """Requests of both servers, good and bad; what /metrics says behind them."""
    url = re.sub(r"//[^:/]+:", "//localhost:", url)
    transport = httpx.AsyncClient(verify=authority.context())
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key=infer, max_retries=0, http_client=transport)
    messages = [{"role": "system", "content": ASKED}, {"role": "user", "content": ASKED}]
    answer = await client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=15, stop=[ASKED + "!"]
    )
    assert answer.choices[0].message.content == ANSWERED.strip()
    stream = await client.completions.create(model="tiny", prompt=ASKED, max_tokens=20, temperature=0, stream=True)
    assert "kanarien" in "".join([chunk.choices[0].text async for chunk in stream])
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="tiny", prompt=ASKED, max_tokens=-1, extra_body={ASKED: ASKED})
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key=wrong).completions.create(model=ASKED, prompt=ASKED)
    with pytest.raises(openai.PermissionDeniedError):
        await client.with_options(api_key=admin).completions.create(model=ASKED, prompt=ASKED)
    headers = {"authorization": f"Bearer {wrong}"}
    await transport.get(f"{url}/{ASKED}?{ASKED}", headers=headers)
    await transport.get(f"{url}/debug/requests/{ASKED}", headers={"authorization": f"Bearer {admin}"})
    port = address.rpartition(":")[2]
    async with grpc.aio.secure_channel(f"localhost:{port}", authority.credentials()) as channel:
        stub = pb_grpc.InferenceStub(channel)
        found = await collect(stub.Generate(greedy(ASKED, max_tokens=15), metadata=bearer(infer)))
        assert found.text() == ANSWERED.strip()
        await status(stub.Generate(greedy(ASKED, stop=[ASKED] * 99), metadata=bearer(infer)))
        await status(stub.Generate(greedy(ASKED), metadata=bearer(wrong)))
        await stub.Abort(pb.AbortRequest(request_id=ASKED), metadata=bearer(infer))
    metrics = (await transport.get(f"{url}/metrics", headers={"authorization": f"Bearer {admin}"})).text
    await transport.aclose()
    return metrics


def test_keys_off_loopback_need_tls(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    model = write_model(tmp_path / "tiny")
    command = [sys.executable, "-c", CODE, "{}", "serve", str(model), "--port", "0", "--host", "0.0.0.0"]
    refused = subprocess.run(
        [*command, "--api-keys", str(keys.path)], cwd=ROOT, capture_output=True, text=True, timeout=40
    )
    assert refused.returncode == 2
    assert "TLS is needed (--tls-cert and --tls-key)" in refused.stderr
