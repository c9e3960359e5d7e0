"""Files that the compressed-tensors package writes itself, read here, against what the package makes of them.

Needs torch, transformers and compressed-tensors, which are no dependencies: `pip install compressed-tensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from checkpoints.load import load_model
from pallas_kernels.qtensor import dequantize
from tests.checkpoints.quantized.models import HIDDEN, KV_HEADS, WIDTH
from tests.checkpoints.quantized.test_formats import FLOAT, FP8_TOKENS, INT8_TOKENS, parameters, read_all, whole

torch = pytest.importorskip("torch", reason="compressed-tensors needs torch")
transformers = pytest.importorskip("transformers", reason="compressed-tensors saves models of transformers")
package = pytest.importorskip("compressed_tensors", reason="the package that writes the files is not installed")

GROUPS = {
    "packed": (whole(4), None),
    "packed-zeros": (whole(4, symmetric=False, group_size=64), None),
    "packed-8-outputs": (whole(8, strategy="channel", group_size=None), None),
    "int8": (whole(8, strategy="channel", group_size=None), INT8_TOKENS),
    "float8": (FLOAT, FP8_TOKENS),
    "float8-whole": (FLOAT | {"strategy": "tensor"}, FP8_TOKENS),
    "float8-blocks": (
        FLOAT | {"strategy": "block", "block_structure": [128, 128]},
        FP8_TOKENS | {"strategy": "group", "group_size": 128},
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_files_of_the_package_are_read_bit_by_bit(tmp_path: Path, name: str) -> None:
    weights, activations = GROUPS[name]
    save(tmp_path, weights, activations)
    dense = parameters(load_model(tmp_path / "dense"))
    read = read_all(tmp_path / "quantized")
    assert len(read) == 4
    for path, weight in read.items():
        found = np.asarray(dequantize(weight)).reshape(dense[path].shape)
        np.testing.assert_array_equal(found, np.asarray(dense[path]), err_msg=path)
    jax.block_until_ready(load_model(tmp_path / "quantized").params)


def save(root: Path, weights: dict[str, Any], activations: dict[str, Any] | None) -> None:
    """A random Llama as the package compresses it, and as it decompresses that again."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=131,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    settings = QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(model, settings)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "weight_scale"):
                calibrate(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    assert compressor is not None
    compressor.compress_model(model)
    model.save_pretrained(root / "quantized")
    compressor.update_config(root / "quantized")
    compressor.decompress_model(model)
    plain = {
        key: value for key, value in model.state_dict().items() if not key.endswith(("_scale", "_zero_point", "_shape"))
    }
    dense = transformers.LlamaForCausalLM(config)
    dense.load_state_dict(plain)
    dense.save_pretrained(root / "dense")


def calibrate(module: Any) -> None:
    """Scales as an observer of the largest values would find them, and zero points where there are any."""
    weights = module.quantization_scheme.weights
    scale = module.weight_scale
    outputs, inputs = module.weight.shape
    if weights.strategy == "block":
        rows = -(-outputs // 128)
        padded = torch.nn.functional.pad(module.weight, (0, 0, 0, rows * 128 - outputs))
        parts = padded.reshape(rows, 128, -1, 128).transpose(1, 2).reshape(rows, inputs // 128, -1)
    elif weights.strategy == "tensor":
        parts = module.weight.reshape(1, -1)
    else:
        parts = module.weight.reshape(outputs, scale.shape[-1], -1)
    low, high = parts.amin(-1).reshape(scale.shape), parts.amax(-1).reshape(scale.shape)
    levels = 448.0 if weights.type == "float" else 2 ** (weights.num_bits - 1) - 1
    if weights.symmetric:
        scale.copy_(torch.maximum(-low, high) / levels)
        return
    steps = 2**weights.num_bits - 1
    scale.copy_((high - low) / steps)
    zero = torch.round(-low / scale) - (steps + 1) // 2
    module.weight_zero_point.copy_(zero.clamp(-(steps + 1) // 2, (steps - 1) // 2).to(module.weight_zero_point.dtype))
