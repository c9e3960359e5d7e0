"""kserve's own client over gRPC."""

from __future__ import annotations

import os

import numpy as np
from cases import QUESTION, case, finish
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient


@case
async def text_in_text_out():
    for binary in (False, True):
        prompt = InferInput("text_input", [1], "BYTES")
        prompt.set_data_from_numpy(np.array([QUESTION], dtype=object), binary_data=binary)
        async with InferenceGRPCClient(os.environ["DEMO_GRPC"]) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("demo")
            answer = await client.infer(InferRequest("demo", [prompt]))
        (output,) = [each for each in answer.outputs if each.name == "text_output"]
        assert len(output.as_numpy()) == 1, binary


finish()
