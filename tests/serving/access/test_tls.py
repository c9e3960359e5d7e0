"""TLS and mTLS on both servers, with clients that check the certificate, and renewal without a restart."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.access.access import AccessConfig
from serving.access.tls import TlsConfig, is_loopback
from serving.server import ServerError
from tests.fakes import FakeOptions
from tests.serving.access.harness import Authority, Guarded, Keys, bearer, guarded
from tests.serving.harness import collect, greedy, make_server, run, status

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "fake", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def test_tls_with_keys_on_every_address(authority: Authority, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    key = keys.new()

    async def test() -> None:
        async with guarded(keys, authority.config(), authority, name="fake", host="0.0.0.0") as s, s.grpc() as stub:
            client = s.openai(key)
            answer = await client.chat.completions.create(**CHAT)
            assert answer.choices[0].message.content == "abcdefgh"
            stream = await client.chat.completions.create(**CHAT, stream=True)
            text = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(text) == "abcdefgh"
            assert (await collect(stub.Generate(greedy(), metadata=bearer(key)))).text() == "abcdefgh"
            assert (await status(stub.Generate(greedy()))).code() == grpc.StatusCode.UNAUTHENTICATED
            plain = httpx.AsyncClient(base_url=s.url.replace("https", "http"))
            async with plain:
                with pytest.raises(httpx.HTTPError):
                    await plain.get("/health")
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                async with httpx.AsyncClient(base_url=s.url) as stranger:
                    await stranger.get("/health")
            async with grpc.aio.insecure_channel(s.server.address) as channel:
                info = channel.unary_unary("/jaxinfer.v1.Inference/GetModelInfo")
                with pytest.raises(grpc.aio.AioRpcError):
                    await info(b"", timeout=5)

    run(test())


def test_mtls(authority: Authority, tmp_path: Path) -> None:
    own = authority.issue("client")
    foreign = Authority(tmp_path)
    foreign_cert = foreign.issue("foreign")

    async def test() -> None:
        async with guarded(None, authority.config("mtls", clients=True), authority, name="fake") as s:
            answer = await s.openai("none", own).chat.completions.create(**CHAT)
            assert answer.choices[0].message.content == "abcdefgh"
            async with s.grpc(own) as stub:
                assert (await collect(stub.Generate(greedy()))).text() == "abcdefgh"
            for wrong in (None, foreign_cert):
                with pytest.raises(openai.APIConnectionError):
                    await s.openai("none", wrong).chat.completions.create(**CHAT)
                async with s.grpc(wrong) as stub:
                    error = await status(stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=5))
                    assert error.code() == grpc.StatusCode.UNAVAILABLE

    run(test())


def test_a_renewed_certificate_is_taken_up(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.access.access._REFRESH_SECONDS", 0.02)
    config = authority.config("renewed")

    async def serials(s: Guarded) -> tuple[str, str]:
        http = await asyncio.to_thread(_serial, s.url.rpartition(":")[2], authority, "http/1.1")
        return http, await asyncio.to_thread(_serial, s.server.address.rpartition(":")[2], authority, "h2")

    async def test() -> None:
        async with guarded(None, config, authority) as s:
            first = await serials(s)
            assert first[0] == first[1]
            config.key.write_text("no key")
            await asyncio.sleep(0.1)
            assert await serials(s) == first
            authority.issue("renewed")
            for _ in range(200):
                now = await serials(s)
                if now[0] != first[0] and now[1] != first[1]:
                    break
                await asyncio.sleep(0.02)
            assert now[0] == now[1] != first[0]
            async with s.http() as client:
                assert (await client.get("/health")).status_code == 200

    run(test())


def _serial(port: str, authority: Authority, protocol: str) -> str:
    import socket

    context = authority.context()
    context.set_alpn_protocols([protocol])
    with (
        socket.create_connection(("127.0.0.1", int(port)), 5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        found = tls.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")  # they are what is refused
def test_old_tls_is_refused(authority: Authority) -> None:
    async def test() -> None:
        async with guarded(None, authority.config("old"), authority) as s:
            context = authority.context()
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
            for address in (s.url.rpartition(":")[2], s.server.address.rpartition(":")[2]):
                with pytest.raises(OSError):  # an SSLError, or the connection is closed at once
                    await asyncio.open_connection("127.0.0.1", int(address), ssl=context, server_hostname="localhost")

    run(test())


def test_what_is_no_certificate_is_refused_at_start(authority: Authority, tmp_path: Path) -> None:
    chain, key = authority.issue("a")
    _, other = authority.issue("b")
    (tmp_path / "junk").write_text("junk")
    cases = {
        TlsConfig(chain, tmp_path / "none"): "none cannot be read",
        TlsConfig(chain, other): "are no certificate and its key",
        TlsConfig(tmp_path / "junk", key): "are no certificate and its key",
        TlsConfig(chain, key, tmp_path / "junk"): "are no certificate and its key",
    }

    async def test() -> None:
        for config, message in cases.items():
            server, links, _ = make_server(FakeOptions(), http_port=0, access=AccessConfig(None, config))
            with pytest.raises(ServerError, match=message) as error:
                await server.start()
            assert error.value.code == 2
            assert not links

    run(test())


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.1", "nowhere.invalid"))
