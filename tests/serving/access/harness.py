"""Servers with keys and certificates, and clients that have them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import trustme

from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from serving.access.access import AccessConfig
from serving.access.keys import KeyLimits, add_key
from serving.access.tls import TlsConfig
from tests.fakes import FakeOptions
from tests.serving.harness import ThreadEngine, make_server


class Keys:
    """A file of keys that grows."""

    def __init__(self, folder: Path, text: str = "") -> None:
        self.path = folder / "keys.toml"
        self.path.write_text(text)

    def new(self, tenant: str = "acme", roles: Sequence[str] = ("infer",), **limits: int) -> str:
        key, _ = add_key(self.path, tenant, roles, KeyLimits(**limits))
        return key


class Authority:
    """Signs certificates and writes them where a server or a client reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Files of a chain and its key for localhost."""
        found = self.ca.issue_cert("localhost", "127.0.0.1", common_name=name)
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in found.cert_chain_pems))
        found.private_key_pem.write_to_path(key)
        return chain, key

    def config(self, name: str = "server", *, clients: bool = False) -> TlsConfig:
        return TlsConfig(*self.issue(name), self.ca_file if clients else None)

    def context(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if client is not None:
            context.load_cert_chain(*client)
        return context

    def credentials(self, client: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
        chain, key = (None, None) if client is None else (client[0].read_bytes(), client[1].read_bytes())
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes(), key, chain)


@dataclass
class Guarded:
    server: Any
    link: ThreadEngine
    url: str
    authority: Authority | None

    def openai(self, key: str, client: tuple[Path, Path] | None = None, **settings: Any) -> openai.AsyncOpenAI:
        transport = httpx.AsyncClient(verify=False if self.authority is None else self.authority.context(client))
        return openai.AsyncOpenAI(
            base_url=self.url + "/v1", api_key=key, http_client=transport, **{"max_retries": 0, **settings}
        )

    def http(self, key: str | None = None, client: tuple[Path, Path] | None = None) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        verify: Any = False if self.authority is None else self.authority.context(client)
        return httpx.AsyncClient(base_url=self.url, headers=headers, verify=verify, timeout=20)

    @contextlib.asynccontextmanager
    async def grpc(self, client: tuple[Path, Path] | None = None) -> AsyncIterator[pb_grpc.InferenceStub]:
        port = self.server.address.rpartition(":")[2]
        if self.authority is None:
            channel = grpc.aio.insecure_channel(f"localhost:{port}")
        else:
            channel = grpc.aio.secure_channel(f"localhost:{port}", self.authority.credentials(client))
        async with channel:
            yield pb_grpc.InferenceStub(channel)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@contextlib.asynccontextmanager
async def guarded(
    keys: Keys | None = None,
    tls: TlsConfig | None = None,
    authority: Authority | None = None,
    options: FakeOptions | None = None,
    given: tuple[str, ...] = (),
    **config: Any,
) -> AsyncIterator[Guarded]:
    """given: keys of the command line."""
    access = AccessConfig(None if keys is None else keys.path, tls, given)
    server, links, _ = make_server(options or FakeOptions(), http_port=0, access=access, **config)
    await server.start()
    try:
        await server.wait_ready()
        port = server.http_address.rpartition(":")[2]
        scheme = "http" if tls is None else "https"
        yield Guarded(server, links[0], f"{scheme}://localhost:{port}", authority)
    finally:
        await server.stop()
