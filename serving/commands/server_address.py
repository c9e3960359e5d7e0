"""`--server HOST:PORT`: its form, and why nothing of ours answers there."""

from __future__ import annotations

import argparse
import re
import socket

import grpc

from serving.server import ServerConfig

_GRPC_PORT = ServerConfig.port
_SECONDS = 2.0  # to connect, and again for a first answer
_NAMED = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract):")  # gRPC's own ways to name a server
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(?P<port>[0-9]+)")


def server_address(text: str) -> str:
    """The value of --server, checked. Raises ArgumentTypeError, saying what to give."""
    if _NAMED.match(text):
        return text
    scheme, cut, rest = text.rpartition("://")
    if cut:
        host = rest.split("/")[0].rsplit(":", 1)[0] or "localhost"
        tls = " and --tls-ca" if scheme.lower() == "https" else ""
        raise argparse.ArgumentTypeError(
            f"it must be HOST:PORT of the server's gRPC port{tls}, no URL: for instance {host}:{_GRPC_PORT}"
        )
    found = _PLACE.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= 65_535:
        raise argparse.ArgumentTypeError(
            f"it must be HOST:PORT of the server's gRPC port, for instance localhost:{_GRPC_PORT}"
        )
    return text


def why_not(error: grpc.aio.AioRpcError, address: str, *, tls: bool) -> str:
    """What a call that failed is to be blamed on, in a sentence."""
    details = error.details() or error.code().name
    if tls and "CERTIFICATE_VERIFY_FAILED" in details:
        return f"the certificate of {address} is not signed by --tls-ca, or it names another host"
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return details
    if error.trailing_metadata() and error.code() != grpc.StatusCode.UNAVAILABLE:
        return details  # the server's own words
    found = _PLACE.fullmatch(address)
    if found is None:
        return f"no server answers at {address} ({details})"
    return _found_at(found["host"].strip("[]"), int(found["port"]), address, tls=tls) or details


def _found_at(host: str, port: int, address: str, *, tls: bool) -> str | None:
    """Who is there, when it is not a gRPC server that was asked as it wants to be asked."""
    try:
        with socket.create_connection((host, port), _SECONDS) as peer:
            peer.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1", "replace"))
            try:
                answer = peer.recv(64)
            except OSError:  # silence, or a connection that is closed in anger
                answer = b""
    except socket.gaierror:
        return f"no server answers at {address}: the host {host} is not known"
    except OSError as error:
        reason = "it does not answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        return f"no server answers at {address}: {reason}"
    if answer.startswith(b"HTTP/1"):
        if b" 400" in answer[:16] and tls:  # what servers of HTTPS say to plain HTTP
            return None
        other = f"{address.rpartition(':')[0]}:{_GRPC_PORT}"
        return (
            f"{address} is an HTTP port; --server takes the gRPC port, which `serve` names when it is ready (--port, "
            f"for instance {other})"
        )
    speaks_http2 = answer[3:4] == b"\x04"  # the first frame of a gRPC server is its settings
    if tls and speaks_http2:
        return f"the server at {address} does not use TLS; leave out --tls-ca"
    if not tls and not speaks_http2:
        return f"{address} does not speak plain gRPC; a server with TLS needs --tls-ca"
    return None
