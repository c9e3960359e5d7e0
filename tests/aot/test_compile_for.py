"""Whole steps of a model, sharded, for every TPU generation and for Hopper, as people ask for them.

Each in a process of its own: an error inside a compiler aborts it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.aot.compilers import TPUS, needs_cuda, needs_libtpu, shared_among_tpus
from tests.aot.elsewhere import run_elsewhere

ROOT = Path(__file__).parents[2]
SIZES = ["--max-num-seqs", "8", "--max-num-batched-tokens", "8", "--kv-tokens", "4096", "--max-model-len", "1024"]

pytestmark = pytest.mark.timeout(300)  # a minute at most on an idle machine


def compile_for(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The variable names kernels in GPU programs.
    return run_elsewhere("scripts/compile_for.py", *arguments, environment={"MOSAIC_GPU_DUMP_PTXAS": "1"})


@needs_libtpu
@pytest.mark.parametrize("topology", TPUS)
def test_a_whole_step_compiles(topology: str) -> None:
    """With what draws from it for one of two generations that are alike."""
    only_step = ["--steps-only"] * (topology in ("v5p:2x2x1", "v6e:2x2"))
    done = compile_for("--topology", topology, "--model", "small-128", *only_step, *SIZES)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "attention: mosaic_tpu" in done.stdout
    assert "all-reduce" in done.stdout
    assert "paged_attention_decode" in done.stdout
    assert only_step or all(program in done.stdout for program in ("draw[8 rows]", "score"))


@needs_libtpu
def test_a_step_with_small_heads_and_int8_pages_compiles() -> None:
    arguments = ("--model", "llama3.2-1b", "--layers", "1", "--kv-cache-dtype", "int8", "--steps-only", *SIZES)
    done = compile_for("--topology", "v5e:2x2", *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "attention: mosaic_tpu" in done.stdout


@needs_libtpu
@pytest.mark.parametrize(("topology", "scheme"), shared_among_tpus(["int8", "int4"]))
def test_a_quantized_step_compiles(topology: str, scheme: str) -> None:
    """What samples from it is the same as without quantization."""
    done = compile_for("--topology", topology, "--model", "small-128", "--quantization", scheme, "--steps-only", *SIZES)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f", {scheme}, " in done.stdout
    assert "all-reduce" in done.stdout
    assert ("quantized_matmul" in done.stdout) == (scheme == "int4")


@needs_cuda
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantized_step_compiles_for_hopper(scheme: str) -> None:
    done = compile_for(
        "--topology", "hopper:4", "--model", "small-128", "--quantization", scheme, "--steps-only", *SIZES
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f", {scheme}, " in done.stdout
    assert ("Compiling entry function 'quantized_matmul_int4" in done.stdout) == (scheme == "int4")
    assert "all-reduce" in done.stdout
    assert "all-to-all" not in done.stdout


WAYS_TO_SPLIT_EXPERTS = [
    pytest.param(["--expert-parallel-size", "2"], marks=pytest.mark.slow),
    ["--enable-expert-parallel", "--quantization", "int4"],
]


def check_collectives(done: subprocess.CompletedProcess[str]) -> None:
    """After each layer's attention, after what follows it (shared experts beside the others), and for the embedding."""
    assert done.returncode == 0, done.stderr[-4000:]
    assert "5 all-reduce (" in done.stdout  # of two layers, one of them dense
    assert not any(kind in done.stdout for kind in ("all-gather", "all-to-all", "permute", "scatter"))


@needs_libtpu
@pytest.mark.parametrize("more", WAYS_TO_SPLIT_EXPERTS, ids=str)
def test_experts_on_several_chips_compile(more: list[str]) -> None:
    check_collectives(compile_for("--topology", "v5e:2x4", "--model", "small-moe-128", "--steps-only", *more, *SIZES))


@needs_cuda
@pytest.mark.parametrize("more", WAYS_TO_SPLIT_EXPERTS, ids=str)
def test_experts_on_several_gpus_compile(more: list[str]) -> None:
    check_collectives(compile_for("--topology", "hopper:4", "--model", "small-moe-128", "--steps-only", *more, *SIZES))


@needs_libtpu
def test_what_does_not_fit_is_said() -> None:
    """8 billion parameters in bfloat16 on one chip of 16 GiB."""
    sizes = [*SIZES[:4], "--kv-tokens", "200000", "--layers", "31", "--steps-only"]
    done = compile_for("--topology", "v5e:1x1", "--model", "llama3-8b", *sizes)
    assert done.returncode == 1, done.stderr[-4000:]
    assert " no " in done.stdout


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--topology", "v5e"], "topology is 'v5e'; expected a TPU slice"),
        (
            ["--topology", "v5e:2x2", "--model", "nowhere"],
            "model is 'nowhere'; it must be a checkpoint folder or one of",
        ),
        (
            ["--topology", "v5e:2x2", "--model", "small-128", "--attention-backend", "nope"],
            "known: mosaic_tpu, mosaic_gpu, triton_gpu, native_cpu, xla",
        ),
    ],
)
def test_bad_input_is_named(arguments: list[str], text: str) -> None:
    done = compile_for(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
