"""A program of NVIDIA's client: calls of the server at argv[1], what it got as JSON on standard output.

argv[2] is the model's name.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

ADDRESS, MODEL = sys.argv[1:]
GREEDY = {"temperature": "0", "max_tokens": "8"}  # strings, as NVIDIA's examples have them


def text(name: str, value: str) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


def flag(name: str, value: bool) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([value]))
    return tensor


def inputs(*, stream: bool = False, **sampling: Any) -> list[triton.InferInput]:
    given = [text("text_input", "hello"), text("sampling_parameters", json.dumps({**GREEDY, **sampling}))]
    return [*given, flag("stream", stream), flag("exclude_input_in_output", True)]


def output(result: triton.InferResult, name: str = "text_output") -> Any:
    return [value.decode() if isinstance(value, bytes) else value.item() for value in result.as_numpy(name)]


def final(result: triton.InferResult) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


def error_of(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return error.status(), error.message()
    raise AssertionError("no error")


def streamed(client: triton.InferenceServerClient, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Pieces and final flags by request id, errors beside them."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for request in requests:
        client.async_stream_infer(MODEL, enable_empty_final_response=True, **request)
    client.stop_stream()
    found: dict[str, Any] = {"errors": []}
    while not answers.empty():
        result, error = answers.get()
        if error is not None:
            found["errors"].append(error.message())
            continue
        own = found.setdefault(result.get_response().id, {"text": "", "finals": []})
        own["text"] += output(result)[0]
        own["finals"].append(final(result))
    return found


def synchronous() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with triton.InferenceServerClient(ADDRESS) as client:
        found["state"] = [client.is_server_live(), client.is_server_ready(), client.is_model_ready(MODEL)]
        found["server"] = client.get_server_metadata(as_json=True)["name"]
        metadata = client.get_model_metadata(MODEL, as_json=True)
        found["inputs"] = [tensor["name"] for tensor in metadata["inputs"]]
        config = client.get_model_config(MODEL, as_json=True)["config"]
        found["config"] = [config["model_transaction_policy"], config["input"][0], config["output"][0]]
        found["index"] = client.get_model_repository_index(as_json=True)["models"]
        ids = triton.InferInput("input_ids", [2], "INT64")
        ids.set_data_from_numpy(np.array([104, 105], np.int64))
        plain = client.infer(MODEL, [text("text_input", "hello")], parameters={"temperature": 0.0, "max_tokens": 3})
        extra = [flag("return_num_output_tokens", True), flag("return_finish_reason", True)]
        more = client.infer(MODEL, [*inputs(n=2, logprobs=1), *extra, flag("return_cumulative_logprob", True)])
        found["infer"] = [
            output(client.infer(MODEL, inputs(), request_id="one")),
            output(plain),
            output(client.infer(MODEL, [ids, *inputs()[1:]], outputs=[triton.InferRequestedOutput("text_output")])),
            [output(more, name) for name in ("num_output_tokens", "finish_reason", "cumulative_logprob")],
            output(client.infer(MODEL, inputs(temperature=0.9, seed=11, max_tokens=24))),
        ]
        found["statistics"] = client.get_inference_statistics(MODEL, as_json=True)
        found["errors"] = [
            error_of(client.infer, MODEL, [text("image", "x")]),
            error_of(client.infer, "other", inputs()),
            error_of(client.infer, MODEL, inputs(top_p=2)),
            error_of(client.get_inference_statistics, "other"),
            error_of(client.infer, MODEL, inputs(max_tokens=4000), client_timeout=0.1),
        ]
        found["streams"] = streamed(
            client,
            [
                {"inputs": inputs(stream=True), "request_id": "streams"},
                {"inputs": inputs(), "request_id": "whole"},
                {"inputs": inputs(stream=True, max_tokens="x"), "request_id": "bad"},
                {"inputs": inputs(stream=True, temperature=0.9, seed=11, max_tokens=24), "request_id": "sampled"},
            ],
        )
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer(MODEL, inputs(stream=True, max_tokens=4000), request_id="left")
        found["left"] = [answers.get(timeout=10) is None]
        client.stop_stream(cancel_requests=True)
    return found


async def asynchronous() -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with triton_aio.InferenceServerClient(ADDRESS) as client:
        found["ready"] = await client.is_model_ready(MODEL)
        found["infer"] = output(await client.infer(MODEL, inputs(stop="f")))

        async def requests() -> Any:
            for i in range(3):
                yield {"model_name": MODEL, "inputs": inputs(stream=True), "request_id": str(i)}

        texts: dict[str, str] = {}
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            name = result.get_response().id
            texts[name] = texts.get(name, "") + output(result)[0]
        found["streams"] = texts
    return found


print(json.dumps({"sync": synchronous(), "aio": asyncio.run(asynchronous())}))
