"""Backends of attention that are faulty on purpose, each in its way, before all others; and who tries them.

`python -m tests.jaxinfer.runtime.faulty_kernels` answers like the self-test's own process. With `serve` it is an engine
that starts with them, and answers one request.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import Any

import jax

from pallas_kernels.dispatch import Backend
from pallas_kernels.paged_attention import api
from pallas_kernels.paged_attention.xla import paged_attention as right

SECONDS = 15.0  # that a backend gets here


def lying(*args: Any, **kwargs: Any) -> Any:
    out, k_pages, v_pages = right(*args, **kwargs)
    return out * 1.1, k_pages, v_pages


def hanging(*args: Any, **kwargs: Any) -> Any:
    def wait(x: Any) -> Any:
        time.sleep(3600)
        return x

    out, k_pages, v_pages = right(*args, **kwargs)
    return jax.pure_callback(wait, out, out), k_pages, v_pages


def aborting(*args: Any, **kwargs: Any) -> Any:
    os.abort()


def broken(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("no such instruction")


NAMES = ("lying", "hanging", "aborting", "broken")


def register() -> None:
    faulty = tuple(Backend(name, lambda target, case: None, f"{__name__}:{name}") for name in NAMES)
    api.OP = dataclasses.replace(api.OP, backends=(*faulty, *api.OP.backends))


def serve() -> None:
    from jaxinfer import LLM, SamplingParams
    from jaxinfer.runtime import self_test

    self_test.CHILD = (sys.executable, "-m", __spec__.name)  # type: ignore[union-attr]
    self_test.SECONDS = SECONDS
    with LLM(
        self_test="on", max_num_seqs=2, max_num_batched_tokens=8, max_model_len=64, compilation_cache_dir=None
    ) as llm:
        answer = llm.generate("One and one", SamplingParams(temperature=0, max_tokens=4))[0]
        print(json.dumps({"notes": llm.info.notes, "tokens": list(answer.outputs[0].token_ids)}))


if __name__ == "__main__":
    register()
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        from jaxinfer.runtime import self_test_child

        self_test_child.main()
