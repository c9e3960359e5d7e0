"""Connections: bad HTTP, limits, slow and vanished clients, and the server's life as HTTP shows it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest

from jaxinfer.messages import Abort, Drain
from protos.open_inference import grpc_service_pb2 as pb
from serving.http import body, protocol
from serving.http.completions import CompletionReply
from serving.http.errors import ApiError
from serving.server import ServerError
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH
from tests.serving.gateways.test_open_inference import stub
from tests.serving.harness import collect, greedy, make_server, run, until
from tests.serving.http.harness import HttpServer, greedy_chat, http_serving

JSON = {"content-type": "application/json"}


def error(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


async def raw(s: HttpServer, data: bytes, *, end: bool = False) -> bytes:
    """What the server sends back for these bytes until it closes the connection."""
    host, port = s.grpc.server.http_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    if end:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def test_unknown_paths_methods_and_bodies():
    async def test():
        async with http_serving(max_message_bytes=10_000) as s:
            assert "no such endpoint" in error(await s.http.get("/v1/nothing"), 404)["message"]
            refused = await s.http.get("/v1/completions")
            assert error(refused, 405)["code"] == "method_not_allowed"
            assert refused.headers["allow"] == "POST"
            post = s.http.post
            assert error(await post("/v1/completions", data={"a": "b"}), 415)["param"] == "Content-Type"
            squeezed = await post("/v1/completions", content=b"x", headers={**JSON, "content-encoding": "gzip"})
            assert error(squeezed, 415)["param"] == "Content-Encoding"
            for broken in (b"{", b'{"n":1.5,"prompt'):  # a fractional integer makes the server read on
                assert error(await post("/v1/completions", content=broken, headers=JSON), 400)["code"] == "invalid_json"
            for nothing in (b"", b" \n"):
                empty = error(await post("/v1/completions", content=nothing, headers=JSON), 400)
                assert (empty["code"], empty["message"]) == ("invalid_json", "the body is not JSON: it is empty")
            long = json.dumps({"prompt": "x" * 10_000}).encode()
            assert error(await post("/v1/completions", content=long, headers=JSON), 413)["code"] == "body_too_large"

            async def chunks():
                for _ in range(20):
                    yield b"x" * 1000

            assert error(await post("/v1/completions", content=chunks(), headers=JSON), 413)
            assert (await s.complete())["choices"][0]["text"] == "abcdefgh"

    run(test())


def test_bytes_that_are_no_http():
    async def test():
        async with http_serving() as s:
            answer = await raw(s, b"\x16\x03\x01 hello\r\n\r\n")  # a TLS client on a plain port
            assert answer.startswith(b"HTTP/1.1 400 Bad Request")
            assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["message"] == "this is not a valid HTTP request"
            many = b"".join(b"x-%d: 1\r\n" % i for i in range(protocol.MAX_HEADERS + 1))
            assert (await raw(s, b"GET /health HTTP/1.1\r\nhost: x\r\n" + many + b"\r\n")).startswith(b"HTTP/1.1 431")
            for long in (b"x: " + b"y" * 300_000, b"y" * 300_000):
                assert (await raw(s, b"GET /health HTTP/1.1\r\nhost: x\r\n" + long)).startswith(b"HTTP/1.1 431")
            assert (await s.http.get("/health")).status_code == 200

    run(test())


def test_slow_heads_and_bodies_end_and_stall_nobody(monkeypatch):
    monkeypatch.setattr(protocol.BoundedProtocol, "head_seconds", 0.3)
    monkeypatch.setattr(body.BodyReader, "seconds", 0.3)

    async def test():
        async with http_serving() as s:
            slow = [
                asyncio.create_task(raw(s, b"GET /health HT")),
                asyncio.create_task(raw(s, b"")),
                asyncio.create_task(
                    raw(s, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                        b"content-length: 100\r\n\r\n{")
                ),
            ]  # fmt: skip
            assert (await s.complete())["choices"][0]["text"] == "abcdefgh"
            for answer in await asyncio.gather(*slow):
                assert answer.startswith(b"HTTP/1.1 408 Request Timeout")
            # An idle connection between two requests is no slow head.
            await asyncio.sleep(0.4)
            assert (await s.complete())["choices"][0]["text"] == "abcdefgh"

    run(test())


def test_a_client_that_reads_nothing_loses_its_connection_and_slows_nobody(monkeypatch, caplog):
    monkeypatch.setattr(protocol.BoundedProtocol, "stall_seconds", 0.3)

    async def test():
        async with http_serving() as s:
            host, port = s.grpc.server.http_address.split(":")
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, (host, int(port)))
                # Several megabytes of log-probabilities, more than any buffer between the two holds.
                request = {"prompt": "x", "temperature": 0, "max_tokens": 4000, "n": 4, "logprobs": 20, "stream": True}
                data = json.dumps(request)
                head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                head += f"content-length: {len(data)}\r\n\r\n"
                await loop.sock_sendall(sock, (head + data).encode())
                await until(lambda: s.grpc.server.frontend.open_requests == 1, "the request runs")
                assert (await s.complete())["choices"][0]["text"] == "abcdefgh"
                await until(lambda: s.grpc.server.frontend.open_requests == 0, "the connection was closed")
            assert "took nothing of its answer" in caplog.text

    run(test())


def test_a_client_that_closes_while_it_waits():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.005)) as s:
            data = json.dumps({**greedy_chat(), "max_tokens": 4000}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            host, port = s.grpc.server.http_address.split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head + b"content-length: %d\r\n\r\n" % len(data) + data)
            await until(lambda: s.grpc.server.frontend.open_requests == 1, "the request runs")
            writer.transport.abort()
            await until(lambda: len(s.grpc.received(Abort)) == 1, "the engine was told")
            assert s.grpc.server.frontend.open_requests == 0

    run(test())


def test_loading_and_ready():
    async def test():
        async with http_serving(FakeOptions(load_seconds=0.3), ready=False) as s:
            for path in ("/health", "/ready"):
                answer = await s.http.get(path)
                assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
            for answer in (await s.http.get("/v1/models"), await s.post("/v1/completions", prompt="x")):
                assert "still loading" in error(answer, 503)["message"]
                assert answer.headers["retry-after"] == "1"
            await s.grpc.server.wait_ready()
            assert (await s.http.get("/health")).json() == (await s.http.get("/ready")).json() == {"status": "ready"}
            card = (await s.http.get("/v1/models")).json()["data"][0]
            assert (card["id"], card["max_model_len"]) == ("fake", 4096)
            assert error(await s.http.get("/v1/models/other"), 404)["code"] == "model_not_found"

    run(test())


def test_every_name_of_the_model_is_taken_and_listed():
    async def test():
        async with http_serving(name="first", aliases=("second", "org/third"), gateways=BOTH) as s:
            cards = (await s.http.get("/v1/models")).json()["data"]
            assert [card["id"] for card in cards] == ["first", "second", "org/third"]
            for name in ("first", "second", "org/third"):
                assert (await s.http.get(f"/v1/models/{name}")).json() == next(c for c in cards if c["id"] == name)
                assert (await s.complete(model=name))["model"] == "first"
                request = greedy()
                request.model = name
                await collect(s.grpc.stub.Generate(request))
                ready = await stub(s.grpc).ModelReady(pb.ModelReadyRequest(name=name))
                assert ready.ready
            said = error(await s.post("/v1/completions", prompt="a", model="fourth"), 404)["message"]
            assert "this server serves 'first' and 'second' and 'org/third' only" in said
            card = cards[0]
            assert (card["owned_by"], card["max_model_len"], card["root"]) == ("jaxinfer", 4096, "fake")
            assert card["permission"][0]["allow_sampling"] is True
            assert card["capabilities"] == {"completion": True, "chat": True, "tools": False, "reasoning": False}
        async with http_serving(tool_call_parser="hermes", reasoning_parser="think") as s:
            card = (await s.http.get("/v1/models/fake")).json()
            assert card["capabilities"] == {"completion": True, "chat": True, "tools": True, "reasoning": True}

    run(test())


def test_drain_finishes_what_runs_and_refuses_what_comes():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.01)) as s:
            running = asyncio.create_task(s.events("/v1/completions", prompt="x", temperature=0, max_tokens=40))
            await until(lambda: s.grpc.server.frontend.open_requests == 1, "the request is in")
            drain = asyncio.create_task(s.grpc.server.drain())
            await until(lambda: bool(s.grpc.received(Drain)), "the engine hears of it")
            refused = await s.post("/v1/completions", prompt="x")
            assert "shutting down" in error(refused, 503)["message"]
            assert "retry-after" in refused.headers
            assert (await s.http.get("/ready")).status_code == 503
            assert (await s.http.get("/health")).json() == {"status": "draining"}
            events = await running
            assert events[-1] == "[DONE]"
            assert (
                "".join(event["choices"][0]["text"] for event in events[:-1])
                == ("abcdefghijklmnopqrstuvwxyz " * 2)[:40]
            )
            await drain

    run(test())


def test_the_end_of_the_grace_period_is_an_error_in_the_stream():
    async def test():
        async with http_serving(FakeOptions(step_seconds=0.01), grace_seconds=0.2) as s:
            running = asyncio.create_task(s.events("/v1/completions", prompt="x", temperature=0, max_tokens=4000))
            await until(lambda: s.grpc.server.frontend.open_requests == 1, "the request is in")
            await s.grpc.server.drain()
            *_, failed, done = await running
            assert done == "[DONE]"
            assert "its grace period is over" in failed["error"]["message"]

    run(test())


def test_a_body_that_has_not_come_when_the_server_stops_is_refused_as_any_other_new_work():
    """uvicorn cancels the task of a request that outlasts the server, and would answer it in its own words."""

    async def test():
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await never.wait()
            raise AssertionError

        scope = {"headers": [(b"content-type", b"application/json"), (b"content-length", b"9")]}
        reader = body.BodyReader(1000)
        reading = asyncio.create_task(reader.read(scope, receive))
        await asyncio.sleep(0)
        reading.cancel("timeout graceful shutdown exceeded")
        with pytest.raises(ApiError, match="shutting down") as refused:
            await reading
        assert refused.value.status == 503
        assert dict(refused.value.headers)[b"retry-after"] == b"1"

    run(test())


def test_both_servers_serve_at_once():
    async def test():
        async with http_serving() as s:
            http, grpc = await asyncio.gather(
                s.complete(max_tokens=20), collect(s.grpc.stub.Generate(greedy(max_tokens=20)))
            )
            assert http["choices"][0]["text"] == grpc.text()
            assert s.grpc.record.addresses == [s.grpc.server.address]

    run(test())


def test_a_taken_port_is_named():
    async def test():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            server, links, _ = make_server(FakeOptions(), http_port=taken.getsockname()[1])
            with pytest.raises(ServerError, match=r"cannot listen on 127.0.0.1:\d+ for HTTP: Address already in use"):
                await server.start()
            assert links == []  # no model was loaded for nothing

    run(test())


def test_without_a_tokenizer_only_token_ids_are_taken():
    async def test():
        async with http_serving(with_tokenizer=False) as s:
            answer = await s.complete(prompt=[5, 6], return_token_ids=True)
            assert answer["choices"][0]["token_ids"] == list(b"abcdefgh")
            for path, request in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", greedy_chat())):
                assert "without a tokenizer" in (await s.refused(path, **request))["message"]
            assert "without a tokenizer" in (await s.refused("/v1/responses", input="x"))["message"]
            assert "without a tokenizer" in (await s.refused("/detokenize", tokens=[1]))["message"]
            assert (
                "without a tokenizer" in (await s.refused("/tokenize", prompt="x", return_token_strs=True))["message"]
            )

    run(test())


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_that_nobody_foresaw_is_one_requests_error(monkeypatch, begun):
    """In front of the first event it is a status, behind it an event."""
    taken = []

    def take(self, prompt, news):
        taken.append(news)
        if begun and len(taken) == 1:
            return original(self, prompt, news)
        raise ZeroDivisionError("a bug")

    original = CompletionReply._take
    monkeypatch.setattr(CompletionReply, "_take", take)

    async def test():
        async with http_serving(FakeOptions(step_seconds=0.005)) as s:
            request = {"prompt": "x", "temperature": 0, "max_tokens": 50}
            if begun:
                *_, failed, done = await s.events("/v1/completions", **request)
                assert done == "[DONE]"
                assert failed["error"]["message"] == "ZeroDivisionError: a bug"
            else:
                for stream in (False, True):
                    answer = await s.post("/v1/completions", **request, stream=stream)
                    assert error(answer, 500)["message"] == "ZeroDivisionError: a bug"
            await until(lambda: s.grpc.server.frontend.open_requests == 0, "nothing is left")
            assert (await s.chat())["choices"][0]["message"]["content"] == "abcdefgh"

    run(test())
