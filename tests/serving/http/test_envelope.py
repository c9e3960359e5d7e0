"""What concerns every request: HTTP's versions, connections that end, slashes at the end, pages of other origins."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import httpx
import pytest

from serving.access.access import AccessConfig
from serving.commands.http_options import store_limits
from serving.commands.serve import main, make_parser
from serving.http.envelope import CorsConfig, CorsError
from serving.http.http_server import KEEP_ALIVE_SECONDS, HttpConfig
from serving.http.response_store import StoreLimits
from tests.deploy.files import DEPLOY
from tests.fakes import FakeOptions
from tests.serving.access.harness import Keys
from tests.serving.harness import run, until
from tests.serving.http.harness import HttpServer, http_serving
from tests.serving.http.test_connections import raw

BODY = b'{"prompt": "a", "max_tokens": 2, "temperature": 0, "stream": true}'
PAGE = "https://page.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type",
}


def request(version: str = "1.0", *headers: str, method: str = "POST", path: str = "/v1/completions") -> bytes:
    fields = ["Host: l", *headers]
    if method == "POST":
        fields += ["Content-Type: application/json", f"Content-Length: {len(BODY)}"]
    head = f"{method} {path} HTTP/{version}\r\n" + "".join(f"{field}\r\n" for field in fields) + "\r\n"
    return head.encode() + (BODY if method == "POST" else b"")


def split(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}, body


# -- HTTP/1.0 ---------------------------------------------------------------------------------------------------------


def test_http_1_0_gets_a_stream_without_chunks():
    async def check(s: HttpServer, *headers: str) -> None:
        status, found, answer = split(await raw(s, request("1.0", *headers)))
        assert status == "HTTP/1.1 200 OK"  # and no 100 Continue in front of it
        assert "transfer-encoding" not in found
        assert "content-length" not in found
        assert found["connection"] == "close"
        texts = [json.loads(event)["choices"][0]["text"] for event in re.findall(rb"data: (\{.*\})", answer)]
        assert "".join(texts) == "ab"
        assert answer.split(b"\n\n")[-2] == b"data: [DONE]"
        # An answer with a length has it still, an error too.
        _, found, answer = split(await raw(s, request("1.0", *headers, method="GET", path="/version")))
        assert int(found["content-length"]) == len(answer) > 0
        status, found, answer = split(await raw(s, request("1.0", *headers, method="GET", path="/nothing")))
        assert status.startswith("HTTP/1.1 404")
        assert int(found["content-length"]) == len(answer) > 0

    async def test():
        async with http_serving() as s:
            await check(s)
            await check(s, "Connection: keep-alive")
            await check(s, "Expect: 100-continue")

    run(test())


def test_http_1_1_gets_chunks():
    async def test():
        async with http_serving() as s:
            _, found, answer = split(await raw(s, request("1.1", "Connection: close")))
            assert found["transfer-encoding"] == "chunked"
            assert answer.endswith(b"0\r\n\r\n")

    run(test())


def test_head_is_get_without_a_body():
    paths = ("/", "/health", "/ready", "/version", "/v1/models", "/v1/models/fake", "/metrics", "/openapi.json")

    async def test():
        async with http_serving() as s:
            for version, path in itertools.product(("1.0", "1.1"), paths):
                ask = {"method": "HEAD", "path": path}
                status, found, answer = split(await raw(s, request(version, "Connection: close", **ask)))
                assert (status, answer) == ("HTTP/1.1 200 OK", b""), path
                _, same, whole = split(await raw(s, request(version, "Connection: close", method="GET", path=path)))
                assert found["content-type"] == same["content-type"]
                if path != "/metrics":  # whose numbers change
                    assert found["content-length"] == same["content-length"] == str(len(whole))

    run(test())


# -- connections ------------------------------------------------------------------------------------------------------


def test_idle_connections_are_kept_as_long_as_the_setting_says():
    async def closes_after(seconds: float) -> float:
        async with http_serving(http=HttpConfig(seconds)) as s:
            host, port = s.grpc.server.http_address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request("1.1", method="GET", path="/version"))
            begin = asyncio.get_running_loop().time()
            async with asyncio.timeout(5):
                _, headers, _ = split(await reader.read())  # to its end
            assert headers.get("connection") == (None if seconds else "close")
            writer.close()
            return asyncio.get_running_loop().time() - begin

    async def test():
        assert await closes_after(0.15) >= 0.15
        assert await closes_after(0) < 0.15

    run(test())


def test_every_answer_of_a_server_that_drains_closes_its_connection():
    async def test():
        cors = HttpConfig(cors=CorsConfig((PAGE,)))
        async with http_serving(FakeOptions(step_seconds=0.005), http=cors) as s:
            for path in ("/ready", "/nothing"):
                assert "connection" not in (await s.http.get(path)).headers
            async with s.http.stream(
                "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 40, "stream": True}
            ) as running:
                lines = running.aiter_lines()
                await anext(lines)
                drain = asyncio.create_task(s.grpc.server.drain())
                await until(lambda: s.grpc.server.frontend.draining, "the server drains")
                for path, status in (("/health", 200), ("/ready", 503), ("/nothing", 404)):
                    answer = await s.http.get(path)
                    assert (answer.status_code, answer.headers["connection"]) == (status, "close"), path
                assert (await preflight(s)).headers["connection"] == "close"
                refused = await s.post("/v1/completions", prompt="a")
                assert (refused.status_code, refused.headers["connection"]) == (503, "close")
                assert [line async for line in lines][-2] == "data: [DONE]"
            await drain

    run(test())


# -- paths ------------------------------------------------------------------------------------------------------------


def test_a_slash_at_the_end_is_the_same_path(tmp_path):
    keys = Keys(tmp_path)
    admin = keys.new("acme", ("admin", "infer"))

    async def test():
        async with http_serving(access=AccessConfig(keys.path), name="org/model") as s:
            s.http.headers["authorization"] = f"Bearer {admin}"
            for path in ("/v1/models", "/health", "/ready", "/version", "/metrics", "/openapi.json"):
                there, slashed = await s.http.get(path), await s.http.get(path + "/")
                assert (there.status_code, slashed.status_code) == (200, 200), path
                assert slashed.headers["content-type"] == there.headers["content-type"]
            assert (await s.http.get("/v1/models/")).json()["data"][0]["id"] == "org/model"
            for path, sent in (
                ("/v1/completions/", {"prompt": "a", "max_tokens": 2}),
                ("/v1/chat/completions/", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
                ("/v1/responses/", {"input": "a", "max_output_tokens": 2}),
                ("/tokenize/", {"prompt": "a"}),
                ("/detokenize/", {"tokens": [1]}),
            ):
                answer = await s.http.post(path, json=sent, follow_redirects=False)
                assert answer.status_code == 200, (path, answer.text)
            del s.http.headers["authorization"]
            assert (await s.http.get("/health/")).status_code == 200  # needs no key, as without the slash
            for path in ("/v1/models/", "/metrics/"):
                assert (await s.http.get(path)).status_code == 401

    run(test())


def test_a_models_name_may_have_slashes():
    async def test():
        async with http_serving(name="org/model") as s:
            for path in ("org/model", "org%2Fmodel", "org/model/"):
                assert (await s.http.get(f"/v1/models/{path}")).json()["id"] == "org/model", path
            missing = await s.http.get("/v1/models/org/other")
            assert missing.status_code == 404
            assert "'org/other'" in missing.json()["error"]["message"]

    run(test())


# -- pages of other origins -------------------------------------------------------------------------------------------


async def preflight(s: HttpServer, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return await s.http.options(path, headers={**PREFLIGHT, **headers})


def test_by_default_no_page_of_another_origin_may_call():
    async def test():
        async with http_serving() as s:
            assert (await preflight(s)).status_code == 405
            answer = await s.http.get("/v1/models", headers={"origin": PAGE})
            assert not [name for name in answer.headers if name.startswith("access-control-")]

    run(test())


def test_preflights_need_no_key_and_every_answer_has_the_headers(tmp_path):
    keys = Keys(tmp_path)
    key = keys.new()
    cors = CorsConfig((PAGE,))

    async def test():
        async with http_serving(access=AccessConfig(keys.path), http=HttpConfig(cors=cors)) as s:
            answer = await preflight(s)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "POST" in answer.headers["access-control-allow-methods"].split(", ")
            assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
            assert "access-control-allow-credentials" not in answer.headers
            stranger = await preflight(s, origin="https://evil.example")
            assert stranger.status_code == 400
            assert "access-control-allow-origin" not in stranger.headers

            sent = {"prompt": "a", "max_tokens": 2}
            with_key = {"origin": PAGE, "authorization": f"Bearer {key}"}
            for path, headers, body, status in (
                ("/v1/completions", with_key, sent, 200),
                ("/v1/completions", with_key, {**sent, "stream": True}, 200),
                ("/v1/completions", with_key, {"prompt": 5}, 400),
                ("/nothing", with_key, sent, 403),
                ("/v1/completions", {"origin": PAGE}, sent, 401),
            ):
                found = await s.http.post(path, json=body, headers=headers)
                assert found.status_code == status, path
                assert found.headers["access-control-allow-origin"] == PAGE, status
                assert "x-request-id" in found.headers["access-control-expose-headers"]
                assert "Origin" in found.headers["vary"]
            other = await s.http.post("/v1/completions", json=sent, headers={**with_key, "origin": "https://a.b"})
            assert "access-control-allow-origin" not in other.headers

            def fail(*_: Any, **__: Any) -> Any:
                raise RuntimeError("unforeseen")

            s.grpc.server.api._convert = fail  # type: ignore[method-assign]
            found = await s.http.post("/v1/completions", json=sent, headers=with_key)
            assert (found.status_code, found.headers["access-control-allow-origin"]) == (500, PAGE)

    run(test())


@pytest.mark.parametrize(("credentials", "origin"), [(False, "*"), (True, PAGE)])
def test_any_origin_with_credentials_is_named(credentials, origin):
    """The Fetch standard takes no * beside credentials."""
    cors = CorsConfig(("*",), ("GET",), ("x-one",), allow_credentials=credentials)

    async def test():
        async with http_serving(http=HttpConfig(cors=cors)) as s:
            asked = {"access-control-request-method": "GET", "access-control-request-headers": "x-one"}
            answer = await preflight(s, "/v1/models", **asked)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            assert answer.headers.get("access-control-allow-credentials") == ("true" if credentials else None)
            assert (await preflight(s, **{**asked, "access-control-request-method": "POST"})).status_code == 400
            assert (await preflight(s, **{**asked, "access-control-request-headers": "x-two"})).status_code == 400
            answer = await s.http.get("/v1/models", headers={"origin": PAGE})
            assert answer.headers["access-control-allow-origin"] == origin

    run(test())


# -- settings ---------------------------------------------------------------------------------------------------------


def test_options_have_vllms_names_and_form():
    arguments = make_parser("jaxinfer").parse_args([])
    assert (arguments.allowed_origins, arguments.allow_credentials) == ([], False)
    assert (arguments.allowed_methods, arguments.allowed_headers) == (["*"], ["*"])
    assert arguments.http_keep_alive == KEEP_ALIVE_SECONDS
    given = ["--allowed-origins", f'["{PAGE}", "*"]', "--allowed-methods", '["GET"]', "--allowed-headers", '["x-a"]']
    arguments = make_parser("jaxinfer").parse_args([*given, "--allow-credentials", "--http-keep-alive", "5"])
    assert arguments.allowed_origins == [PAGE, "*"]
    assert (arguments.allowed_methods, arguments.allowed_headers) == (["GET"], ["x-a"])
    assert (arguments.allow_credentials, arguments.http_keep_alive) == (True, 5.0)
    assert make_parser("jaxinfer").parse_args(["--timeout-keep-alive", "0.5"]).http_keep_alive == 0.5
    assert make_parser("jaxinfer").parse_args(["--allowed-origins", PAGE]).allowed_origins == [PAGE]


def test_the_store_of_responses_is_on_unless_it_is_off():
    for given, limits in (
        ([], StoreLimits(256 << 20, 3600)),
        (["--response-store", "5000", "--response-store-seconds", "7.5"], StoreLimits(5000, 7.5)),
        (["--response-store", "none"], None),
    ):
        assert store_limits(make_parser("jaxinfer").parse_args(given)) == limits


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--allowed-origins", '["https://a.b/"]'], "--allowed-origins has 'https://a.b/'; each must be"),
        (["--allowed-origins", "[5]"], "--allowed-origins is '[5]'; it must be a JSON list of strings"),
        (["--allowed-origins", '["x"'], "it must be a JSON list of strings"),
        (["--allowed-methods", '["A B"]'], "--allowed-methods has 'A B'"),
        (["--allowed-headers", '["a:"]'], "--allowed-headers has 'a:'"),
        (["--http-keep-alive", "-1"], "'-1'; it must be a number of seconds"),
        (["--http-keep-alive", "nan"], "'nan'; it must be a number of seconds"),
        (["--response-store", "0"], "it must be a number of bytes, 1 or more, or none"),
        (["--response-store", "1GiB"], "it must be a number of bytes, 1 or more, or none"),
        (["--response-store-seconds", "0"], "it must be more than 0"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, capsys, options, words):
    with pytest.raises(SystemExit):
        main(options, hub_cache=tmp_path)
    assert words in capsys.readouterr().err


def test_a_bad_origin_is_refused_in_python_too():
    with pytest.raises(CorsError, match="allowed_origins has 'example'"):
        CorsConfig(("example",))


def test_the_proxys_connections_end_before_the_servers():
    found = re.findall(r"keepalive_timeout (\d+)s;", (DEPLOY / "nginx/jaxinfer.conf").read_text())
    assert found
    assert all(int(seconds) < KEEP_ALIVE_SECONDS for seconds in found)
