"""Faults of the engine's side as clients and operators see them: one clear error each, and the others unaffected."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from jaxinfer.messages import NO_LOGITS, NO_TOKEN_LEFT, SequenceOutput, Submit
from jaxinfer.model_path import demo_path
from serving.observing.setup import ObservingConfig
from tests.fakes import FakeEngine, FakeOptions
from tests.serving.harness import collect, greedy, run, status, until
from tests.serving.http.harness import http_serving

ROOT = Path(__file__).resolve().parents[3]
BAD = ord("N")  # the byte that the fake's "model" computes NaN from
AFTER = 5  # tokens


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine ends requests with BAD in the prompt as the real one does when their logits are NaN."""
    end_with(monkeypatch, NO_LOGITS)


def end_with(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    healthy = FakeEngine._next

    def next_output(self: FakeEngine, sequence: Any) -> SequenceOutput:
        submit: Submit = sequence.submit
        if BAD not in submit.prompt_token_ids or sequence.tokens < AFTER:
            return healthy(self, sequence)
        sequence.tokens += 1
        account = self._account(sequence)
        return SequenceOutput(submit.request_id, sequence.index, (), None, "error", None, 0, account, message)

    monkeypatch.setattr(FakeEngine, "_next", next_output)


def test_what_a_request_forbids_itself_is_no_fault_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    end_with(monkeypatch, NO_TOKEN_LEFT)

    async def test() -> None:
        async with http_serving() as s:
            error = await status(s.grpc.stub.Generate(greedy("N", max_tokens=60)))
            assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, NO_TOKEN_LEFT)
            answer = await s.post("/v1/completions", prompt="N", temperature=0, max_tokens=60)
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, NO_TOKEN_LEFT)
            assert answer.json()["error"]["type"] == "invalid_request_error"

    run(test())


def test_logits_that_are_not_numbers_are_one_requests_error(
    sick: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = tmp_path / "usage.jsonl"

    async def test() -> None:
        observing = ObservingConfig(ledger=ledger)
        async with http_serving(FakeOptions(step_seconds=0.005, max_num_seqs=8), observing=observing) as s:
            good = [asyncio.create_task(collect(s.grpc.stub.Generate(greedy(max_tokens=60)))) for _ in range(2)]
            whole = asyncio.create_task(s.complete(max_tokens=60))
            await until(lambda: len(s.grpc.received(Submit)) == 3, "the others run")
            error = await status(s.grpc.stub.Generate(greedy("N", max_tokens=60)))
            assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, NO_LOGITS)
            answer = await s.post("/v1/completions", prompt="N", temperature=0, max_tokens=60)
            assert (answer.status_code, answer.json()["error"]["message"]) == (500, NO_LOGITS)
            assert answer.json()["error"]["type"] == "server_error"
            events = await s.events("/v1/chat/completions", messages=[{"role": "user", "content": "N"}], temperature=0)
            assert events[-1] == "[DONE]"
            assert events[-2]["error"]["message"] == NO_LOGITS
            for call in good:
                assert len((await call).token_ids()) == 60
            assert len((await whole)["choices"][0]["text"]) == 60
            await until(lambda: ledger.read_text().count("\n") == 6, "every request has its line")
            assert s.grpc.server.frontend.open_requests == 0

    with caplog.at_level(logging.ERROR):
        run(test())
    reasons = [json.loads(line)["finish_reason"] for line in ledger.read_text().splitlines()]
    assert sorted(reasons) == ["error"] * 3 + ["length"] * 3
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.longer
def test_a_pool_that_the_memory_cannot_hold_is_refused_in_one_line() -> None:
    command = [sys.executable, "-m", "jaxinfer", "serve", str(demo_path()), "--port", "0"]
    command += ["--num-pages", "10000000000", "--compilation-cache-dir", "none"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert refused.returncode == 2, refused.stderr
    assert "compiling" not in refused.stderr
    last = refused.stderr.splitlines()[-1]
    words = r".*jaxinfer serve: error: num_pages is 10000000000; .* of host memory are free: at most \d+ pages fit"
    assert re.fullmatch(words, last), refused.stderr
    assert "Traceback" not in refused.stderr
