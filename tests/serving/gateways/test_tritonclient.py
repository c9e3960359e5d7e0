"""NVIDIA's client, unmodified, synchronous and asynchronous. In a process of its own: its messages have the names of
the server's, and Python's registry of messages takes each name once."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from jaxinfer.messages import Abort, Submit
from serving.gateways.infer_convert import INPUTS
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH
from tests.serving.harness import collect, greedy, run, serving, until

PROGRAM = Path(__file__).with_name("triton_client.py")

if importlib.util.find_spec("tritonclient") is None:
    pytest.skip("tritonclient is not installed (extra test)", allow_module_level=True)


def test_tritonclient():
    async def test():
        async with serving(FakeOptions(step_seconds=0.001), gateways=BOTH) as s:
            sampled = await collect(s.stub.Generate(greedy("hello", 24, temperature=0.9, seed=11)))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(PROGRAM), s.server.address, "fake"), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert process.returncode == 0
            found = json.loads(out)
            check_sync(found["sync"], sampled.text())
            aio = found["aio"]
            assert (aio["ready"], aio["infer"]) == (True, ["abcde"])
            assert aio["streams"] == {str(i): "abcdefgh" for i in range(3)}
            await until(lambda: not s.server.frontend.open_requests, "the end of what the client left")
            left = [m.request_id for m in s.received(Submit) if m.params.max_tokens == 4000]
            aborted = {m.request_id for m in s.received(Abort)}
            assert len(left) == 2  # one past its deadline, one stream given up
            assert set(left) <= aborted

    run(test())


def check_sync(found, sampled):
    assert found["state"] == [True, True, True]
    assert found["server"] == "jaxinfer"
    assert found["inputs"] == list(INPUTS)
    policy, first, text_output = found["config"]
    assert policy == {"decoupled": True}
    assert first == {"name": "text_input", "data_type": "TYPE_STRING", "dims": ["1"], "optional": True}
    assert text_output == {"name": "text_output", "data_type": "TYPE_STRING", "dims": ["-1"]}
    assert found["index"] == [{"name": "fake", "version": "1", "state": "READY"}]
    assert found["infer"][:3] == [["abcdefgh"], ["helloabc"], ["abcdefgh"]]
    assert found["infer"][3] == [[8, 8], ["length", "length"], [-4.0, -4.0]]
    assert found["infer"][4] == [sampled]
    (statistics,) = found["statistics"]["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("fake", "1")
    assert int(statistics["inference_count"]) >= 4
    assert int(statistics["inference_stats"]["success"]["ns"]) > 0
    codes = [code for code, _ in found["errors"]]
    assert codes == [
        f"StatusCode.{name}"
        for name in ("INVALID_ARGUMENT", "NOT_FOUND", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED")
    ]
    messages = [message for _, message in found["errors"]]
    for part, message in zip(
        ("'image'", "model_name is 'other'", "top_p is 2.0", "name is 'other'"), messages, strict=False
    ):
        assert part in message
    streams = found["streams"]
    assert streams["streams"]["text"] == streams["whole"]["text"] == "abcdefgh"
    assert streams["sampled"]["text"] == sampled
    assert len(streams["sampled"]["finals"]) > 1
    assert streams["whole"]["finals"] == [True]
    for name in ("streams", "sampled"):
        finals = streams[name]["finals"]
        assert finals == [False] * (len(finals) - 1) + [True]
    (error,) = streams["errors"]
    assert error.startswith("sampling_parameters.max_tokens is 'x'")
    assert found["left"] == [True]
