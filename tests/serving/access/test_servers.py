"""Both servers with keys: who gets in, what each role may do, how refusals look to real clients."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import grpc
import openai
import pytest

from jaxinfer.messages import Submit
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.access.access import AccessConfig, AccessError
from serving.server import Server, ServerError
from tests.fakes import FakeOptions
from tests.serving.access.harness import Keys, bearer, guarded
from tests.serving.harness import collect, greedy, make_server, run, status, until

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "fake", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
WRONG = "jx-0123456789ab-" + "A" * 43


async def refused(client: openai.AsyncOpenAI, kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    with pytest.raises(kind) as error:
        await client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    return error.value


def test_openai_client_with_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    infer, admin = keys.new(), keys.new(roles=["admin"])

    async def test() -> None:
        async with guarded(keys, name="fake") as s:
            answer = await s.openai(infer).chat.completions.create(**CHAT)
            assert answer.choices[0].message.content == "abcdefgh"
            assert [model.id async for model in s.openai(admin).models.list()] == ["fake"]
            for key in (WRONG, infer[:-1], "none"):
                error = await refused(s.openai(key), openai.AuthenticationError)
                assert (error.code, error.type, error.param) == ("invalid_api_key", "authentication_error", None)
                assert error.response.headers["www-authenticate"] == "Bearer"
                assert key not in str(error.body)
            error = await refused(s.openai(admin), openai.PermissionDeniedError)
            assert (error.code, error.type) == ("insufficient_role", "permission_error")
            assert error.body["message"] == "the API key's roles are admin; this call needs infer"

    run(test())


def test_keys_of_the_command_line(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    of_file = keys.new()

    async def test() -> None:
        for file in (None, keys):
            async with guarded(file, given=("first", "second"), name="fake") as s:
                for key in ("first", "second", *([of_file] if file else [])):
                    async with s.http(key) as client:
                        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
                        wanted = 403 if key == of_file else 200  # the others may do everything
                        assert (await client.get("/metrics")).status_code == wanted
                for wrong in ("firs", "firstsecond", "x" * 300, WRONG):
                    async with s.http(wrong) as client:
                        answer = await client.post("/v1/completions", json={"prompt": "a"})
                        assert (answer.status_code, "first" in answer.text) == (401, False)
                async with s.grpc() as stub:
                    await collect(stub.Generate(greedy(), metadata=bearer("first")))
                    assert (await status(stub.Generate(greedy()))).code() == grpc.StatusCode.UNAUTHENTICATED

    run(test())
    with pytest.raises(AccessError, match="with API keys it must be a loopback address"):
        AccessConfig(given=("k",)).check(["0.0.0.0"])


def test_every_path_has_its_role(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    tokens = {"infer": keys.new(), "admin": keys.new(roles=["admin"]), "both": keys.new(roles=["infer", "admin"])}
    wanted = {  # path -> what no key, infer and admin get
        "/health": (200, 200, 200),
        "/ready": (200, 200, 200),
        "/version": (401, 200, 200),
        "/openapi.json": (401, 200, 200),
        "/v1/models": (401, 200, 200),
        "/v1/models/fake": (401, 200, 200),
        "/metrics": (401, 403, 200),
        "/debug/requests/x": (401, 403, 404),
        "/debug": (401, 403, 404),
        "/v1/chat/completions": (401, 405, 403),
        "/v1/other": (401, 404, 403),
        "/tokenize": (401, 405, 403),
        "/metrics/": (401, 403, 200),
        "/%6detrics": (401, 403, 200),
    }

    async def test() -> None:
        async with guarded(keys, name="fake") as s, s.http() as client:
            for path, answers in wanted.items():
                for key, code in zip(("", tokens["infer"], tokens["admin"]), answers, strict=True):
                    found = await client.get(path, headers={"authorization": f"Bearer {key}"} if key else {})
                    assert found.status_code == code, (path, key, found.text)
                found = await client.get(path, headers={"authorization": f"bearer {tokens['both']}"})
                assert found.status_code in (200, 404, 405)
            other = await client.get("/version", headers={"x-api-key": tokens["infer"]})
            assert other.status_code == 200
            basic = await client.get("/version", headers={"authorization": "Basic " + tokens["infer"]})
            assert basic.status_code == 401
            posted = await client.post("/v1/completions", content=b"{")  # nothing of the body is looked at
            assert posted.status_code == 401

    run(test())


def test_grpc_with_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    infer, admin = keys.new(), keys.new(roles=["admin"])

    async def test() -> None:
        async with guarded(keys) as s, s.grpc() as stub:
            found = await collect(stub.Generate(greedy(), metadata=bearer(infer)))
            assert found.text() == "abcdefgh"
            error = await status(stub.Generate(greedy()))
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            error = await status(stub.Generate(greedy(), metadata=bearer(WRONG)))
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            assert WRONG not in str(error.details())
            error = await status(stub.Generate(greedy(), metadata=bearer(admin)))
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED
            assert error.details() == "the API key's roles are admin; this call needs infer"
            error = await status(stub.GetStats(pb.GetStatsRequest(), metadata=bearer(infer)))
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED
            assert (await stub.GetStats(pb.GetStatsRequest(), metadata=bearer(admin))).accepted_requests == 1
            await stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=(("x-api-key", infer),))
            assert (await status(stub.GetModelInfo(pb.GetModelInfoRequest()))).code() == grpc.StatusCode.UNAUTHENTICATED
            await health_is_open(s.server)

    async def health_is_open(server: Server) -> None:
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        async with grpc.aio.insecure_channel(server.address) as channel:
            found = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert found.status == health_pb2.HealthCheckResponse.SERVING
            reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            assert await reflect().code() == grpc.StatusCode.UNAUTHENTICATED

    run(test())


def test_a_tenant_sees_nothing_of_another(tmp_path: Path) -> None:
    """Request ids, aborts, and the salt under which prefixes are cached."""
    keys = Keys(tmp_path, '[tenants.a]\nprefix_cache_group = "g"\n[tenants.b]\nprefix_cache_group = "g"\nweight = 3\n')
    a, b, c, other = (keys.new(tenant) for tenant in "abcd")
    admin = keys.new("ops", ["admin"])

    async def test() -> None:
        async with guarded(keys, options=FakeOptions(step_seconds=0.01)) as s, s.grpc() as stub:
            request = greedy(max_tokens=2000)
            request.request_id = "mine"
            calls = [stub.Generate(request, metadata=bearer(key)) for key in (a, b, c)]
            received = s.link.engine.received
            await until(lambda: sum(isinstance(m, Submit) for m in received) == 3, "all are taken, under one id")
            submits = [m for m in received if isinstance(m, Submit)]
            assert {m.tenant: m.weight for m in submits} == {"a": 1, "b": 3, "c": 1}
            salts = {m.tenant: m.cache_salt for m in submits}
            assert salts["a"] == salts["b"] != salts["c"]
            again = await status(stub.Generate(request, metadata=bearer(a)))
            assert again.code() == grpc.StatusCode.ALREADY_EXISTS
            abort = pb.AbortRequest(request_id="mine")
            assert not (await stub.Abort(abort, metadata=bearer(other))).found
            assert (await stub.Abort(abort, metadata=bearer(c))).found
            assert (await collect(calls[2])).end().finish_reason == pb.FINISH_REASON_ABORT
            assert not (await stub.Abort(abort, metadata=bearer(c))).found
            assert s.server.frontend.open_requests == 2
            assert (await stub.Abort(abort, metadata=bearer(admin))).found  # an admin's is for all
            for call in calls[:2]:
                assert (await collect(call)).end().finish_reason == pb.FINISH_REASON_ABORT

    run(test())


def test_limits_answer_429_and_resource_exhausted(tmp_path: Path) -> None:
    keys = Keys(tmp_path, "[tenants.few]\nrequests_per_minute = 2\n[tenants.tokens]\ntokens_per_minute = 30\n")
    few, tokens, one = keys.new("few"), keys.new("tokens"), keys.new("one", max_concurrency=1)

    async def test() -> None:
        async with guarded(keys, name="fake", options=FakeOptions(step_seconds=0.005)) as s, s.grpc() as stub:
            client = s.openai(few)
            for _ in range(2):
                await client.chat.completions.create(**CHAT)
            error = await refused(client, openai.RateLimitError)
            assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
            assert 25 <= int(error.response.headers["retry-after"]) <= 30
            other = await status(stub.Generate(greedy(), metadata=bearer(few)))  # one account for both servers
            assert other.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            trailing = dict(other.trailing_metadata())
            assert 25 <= int(trailing["retry-after"]) <= 30
            assert 25_000 <= int(trailing["grpc-retry-pushback-ms"]) <= 30_000

            first = await collect(stub.Generate(greedy(max_tokens=40), metadata=bearer(tokens)))
            assert len(first.token_ids()) == 40  # what is under way is not cut
            assert (await status(stub.Generate(greedy(), metadata=bearer(tokens)))).code() == other.code()

            call = stub.Generate(greedy(max_tokens=2000), metadata=bearer(one))
            await call.read()
            error = await refused(s.openai(one), openai.RateLimitError)
            assert error.code == "concurrency_limit_exceeded"
            assert error.response.headers["retry-after"] == "1"
            two = await status(stub.Generate(greedy(n=2), metadata=bearer(one)))
            assert two.code() == grpc.StatusCode.INVALID_ARGUMENT
            call.cancel()
            await until(lambda: s.server.frontend.open_requests == 0, "the place is free")
            await s.openai(one).chat.completions.create(**CHAT)

    run(test())


def test_several_prompts_are_taken_all_or_none(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    key = keys.new(requests_per_minute=3)

    async def test() -> None:
        async with guarded(keys) as s, s.http(key) as client:
            body = {"prompt": ["a", "b"], "max_tokens": 2}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            assert (await client.post("/v1/completions", json=body)).status_code == 429
            assert len([m for m in s.link.engine.received if isinstance(m, Submit)]) == 2
            assert (await client.post("/v1/completions", json={**body, "prompt": "c"})).status_code == 200
            assert (await client.post("/v1/completions", json={**body, "prompt": ["x"] * 4})).status_code == 400
            await until(lambda: s.server.frontend.open_requests == 0, "nothing is left of them")

    run(test())


def test_keys_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.access.access._REFRESH_SECONDS", 0.02)
    keys = Keys(tmp_path)
    old = keys.new()

    async def test() -> None:
        async with guarded(keys) as s, s.http(old) as client:

            async def answer(key: str) -> int:
                return (await client.get("/version", headers={"authorization": f"Bearer {key}"})).status_code

            async def becomes(key: str, code: int) -> None:
                for _ in range(300):
                    if await answer(key) == code:
                        return
                    await asyncio.sleep(0.01)
                pytest.fail(f"the answer never became {code}")

            assert await answer(old) == 200
            new = keys.new()
            await becomes(new, 200)
            good = keys.path.read_text()
            keys.path.write_text("this is no TOML [")
            await asyncio.sleep(0.1)
            assert await answer(old) == await answer(new) == 200  # a slip of an editor locks nobody out
            keys.path.write_text(good.replace('tenant = "acme"', 'tenant = "acme"\ndisabled = true', 1))
            await becomes(old, 401)
            assert await answer(new) == 200
            keys.path.unlink()
            await asyncio.sleep(0.1)
            assert await answer(new) == 200

    run(test())


def test_keys_need_tls_off_loopback(tmp_path: Path) -> None:
    from serving.access.access import AccessConfig

    keys = Keys(tmp_path)

    async def test() -> None:
        for host in ("0.0.0.0", "::"):
            server, links, _ = make_server(FakeOptions(), host=host, access=AccessConfig(keys.path))
            with pytest.raises(ServerError, match="with API keys it must be a loopback address") as error:
                await server.start()
            assert error.value.code == 2
            assert not links

    run(test())


def test_admin_calls_and_refusals_are_in_the_audit_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from serving.observing.setup import ObservingConfig

    keys = Keys(tmp_path)
    infer, admin = keys.new(requests_per_minute=1), keys.new("ops", ["admin"])
    audit = tmp_path / "audit.jsonl"
    caplog.set_level(logging.INFO, "serving.audit")

    async def test() -> None:
        async with guarded(keys, observing=ObservingConfig(audit=audit)) as s, s.grpc() as stub:
            async with s.http(admin) as client:
                await client.get("/metrics")
                await client.get("/debug/requests/canary")
                await client.get("/v1/models")  # no admin's call
            async with s.http(infer) as client:
                await client.get("/metrics")
                for _ in range(2):
                    await client.post("/v1/completions", json={"prompt": "canary", "max_tokens": 1})
            async with s.http(WRONG) as client:
                await client.get("/version?canary")
            await stub.GetStats(pb.GetStatsRequest(), metadata=bearer(admin))
            await status(stub.GetStats(pb.GetStatsRequest()))
            refused = s.server.frontend.recorder.metrics.refused
            assert refused == {
                ("http", "403"): 1,
                ("http", "429"): 1,
                ("http", "401"): 1,
                ("grpc", "UNAUTHENTICATED"): 1,
            }

    run(test())
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    short = [(x["event"], x["door"], x["endpoint"], x.get("tenant"), x.get("code")) for x in lines]
    assert short == [
        ("admin call", "http", "/metrics", "ops", None),
        ("admin call", "http", "/debug/", "ops", None),
        ("refused", "http", "/metrics", "acme", "PERMISSION_DENIED"),
        ("refused", "http", "/v1/completions", "acme", "RESOURCE_EXHAUSTED"),
        ("refused", "http", "/version", None, "UNAUTHENTICATED"),
        ("admin call", "grpc", "jaxinfer.v1.Inference/GetStats", "ops", None),
        ("refused", "grpc", "jaxinfer.v1.Inference/GetStats", None, "UNAUTHENTICATED"),
    ]
    assert all(x["key"] == admin.split("-")[1] for x in lines if x.get("tenant") == "ops")
    assert len([record for record in caplog.records if record.name == "serving.audit"]) == len(lines)
    everything = audit.read_text() + caplog.text
    assert "canary" not in everything
    assert not any(key.split("-", 2)[2] in everything for key in (infer, admin, WRONG))


def test_ledger_and_metrics_agree_for_each_tenant(tmp_path: Path) -> None:
    from serving.observing.setup import ObservingConfig

    keys = Keys(tmp_path)
    callers = {tenant: keys.new(tenant) for tenant in ("a", "b")}
    ledger = tmp_path / "ledger.jsonl"
    totals: dict[tuple[str, str], float] = {}

    async def test() -> None:
        async with guarded(keys, observing=ObservingConfig(ledger=ledger)) as s, s.grpc() as stub:
            for i, (_, key) in enumerate(callers.items()):
                for length in range(3 + i):
                    await collect(stub.Generate(greedy(max_tokens=3 + length), metadata=bearer(key)))
                async with s.http(key) as client:
                    await client.post("/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 2, "n": 2})
            client = s.server.frontend
            await until(lambda: sum(client.recorder.metrics.finished.values()) == 11, "all are finished")
            totals.update(client.recorder.metrics.tenant_tokens)

    run(test())
    sums: dict[tuple[str, str], float] = {}
    for line in ledger.read_text().splitlines():
        entry = json.loads(line)
        for kind in ("prompt", "cached", "completion"):
            at = entry["tenant"], kind
            sums[at] = sums.get(at, 0) + entry[f"{kind}_tokens"]
    assert sums == totals
    assert {tenant for tenant, _ in sums} == {"a", "b"}
    assert sums["a", "completion"] == 3 + 4 + 5 + 8
