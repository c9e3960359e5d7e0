"""SIGTERM while both servers are full: nothing that was accepted is cut off, nothing new is taken, the exit code is
0."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path

import grpc
import httpx
import pytest

from tests.fakes import ALPHABET, write_model
from tests.serving.harness import greedy
from tests.serving.http.test_process import base_url
from tests.serving.test_processes import SECONDS, ServerProcess, Stream, new_request, server, wait

STREAMS = 24  # at each server; more than there are places, so that some wait when the signal comes
TOKENS = 120
TEXT = (ALPHABET * TOKENS)[:TOKENS]


class HttpStream(threading.Thread):
    """A streamed completion in a thread of its own: its text, and whether it came to its end."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.text, self.done, self._url = "", False, url
        self.start()

    def run(self) -> None:
        body = {"prompt": "x", "temperature": 0, "max_tokens": TOKENS, "stream": True}
        with httpx.stream("POST", self._url + "/v1/completions", json=body, timeout=2 * SECONDS) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.text += json.loads(line[6:])["choices"][0]["text"]
                self.done |= line == "data: [DONE]"


def refused(s: ServerProcess, address: str, url: str, count: int) -> None:
    for _ in range(count):
        assert new_request(address).code() == grpc.StatusCode.UNAVAILABLE
        answer = httpx.post(url + "/v1/completions", json={"prompt": "x"})
        assert (answer.status_code, "error" in answer.json()) == (503, True)
        assert httpx.get(url + "/ready").status_code == 503
    assert s.process.poll() is None


@pytest.mark.longer
def test_sigterm_under_load_cuts_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny")
    with server(model, "--grace-seconds", "60", step_seconds=0.02, max_num_seqs=STREAMS) as s:
        address, url = s.address(), base_url(s)
        calls = [Stream(address, greedy(max_tokens=TOKENS)) for _ in range(STREAMS)]
        streams = [HttpStream(url) for _ in range(STREAMS)]
        stats = httpx.Client(base_url=url)
        wait(
            lambda: re.search(rf"requests_open\S* {2 * STREAMS}\b", stats.get("/metrics").text) is not None,
            "all are in",
        )
        wait(lambda: sum(bool(c.text) for c in (*calls, *streams)) >= STREAMS, "as many as have a place have begun")
        s.process.send_signal(signal.SIGTERM)
        wait(lambda: "stopping" in s.output, "the drain begins")
        assert f"{2 * STREAMS} running requests" in s.output
        refused(s, address, url, 5)
        assert [(call.ended().error, call.text) for call in calls] == [(None, TEXT)] * STREAMS
        for stream in streams:
            stream.join(2 * SECONDS)
        assert [(stream.done, stream.text) for stream in streams] == [(True, TEXT)] * STREAMS
        stats.close()
        assert s.exit_code() == 0
    assert "Traceback" not in s.output
