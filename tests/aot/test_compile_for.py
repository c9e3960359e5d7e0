"""Whole steps of a model, sharded, for every TPU generation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # as `python scripts/compile_for.py` has it

import compile_for


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_a_whole_step_compiles(topology: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--max-num-seqs", "8", "--max-num-batched-tokens", "8", "--kv-tokens", "4096", "--max-model-len", "1024"]
    assert compile_for.main(["--topology", topology, "--model", "small-128", *sizes]) == 0
    text = capsys.readouterr().out
    assert "attention: mosaic_tpu" in text
    assert "all-reduce" in text


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """8 billion parameters in bfloat16 on one chip of 16 GiB."""
    sizes = ["--max-num-seqs", "8", "--max-num-batched-tokens", "8", "--kv-tokens", "200000", "--layers", "31"]
    assert compile_for.main(["--topology", "v5e:1x1", "--model", "llama3-8b", *sizes]) == 1
    assert "no" in capsys.readouterr().out


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
            "known: mosaic_tpu, mosaic_gpu, xla",
        ),
    ],
)
def test_bad_input_is_named(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_for.main(arguments) == 2
    assert text in capsys.readouterr().err
