"""What the commands take from a model's folder before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.files import CheckpointError
from jaxinfer.config import RuntimeConfig
from serving.commands import generate, serve
from serving.commands.options import runtime_config, sampling_defaults
from tests.checkpoints.folders import write_small_llama


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", "hot"), ("top_k", -5), ("top_p", 0), ("max_new_tokens", -1), ("min_p", [1])]
)
def test_an_odd_sampling_default_is_named_with_its_file(tmp_path: Path, key: str, value: Any) -> None:
    folder = write_small_llama(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({key: value}))
    name = "max_tokens" if key == "max_new_tokens" else key
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {name} is"):
        sampling_defaults(folder, "auto")
    assert sampling_defaults(folder, "vllm") == {}


def test_a_number_of_thousands_of_digits_is_a_fault_of_the_file(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"top_k": ' + "1" * 5000 + "}")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: expected JSON"):
        sampling_defaults(folder, "auto")


def test_a_tower_for_other_modalities_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runtime_config(serve.make_parser("x").parse_args(["--language-model-only"])) == RuntimeConfig()
    for command, more in ((serve, ()), (generate, ("text",))):
        assert command.main(["--no-language-model-only", *more], hub_cache=tmp_path) == 2
        error = capsys.readouterr().err
        assert "(--no-language-model-only); it must be True: no vision or audio tower is supported" in error
