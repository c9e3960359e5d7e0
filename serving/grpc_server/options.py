"""The gRPC server's options and address."""

from __future__ import annotations

import socket

MAX_METADATA_BYTES = 64 << 10  # of a call, as HTTP's headers
MAX_CONCURRENT_STREAMS = 4096  # calls on one connection


def check_free(host: str, port: int) -> None:
    """Raises OSError when the port is taken; gRPC's own answer goes to the log of its C++ core."""
    if port == 0:
        return
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(found[0], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(found[4])


def grpc_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """gRPC ignores a name that it does not know: tests look each of them up in its core."""
    return [
        ("grpc.so_reuseport", 0),  # else a second server would take the port too, and half of the connections
        ("grpc.max_receive_message_length", max_message_bytes),
        # What a client may make the server hold, or wait for.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
        ("grpc.server_handshake_timeout_ms", 15_000),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message stays small
        ("grpc.keepalive_time_ms", 60_000),  # finds clients that vanished without a word
        ("grpc.keepalive_permit_without_calls", 1),
        # A stream can be silent for long, in the queue or in a long prefill, while its client or a proxy pings: no ping
        # comes too often, as with vLLM. What pings may make the server queue is bounded by gRPC itself.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
