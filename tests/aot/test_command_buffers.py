"""A step of decoding is one command buffer: the host launches it and goes on, whatever the device decides on the way.

A loop or a branch outside of one makes XLA's thread wait until the device has said how to go on, and with it whatever
that thread would dispatch next.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.aot import thunks
from tests.aot.compilers import needs_cuda
from tests.aot.elsewhere import run_elsewhere

pytestmark = [needs_cuda, pytest.mark.timeout(600)]

SIZES = ["--max-num-seqs", "16", "--max-num-batched-tokens", "32", "--max-model-len", "512", "--kv-tokens", "4096"]
MODELS = [
    ("small-128", []),
    *(
        pytest.param(model, ["--buckets", "all", "--steps-only", *more], marks=pytest.mark.slow)
        for model, more in (
            ("small-128", []),
            ("small-128", ["--quantization", "int4"]),
            ("small-128", ["--quantization", "int8", "--kv-cache-dtype", "int8"]),
            ("small-moe-128", []),
        )
    ),
]


@pytest.mark.parametrize(("model", "more"), MODELS)
def test_a_step_is_one_command_buffer(model: str, more: list[str], tmp_path: Path) -> None:
    environment = {"XLA_FLAGS": thunks.flags(tmp_path, "step|draw")}
    arguments = ["--topology", "hopper:1", "--model", model, *more, *SIZES]
    done = run_elsewhere("scripts/compile_for.py", *arguments, environment=environment, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "attention: mosaic_gpu" in done.stdout
    programs = thunks.read(tmp_path)
    assert set(programs) == ({"step"} if "--steps-only" in more else {"step", "draw"})
    for name, found in programs.items():
        assert len(found) == done.stdout.count(f"\n{name}["), name
        for program in found:
            launched = [thunk for thunk in program if thunk.depth == 0]
            assert [thunk.kind for thunk in launched] == ["kCommandBuffer"], (name, launched)
            assert len(program) > 10  # it holds what there is to do


def test_what_the_host_launches_is_told_from_what_a_buffer_holds() -> None:
    text = """000: kCommandBuffer [source       | next=006 (1)]
    001: kCustomKernel [source | sink] wrapped_iota grid: [1, 1, 1] threads: [8, 1, 1]  shared_memory: 0 bytes
    067: kConditional  [prev=057 (1) | next=068 (1)]
          false_branch:
            058: kCopy         [source       | next=060 (2)] kCopy
006: kWhile         [prev=000 (1) | next=000 (1)]
condition:
    007: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
"""
    found = thunks.thunks(text)
    assert [thunk.kind for thunk in found if thunk.depth == 0] == ["kCommandBuffer", "kWhile"]
    assert [thunk.name for thunk in found if thunk.kind == "kCustomKernel"] == ["wrapped_iota", "loop_compare_fusion"]
