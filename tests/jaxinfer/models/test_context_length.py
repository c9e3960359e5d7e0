"""How long a sequence may be: the rules of vLLM 0.32's `_get_and_verify_max_len`, each kind of RoPE once.

The expected lengths are worked out by hand from that function and from the keys that its model configs look at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.folder import read_config
from jaxinfer.config import ConfigError, ModelConfig, RuntimeConfig
from jaxinfer.models.registry import model_config
from jaxinfer.runtime.kv_cache import GIB, Budget, Sizes, resolve_sizes
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention.layout import kv_layout
from tests.jaxinfer.models.hub_configs import ALL

FACTORS = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def sizes(config: ModelConfig, **runtime: Any) -> Sizes:
    mixer = config.layers[0].mixer
    layout = kv_layout(DeviceTarget("cpu", "cpu"), "bfloat16", mixer.num_kv_heads, mixer.head_dim, 64)
    return resolve_sizes(config, RuntimeConfig(**runtime), layout, Budget(4096 * GIB, "plenty"), "cpu")


@pytest.mark.parametrize(
    ("name", "changes", "longest"),
    [
        ("Llama-2-7b", {}, 4096),
        ("Llama-2-7b", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),  # vicuna-7b-v1.5-16k
        ("Llama-2-7b", {"rope_parameters": {"rope_type": "linear", "factor": 2.5}}, 10240),
        ("Llama-2-7b", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 4096),  # served inside the trained length
        ("Llama-2-7b", {"rope_scaling": YARN}, 4096),
        ("Llama-2-7b", {"rope_scaling": LLAMA3}, 4096),
        ("Llama-2-7b", {"rope_scaling": {"type": "su", "factor": 4.0, **FACTORS}}, 4096),
        ("Llama-2-7b", {"rope_scaling": {"rope_type": "longrope", "factor": 4.0, **FACTORS}}, 4096),
        ("gemma-3-1b", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 32768),  # counted already
        ("Llama-2-7b", {"max_sequence_length": 2048}, 2048),  # the shortest of all keys
        ("Llama-2-7b", {"max_sequence_length": 8192, "seq_length": 1024, "n_positions": 3000}, 1024),
        ("Llama-2-7b", {"model_max_length": 8192, "max_seq_len": 1024}, 8192),  # decides where it is given
        ("Llama-2-7b", {"max_sequence_length": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
    ],
)
def test_longest(name: str, changes: dict[str, Any], longest: int) -> None:
    config = model_config(ALL[name] | changes)
    assert (config.longest, config.usual) == (longest, longest)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))).longest == longest
    assert sizes(config).max_model_len == longest
    assert sizes(config, max_model_len=longest).max_model_len == longest
    with pytest.raises(ConfigError, match=rf"max_model_len is {longest + 1}; .*allows at most {longest}"):
        sizes(config, max_model_len=longest + 1)


def test_the_refusal_says_where_the_length_comes_from() -> None:
    linear = model_config(ALL["Llama-2-7b"] | {"rope_scaling": {"type": "linear", "factor": 4.0}})
    with pytest.raises(ConfigError, match="max_position_embeddings, 4096, times the factor of its linear RoPE, allows"):
        sizes(linear, max_model_len=20000)


@pytest.mark.parametrize("value", ["2048", 0, True, 2048.0])
def test_lengths_are_counts(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_sequence_length is .*; it must be a positive integer"):
        model_config(ALL["Llama-2-7b"] | {"max_sequence_length": value})


def test_only_what_is_not_usual_is_stored() -> None:
    new = {"linear_rope_counted", "context_length", "tokenizer_length", "notes"}
    assert not new & model_config(ALL["Llama-2-7b"]).to_dict().keys()
    assert new & model_config(ALL["gemma-3-1b"]).to_dict().keys() == {"linear_rope_counted"}
    short = model_config(
        ALL["Llama-2-7b"] | {"max_seq_len": 99, "rope_parameters": {"rope_theta": 7.0}, "rope_theta": 5}
    )
    stored = ModelConfig.from_dict(json.loads(json.dumps(short.to_dict())))
    assert (stored.longest, stored.notes) == (99, short.notes)
    assert short.notes


def folder(path: Path, tokenizer: Any, **changes: Any) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(ALL["Llama-2-7b"] | changes))
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokenizer}))
    return read_config(path)[0]


def test_the_tokenizers_length_is_the_default_and_is_said(tmp_path: Path) -> None:
    config = folder(tmp_path, 2048)
    found = sizes(config)
    assert found.max_model_len == 2048
    assert "model_max_length = 2048 in tokenizer_config.json shortens; --max-model-len up to 4096" in found.notes[0]
    assert sizes(config, max_model_len=4096).max_model_len == 4096
    with pytest.raises(ConfigError, match="allows at most 4096"):
        sizes(config, max_model_len=4097)


def test_the_tokenizers_length_is_stretched_as_well(tmp_path: Path) -> None:
    """Both are lengths before RoPE, as in vLLM: a stretched model whose tokenizer kept the old number is not cut."""
    config = folder(tmp_path, 4096, rope_scaling={"type": "linear", "factor": 4.0})
    assert (config.usual, config.longest) == (16384, 16384)


@pytest.mark.parametrize("value", [10**30, 1e30, 4096, 131072, None, "2048", -1, True])
def test_numbers_that_limit_nothing(tmp_path: Path, value: Any) -> None:
    assert sizes(folder(tmp_path, value)).notes[0] == "max_model_len = 4096: the model's context"
