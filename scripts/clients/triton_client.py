"""tritonclient over gRPC: the service that KServe's clients know, too."""

from __future__ import annotations

import os

import numpy as np
import tritonclient.grpc as triton
from cases import QUESTION, case, finish

client = triton.InferenceServerClient(os.environ["DEMO_GRPC"])


@case
def it_is_live_and_ready():
    assert client.is_server_live()
    assert client.is_server_ready()


@case
def text_in_text_out():
    names = [model.name for model in client.get_model_repository_index().models]
    prompt = triton.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([QUESTION.encode()], dtype=object))
    answer = client.infer(names[0], [prompt])
    assert answer.as_numpy("text_output").size == 1


@case
def statistics_count_requests():
    def found():
        return client.get_inference_statistics(as_json=True)["model_stats"][0]

    before = found()
    text_in_text_out()
    after = found()
    assert int(after["inference_count"]) == int(before.get("inference_count", 0)) + 1, (before, after)
    assert int(after["inference_stats"]["success"]["ns"]) > 0, after


finish()
