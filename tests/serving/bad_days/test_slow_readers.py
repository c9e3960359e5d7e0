"""Clients that read a byte a second: others are not slowed, the server does not grow, and nothing they get is wrong."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import grpc
import pytest

from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from tests.fakes import ALPHABET, write_model
from tests.serving.harness import greedy
from tests.serving.http.test_process import base_url
from tests.serving.test_processes import SECONDS, Stream, server

READERS = 16  # at each server
TOKENS = 4000
GROWTH = 40.0  # MB, for all of them; what is waiting for them is some 130 bytes a token where each is an event
TEXT = (ALPHABET * TOKENS)[:TOKENS]


def megabytes(pid: int) -> float:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


class SlowHttp:
    """A streamed completion, with a receive buffer as small as there is."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self._sock.settimeout(SECONDS)
        self._sock.connect((host, int(port)))
        body = b'{"prompt": "x", "temperature": 0, "max_tokens": %d, "stream": true}' % TOKENS
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self._sock.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self._data = b""

    def read_a_byte(self) -> None:
        self._data += self._sock.recv(1)

    def rest(self) -> str:
        while data := self._sock.recv(1 << 16):
            self._data += data
        self._sock.close()
        assert b"data: [DONE]" in self._data
        return b"".join(re.findall(rb'"text":"([^"]*)"', self._data)).decode()


@pytest.mark.longer
def test_a_byte_a_second(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny")
    with server(model, step_seconds=0.0005, max_num_seqs=2 * READERS + 4) as s:
        address, url = s.address(), base_url(s)
        Stream(address, greedy(max_tokens=200)).ended()
        before = megabytes(s.process.pid)
        readers = [SlowHttp(url) for _ in range(READERS)]
        # Flow control by HTTP/2: a message is taken when it is asked for, and the window is the smallest there is.
        options = [
            ("grpc.http2.lookahead_bytes", 1),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        channels = [grpc.insecure_channel(address, options=options) for _ in range(READERS)]
        calls = [pb_grpc.InferenceStub(channel).Generate(greedy(max_tokens=TOKENS)) for channel in channels]
        texts = [next(call).delta.text for call in calls]
        others = 0
        for _ in range(4):
            begin = time.monotonic()
            for reader in readers:
                reader.read_a_byte()
            for i, call in enumerate(calls):
                texts[i] += next(call).delta.text
            while others == 0 or time.monotonic() < begin + 1:
                assert Stream(address, greedy(max_tokens=50)).ended().text == TEXT[:50]
                others += 1
        grown = megabytes(s.process.pid) - before
        print(f"{others} other requests; {2 * READERS} slow readers cost {grown:.1f} MB")
        assert others >= 4
        assert grown < GROWTH
        assert [reader.rest() for reader in readers] == [TEXT] * READERS
        for i, call in enumerate(calls):
            texts[i] += "".join(event.delta.text for event in call)
        assert texts == [TEXT] * READERS
        for channel in channels:
            channel.close()
