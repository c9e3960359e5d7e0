"""A request of an HTTP/1.0 client, as it was handed over."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.serving.harness import run
from tests.serving.http.harness import http_serving
from tests.serving.http.test_connections import raw

REPORTS = Path(__file__).parent / "reports"


def test_an_answer_to_http_1_0_ends_with_its_connection():
    expected = json.loads((REPORTS / "f10.expect.json").read_text())
    head, body = (REPORTS / "f10.http").read_bytes().split(b"\r\n\r\n")
    # The length that the file gives leaves out the last brace.
    head, found = re.subn(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head)
    assert found == 1

    async def test():
        async with http_serving() as s:
            answer = await raw(s, head + b"\r\n\r\n" + body)  # reads until the server closes the connection
            head_of_it, _, body_of_it = answer.partition(b"\r\n\r\n")
            assert head_of_it.startswith(b"HTTP/1.1 200 OK\r\n")
            assert expected["must_not_have"].encode() not in head_of_it.lower()
            assert body_of_it.startswith(expected["body_starts_with"].encode())
            assert body_of_it.endswith(b"data: [DONE]\n\n")

    run(test())
