"""Requests to the HTTP server that no client would send, made from valid ones by a seeded hand."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

from tests.serving.gateways.test_hostile_bytes import mutated

SETTINGS = {"temperature": 0, "max_tokens": 4}
MESSAGES = [{"role": "system", "content": "be good"}, {"role": "user", "content": "hi"}]
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "hi", **SETTINGS, "stop": ["z"], "logit_bias": {"9": 1}, "logprobs": 1, "n": 2}),
    ("/v1/completions", {"prompt": [[104, 105], [1]], **SETTINGS, "seed": 3, "echo": True, "top_p": 0.5}),
    ("/v1/completions", {"prompt": "hi", **SETTINGS, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"messages": MESSAGES, **SETTINGS, "logprobs": True, "top_logprobs": 2, "user": "ann"}),
    ("/v1/chat/completions", {"messages": MESSAGES, **SETTINGS, "stream": True, "frequency_penalty": 0.5}),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            **SETTINGS,
        },
    ),
    ("/v1/responses", {"input": "hi", "temperature": 0, "max_output_tokens": 4, "metadata": {"a": "b"}}),
    ("/v1/responses", {"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 4, "stream": True}),
    ("/tokenize", {"prompt": "hi"}),
    ("/tokenize", {"messages": MESSAGES}),
    ("/detokenize", {"tokens": [104, 105]}),
]
GOOD = ("/v1/completions", {"prompt": "hi", "temperature": 0, "max_tokens": 8})
GOOD_TEXT = "abcdefgh"
PATIENCE = 0.2  # seconds

NUMBERS = (0, -1, 1, 7, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 2**64, -(2**64), 10**400, 0.0, -0.0, 5e-324, 1.8e308)
RAW_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 5000, "1." + "3" * 5000, "0x10", "01")
TEXTS = (
    "",
    "\0",
    "\ud800",  # half of a pair, as JSON can write it
    "\udfff\ud83d",
    "\U0010ffff\ufffe\uffff",
    "e" + "\u0301" * 300,
    "\u202e\u2066abc\u200f",
    "\ufeff",
    "🧑‍🧑‍🧒‍🧒" * 20,
    "ﷺ" * 100,
    "a" * 3000,
    "the quick brown fox " * 15_000,
    "<s></s>",
    "{{ 7 * 7 }}{% raw %}",
    "../../etc/passwd",
    "'; DROP TABLE requests; --",
    "%s%n%x",
    "\r\nx-injected: 1",
    "\x1b[31m",
)
NAMES = ("__class__", "__proto__", "", "\0", "n" * 2000, "max_token", "MODEL", "é", "\ud800")


def deep(rng: random.Random) -> Any:
    value: Any = 0
    for _ in range(rng.choice((5, 50, 400))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def odd(rng: random.Random) -> Any:
    """A value that no field wants, or that one does."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(TEXTS)
    if kind == 2:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": None}))
    if kind == 3:
        return deep(rng)
    if kind == 4:
        return [rng.choice(NUMBERS + TEXTS) for _ in range(rng.randint(1, 40))]
    return {rng.choice(NAMES): rng.choice(TEXTS)}


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of everything within `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        places(inner, found)
    return found


def other_structure(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        found = places(body, [])
        if not found:
            break
        container, key = rng.choice(found)
        kind = rng.randrange(5)
        if kind == 0:
            container.pop(key)
        elif kind == 1:
            container[key] = [container[key]] * rng.randint(0, 5)
        elif kind == 2:
            body[rng.choice((*NAMES, "n", "stop", "seed", "logit_bias", "tools", "response_format"))] = odd(rng)
        else:
            container[key] = odd(rng)
    return body


def other_text(body: dict[str, Any], rng: random.Random) -> bytes:
    """JSON that is broken, or that writes a value as JSON cannot."""
    data = json.dumps(body).encode()
    kind = rng.randrange(6)
    if kind == 0:
        return data.replace(b"4", rng.choice(RAW_NUMBERS).encode())
    if kind == 1:
        return data.replace(
            b"hi", rng.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\\u12"))
        )
    if kind == 2:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b" " * 10_000, b"[", b"\0")) + data
    if kind == 3:
        return data[:-1] + b', "n": 1, "n": 2}'
    if kind == 4:
        return rng.choice((b"", b"null", b"[]", b'"x"', b"0", b"[" * 100_000, b'{"a":' * 20_000, data + data))
    return mutated(data, rng)


HEADERS = (
    b"content-type: text/plain", b"content-type: application/json; charset=utf-16", b"content-type:",
    b"content-encoding: gzip", b"content-encoding: identity", b"accept: \xff\xfe", b"authorization: Bearer \x01",
    b"x-request-id: " + b"x" * 9000, b"x-request-id: \xc3\xa9\xff", b"x-request-id: a\tb", b"expect: 100-continue",
    b"expect: 200-ok", b"traceparent: 00-zz-1-ff", b"upgrade: websocket", b"upgrade: h2c", b"cookie: " + b"a=b;" * 5000,
    b"host: a, b", b"host:", b"range: bytes=0-1", b"x-forwarded-for: ::1", b": empty", b"no colon", b" folded: 1",
    b"transfer-encoding: gzip, chunked", b"transfer-encoding: chunked", b"content-length: 5", b"content-length: -1",
    b"content-length: 99999999999999999999", b"content-length: 1e3", b"content-length: +4", b"te: trailers",
    b"connection: upgrade, keep-alive", b"x\0y: 1", b"x-null: a\0b", b"x-long: " + b"y" * 70_000,
)  # fmt: skip
CHUNKS = (
    b"%x\r\n%b\r\n0\r\n\r\n", b"%x;ext=1\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n", b"0%x\r\n%b\r\n0\r\n\r\n",
    b"%X \r\n%b\r\n0\r\n\r\n", b"-%x\r\n%b\r\n0\r\n\r\n", b"%x\n%b\n0\n\n", b"ffffffffffffffff%x\r\n%b\r\n0\r\n\r\n",
    b"zz%x\r\n%b\r\n0\r\n\r\n", b"%x\r\n%bXX0\r\n\r\n", b"0x%x\r\n%b\r\n0\r\n\r\n",
)  # fmt: skip
LINES = (
    b"GET %b HTTP/1.1", b"PUT %b HTTP/1.1", b"HEAD %b HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT %b HTTP/1.1",
    b"POST %b HTTP/1.0", b"POST %b HTTP/9.9", b"POST %b", b"post %b HTTP/1.1", b"POST %b?a=\xff HTTP/1.1",
    b"POST /%b HTTP/1.1", b"POST http://x%b HTTP/1.1", b"POST %b/%%2e%%2e/%%00 HTTP/1.1", b"POST %b#x HTTP/1.1",
    b"BREW %b HTTP/1.1", b"GET /v1/models/%%ff%b HTTP/1.1", b"GET /debug/requests/%%0a%b HTTP/1.1", b"PRI * HTTP/2.0",
)  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    """kind: what was done. end: seconds after which the sending side closes. whole: the data are one whole request, so
    that there must be an answer."""

    kind: str
    data: bytes
    method: str = "POST"
    end: float | None = None
    whole: bool = True


def head(line: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join((line, b"host: x", *fields, b"connection: close", b"", b""))


def post(path: str, body: bytes, *fields: bytes) -> bytes:
    length = b"content-length: %d" % len(body)
    return head(b"POST " + path.encode() + b" HTTP/1.1", b"content-type: application/json", length, *fields) + body


def good() -> Hostile:
    return Hostile("good", post(GOOD[0], json.dumps(GOOD[1]).encode()))


def hostile(rng: random.Random) -> Hostile:
    path, body = rng.choice(VALID)
    plain = json.dumps(body).encode()
    kind = rng.choices(("good", "structure", "text", "header", "chunks", "line", "cut"), (1, 4, 3, 2, 1, 1, 1))[0]
    if kind == "good":
        return good()
    if kind == "structure":
        return Hostile(kind, post(path, json.dumps(other_structure(body, rng)).encode()))
    if kind == "text":
        return Hostile(kind, post(path, other_text(body, rng)))
    if kind == "header":
        # A wrong length leaves the server waiting for a body: the end of the data tells it.
        return Hostile(kind, post(path, plain, *rng.sample(HEADERS, rng.randint(1, 3))), end=PATIENCE, whole=False)
    if kind == "chunks":
        fields = (b"content-type: application/json", b"transfer-encoding: chunked")
        data = head(b"POST " + path.encode() + b" HTTP/1.1", *fields) + rng.choice(CHUNKS) % (len(plain), plain)
        return Hostile(kind, data, end=PATIENCE, whole=False)
    if kind == "line":
        line = rng.choice(LINES)
        line = line % path.encode() if b"%b" in line else line
        data = head(line, b"content-type: application/json", b"content-length: %d" % len(plain)) + plain
        return Hostile(kind, data, "HEAD" if line.startswith(b"HEAD") else "POST", end=PATIENCE, whole=False)
    data = post(path, plain)
    return Hostile(kind, data[: rng.randrange(1, len(data))], end=0.0, whole=False)
