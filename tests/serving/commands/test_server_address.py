"""`--server`: what is no address, and what is said of whoever answers there instead of a gRPC server of ours."""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.access.access import AccessConfig
from serving.access.tls import TlsConfig
from serving.commands import evaluate, generate
from serving.commands.server_address import server_address
from tests.serving import harness
from tests.serving.commands.background import Background

NO_CACHE = Path("/nonexistent")


@contextlib.contextmanager
def peer(answer: bytes) -> Iterator[str]:
    """Somebody who says `answer` to whatever is said to him."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError), listener.accept()[0] as caller:
                    caller.settimeout(1.0)
                    caller.recv(1 << 16)
                    caller.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    "text", ["localhost:50051", "10.0.0.7:1", "[::1]:50051", "dns:///host:1", "unix:/run/socket", "a_b.example:65535"]
)
def test_addresses(text):
    assert server_address(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://localhost:8000", "gRPC port, no URL: for instance localhost:50051"),
        ("HTTP://10.0.0.7:8000/v1", "gRPC port, no URL: for instance 10.0.0.7:50051"),
        ("https://host.example", "gRPC port and --tls-ca, no URL: for instance host.example:50051"),
        ("grpc://host:1", "no URL: for instance host:50051"),
        ("localhost", "for instance localhost:50051"),
        ("localhost:", "HOST:PORT"),
        (":50051", "HOST:PORT"),
        ("localhost:0", "HOST:PORT"),
        ("localhost:65536", "HOST:PORT"),
        ("localhost:50051/v1", "HOST:PORT"),
        ("::1:50051", "HOST:PORT"),
        ("", "HOST:PORT"),
    ],
)
def test_what_is_no_address(text, said):
    with pytest.raises(argparse.ArgumentTypeError) as found:
        server_address(text)
    assert said in str(found.value)
    assert str(found.value).startswith("it must be HOST:PORT")


HTTP_1 = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"


@pytest.mark.parametrize("command", [generate, evaluate])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (HTTP_1, "is an HTTP port; --server takes the gRPC port, which `serve` names when it is ready"),
        (TLS_ALERT, "does not speak plain gRPC; a server with TLS needs --tls-ca"),
        (b"220 mail.example ESMTP\r\n", "does not speak plain gRPC"),
    ],
)
def test_who_answers_instead(command, answer, said, capsys):
    with peer(answer) as address:
        arguments = ["--server", address, *(["x"] if command is generate else [])]
        assert command.main(arguments, hub_cache=NO_CACHE) == 1
    error = capsys.readouterr().err
    assert f"{address} {said}" in error
    assert error.count("\n") == 1
    assert "http2" not in error.lower()


def test_nobody_answers(capsys):
    assert generate.main(["--server", "127.0.0.1:1", "x"], hub_cache=NO_CACHE) == 1
    assert capsys.readouterr().err == (
        "jaxinfer generate: error: no server answers at 127.0.0.1:1: connection refused\n"
    )


def test_a_server_without_tls_is_asked_with_tls(tmp_path, capsys):
    authority = tmp_path / "ca.pem"
    authority.write_text("no certificate")
    background = Background(harness.serving)
    try:
        arguments = ["--server", background.address, "--tls-ca", str(authority), "x"]
        assert generate.main(arguments, hub_cache=NO_CACHE) == 2
        assert "it must be a file with a certificate in PEM" in capsys.readouterr().err
        trustme = pytest.importorskip("trustme")
        trustme.CA().cert_pem.write_to_path(authority)
        assert generate.main(arguments, hub_cache=NO_CACHE) == 1
        assert f"the server at {background.address} does not use TLS; leave out --tls-ca" in capsys.readouterr().err
        # The server's own words are passed on.
        assert generate.main(["--server", background.address, "--top-p", "7", "x"], hub_cache=NO_CACHE) == 2
        assert "top_p is 7.0; it must be" in capsys.readouterr().err
    finally:
        background.close()


def test_a_server_with_tls_is_asked_without_it_or_with_another_authority(tmp_path, capsys):
    trustme = pytest.importorskip("trustme")
    authority, other = trustme.CA(), trustme.CA()
    own = authority.issue_cert("127.0.0.1", "localhost")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    tls = TlsConfig(tmp_path / "cert.pem", tmp_path / "key.pem", None)
    background = Background(lambda: harness.serving(access=AccessConfig(tls=tls)))

    def ask(*arguments: str) -> tuple[int, str]:
        code = generate.main(["--server", background.address, *arguments, "x"], hub_cache=NO_CACHE)
        return code, capsys.readouterr().err.partition("error: ")[2]

    try:
        assert ask() == (1, f"{background.address} does not speak plain gRPC; a server with TLS needs --tls-ca\n")
        said = f"the certificate of {background.address} is not signed by --tls-ca, or it names another host\n"
        assert ask("--tls-ca", str(tmp_path / "other.pem")) == (1, said)
        assert ask("--tls-ca", str(tmp_path / "ca.pem"), "--max-tokens", "3") == (0, "")
    finally:
        background.close()
