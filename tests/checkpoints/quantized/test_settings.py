"""`quantization_config`: what publishers write is understood, everything else is refused by name before any weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from checkpoints.quantized import parse
from jaxinfer.config import ConfigError
from jaxinfer.models.stored_matrix import StoredMatrix
from tests.checkpoints.quantized.models import tiny
from tests.checkpoints.quantized.test_formats import AWQ, FLOAT, FP8, FP8_TOKENS, GPTQ, INT8_TOKENS, compressed, whole

LAYER = "model.layers.3.self_attn.q_proj"

# With the keys that AutoAWQ, AutoGPTQ, optimum, GPTQModel, llm-compressor and the publishers' own scripts write.
AUTO_AWQ = {"bits": 4, "group_size": 128, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm"}
AUTO_GPTQ = {
    "bits": 4,
    "group_size": 128,
    "damp_percent": 0.1,
    "desc_act": True,
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "model",
    "quant_method": "gptq",
}
OPTIMUM = {
    "batch_size": 1,
    "bits": 8,
    "block_name_to_quantize": None,
    "cache_block_outputs": True,
    "damp_percent": 0.01,
    "dataset": None,
    "desc_act": False,
    "exllama_config": {"version": 1},
    "group_size": 128,
    "max_input_length": None,
    "model_seqlen": None,
    "module_name_preceding_first_block": None,
    "modules_in_block_to_quantize": None,
    "pad_token_id": None,
    "quant_method": "gptq",
    "sym": True,
    "tokenizer": None,
    "true_sequential": True,
    "use_cuda_fp16": False,
    "use_exllama": True,
}
GPTQ_MODEL = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "group_size": 32,
    "lm_head": False,
    "meta": {"quantizer": ["gptqmodel:2.2.0"], "mse": 0.0},
    "pack_dtype": "int32",
    "quant_method": "gptq",
    "sym": False,
}
# GPTQModel 7.3 writes the method and the format twice, and how it worked under meta.
GPTQ_MODEL_7 = {
    "bits": 4,
    "group_size": 128,
    "desc_act": False,
    "lm_head": False,
    "method": "gptq",
    "quant_method": "gptq",
    "format": "gptq",
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
    "sym": True,
    "meta": {"quantizer": ["gptqmodel:7.3.4"], "fallback": {"strategy": "rtn"}, "pack_impl": "cpu"},
}
AWQ_OF_GPTQ_MODEL = {
    key: value for key, value in GPTQ_MODEL_7.items() if key not in ("sym", "format", "checkpoint_format")
} | {"method": "awq", "quant_method": "awq", "format": "gemm", "checkpoint_format": "gemm", "version": "gemm"}
# GPTQModel 2 to 5 had some of these at the top.
GPTQ_MODEL_4 = GPTQ_MODEL | {
    "group_size": 64,
    "damp_percent": 0.05,
    "damp_auto_increment": 0.01,
    "static_groups": False,
    "true_sequential": True,
    "act_group_aware": True,
    "hyb_act": False,
    "v2": True,
    "v2_alpha": 0.25,
    "mse": 2.4,
    "offload_to_disk": True,
    "dynamic": {},
    "adapter": None,
}
AUTO_ROUND = {
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
    "enable_quanted_input": True,
    "enable_minmax_tuning": True,
    "iters": 200,
    "lr": 0.005,
    "minmax_lr": 0.005,
    "nsamples": 128,
    "seqlen": 2048,
    "low_gpu_mem_usage": True,
    "scale_dtype": "torch.float16",
    "autoround_version": "0.4.2",
    "damp_percent": 0.01,
    "desc_act": None,
    "true_sequential": False,
    "quant_method": "gptq",
}
DEEPSEEK = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
GPT_OSS = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ],
    "quant_method": "mxfp4",
}  # fmt: skip
DENSE = {"format": "dense", "global_sparsity": 0.14, "ignore": [], "sparsity_structure": "unstructured", "targets": []}

PUBLISHED: list[tuple[dict[str, Any], StoredMatrix]] = [
    (AUTO_AWQ | {"zero_point": True}, StoredMatrix("int4", 128, zeros=True)),
    (AUTO_GPTQ, StoredMatrix("int4", 128, order=True)),
    (OPTIMUM, StoredMatrix("int8", 128)),
    (GPTQ_MODEL, StoredMatrix("int4", 32, zeros=True)),
    (GPTQ_MODEL_7, StoredMatrix("int4", 128)),
    (GPTQ_MODEL_4, StoredMatrix("int4", 64, zeros=True)),
    (AWQ_OF_GPTQ_MODEL, StoredMatrix("int4", 128, zeros=True)),
    (AUTO_ROUND, StoredMatrix("int4", 128)),
    (GPTQ_MODEL_7 | {"quant_method": "GPTQ", "method": "GPTQ"}, StoredMatrix("int4", 128)),
    (AUTO_GPTQ | {"desc_act": None, "sym": None}, StoredMatrix("int4", 128)),
    (DEEPSEEK, StoredMatrix("fp8", 128)),
    (GPT_OSS | {"modules_to_not_convert": None}, StoredMatrix("mxfp4", 32)),
    (DEEPSEEK | {"modules_to_not_convert": ["lm_head", "model.layers.3.mlp.gate"]}, StoredMatrix("fp8", 128)),
    (
        {"activation_scheme": "dynamic", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
        StoredMatrix("fp8", activations="fp8"),
    ),
    (compressed("pack-quantized", whole(4, group_size=128, actorder="weight")), StoredMatrix("int4", 128)),
    (
        compressed("int-quantized", whole(8, strategy="channel", group_size=None), INT8_TOKENS, sparsity_config=DENSE),
        StoredMatrix("int8", activations="int8"),
    ),
    (
        compressed("float-quantized", FLOAT, FP8_TOKENS | {"observer": "memoryless"}, quantization_status="frozen"),
        StoredMatrix("fp8", activations="fp8"),
    ),
]


@pytest.mark.parametrize(("settings", "stored"), PUBLISHED)
def test_published_settings_are_understood(settings: dict[str, Any], stored: StoredMatrix) -> None:
    assert parse(settings).stored((LAYER,)) == stored


def test_names_with_a_star_are_of_any_layer() -> None:
    """As gpt-oss is published: its experts alone are in MXFP4."""
    format_ = parse(GPT_OSS)
    assert format_.stored(("model.layers.7.mlp.experts",)) == StoredMatrix("mxfp4", 32)
    for name in ("layers.7.self_attn.q_proj", "layers.23.self_attn", "layers.0.mlp.router", "embed_tokens"):
        assert format_.stored((f"model.{name}",)) is None
    assert format_.stored(("model.layers.self_attn.q_proj",)) == StoredMatrix("mxfp4", 32)  # the star is one part
    assert format_.stored(("model.layers.0.mlp.router_of_others",)) == StoredMatrix("mxfp4", 32)


def weights(**changes: Any) -> dict[str, Any]:
    return compressed("pack-quantized", whole(4, **changes))


def activations(**changes: Any) -> dict[str, Any]:
    return compressed("int-quantized", whole(8, strategy="channel", group_size=None), INT8_TOKENS | changes)


REFUSED: list[tuple[Any, str]] = [
    ("awq", r"quantization_config is 'awq'; it must be an object"),
    ({"bits": 4}, r"quant_method is None; it must be one of awq, gptq, compressed-tensors, fp8, mxfp4"),
    ({"quant_method": "bitsandbytes"}, r"quant_method is 'bitsandbytes'; it must be one of awq"),
    (GPTQ_MODEL_7 | {"method": "awq"}, r"method is 'awq'; it must be the same as quant_method, 'gptq'"),
    (GPTQ_MODEL_7 | {"dynamic": {"-:.*down.*": {}}}, r"dynamic is"),
    (GPTQ_MODEL_7 | {"lm_head": True}, r"lm_head is True"),
    (AWQ_OF_GPTQ_MODEL | {"checkpoint_format": "gemv"}, r"checkpoint_format is 'gemv'; it must be one of \['gemm'"),
    (AUTO_ROUND | {"data_type": "mx_fp"}, r"data_type is 'mx_fp'"),
    (AWQ | {"group_size": 128, "bits": 3}, r"bits is 3; it must be one of \[4\]"),
    (AWQ | {"group_size": 48}, r"group_size is 48; it must be one of \[32, 64, 128, -1\]"),
    (AWQ | {"group_size": None}, r"group_size is None"),
    (AWQ | {"group_size": 128, "version": "gemv"}, r"version is 'gemv'; it must be one of \['gemm', 'GEMM'\]"),
    (AWQ | {"group_size": 128, "zero_point": False}, r"zero_point is False; it must be one of \[True\]"),
    (AWQ | {"group_size": 128, "backend": "llm-awq"}, r"backend is 'llm-awq'; it must be one of \['autoawq'"),
    (AWQ | {"group_size": 128, "surprise": 1}, r"has surprise = 1, which is not known"),
    (AWQ | {"group_size": 128, "modules_to_not_convert": "mlp"}, r"modules_to_not_convert is 'mlp'; it must be a list"),
    (GPTQ | {"group_size": 128, "bits": 3}, r"bits is 3; it must be one of \[4, 8\]"),
    (GPTQ | {"group_size": 128, "checkpoint_format": "marlin"}, r"checkpoint_format is 'marlin'; it must be one of"),
    (GPTQ | {"group_size": 128, "format": "gptq_v2"}, r"are \['gptq', 'gptq_v2'\]; they must be the same"),
    (GPTQ | {"group_size": 128, "lm_head": True}, r"lm_head is True"),
    (GPTQ | {"group_size": 128, "dynamic": {"-:.*down.*": {}}}, r"dynamic is \{'-:\.\*down"),
    (GPTQ | {"group_size": 128, "sym": "yes"}, r"sym is 'yes'; it must be one of \[True, False\]"),
    (GPT_OSS | {"modules_to_not_convert": "lm_head"}, r"modules_to_not_convert is 'lm_head'; it must be a list"),
    (GPT_OSS | {"dequantize": True}, r"dequantize is True"),
    (GPT_OSS | {"block_size": 16}, r"has block_size = 16, which is not known"),
    (DEEPSEEK | {"activation_scheme": "static"}, r"activation_scheme is 'static'; it must be one of \['dynamic'\]"),
    (FP8 | {"activation_scheme": "none"}, r"activation_scheme is 'none'; it must be one of \['dynamic', 'static'\]"),
    (FP8 | {"fmt": "e5m2"}, r"fmt is 'e5m2'"),
    (FP8 | {"weight_block_size": [64, 128]}, r"weight_block_size is \[64, 128\]; it must be one of \[\[128, 128\]"),
    (FP8 | {"scale_fmt": "ue8m0"}, r"scale_fmt is 'ue8m0'; it must be one of \['float', None\]"),
    (FP8 | {"kv_cache_scheme": {"num_bits": 8}}, r"kv_cache_scheme is"),
    (weights(num_bits=3), r"config_groups\.group_0\.weights\.num_bits is 3; it must be one of \[4, 8\]"),
    (weights(type="float"), r"weights\.type is 'float'; it must be one of \['int'\]"),
    (weights(strategy="tensor"), r"weights\.strategy is 'tensor'; it must be one of \['group', 'channel'\]"),
    (weights(group_size=16), r"weights\.group_size is 16"),
    (weights(group_size=-1), r"group_size is -1; with strategy 'group' it must be one of \[32, 64, 128\]"),
    (weights(actorder=True), r"weights\.actorder is True"),
    (weights(dynamic=True) | {"format": "nvfp4-pack-quantized"}, r"format is 'nvfp4-pack-quantized'; it must be one"),
    (weights(noise=0.5), r"weights has noise = 0\.5, which is not known"),
    (
        weights() | {"kv_cache_scheme": {"num_bits": 8}},
        r"kv_cache_scheme is \{'num_bits': 8\}; it must be one of \[None",
    ),
    (weights() | {"transform_config": {"config_groups": {"u": {}}}}, r"transform_config is"),
    (weights() | {"sparsity_config": {"format": "marlin-24"}}, r"sparsity_config is .* its format must be 'dense'"),
    (weights() | {"quantization_status": "calibration"}, r"quantization_status is 'calibration'"),
    (
        weights() | {"config_groups": {"W4A16": ["Linear"]}},
        r"W4A16 is \['Linear'\]; it must be an object",
    ),
    (weights() | {"config_groups": {}}, r"config_groups is \{\}; it must be an object of groups"),
    (weights() | {"ignore": ["re:("]}, r"has 're:\('; it must be a regular expression"),
    (activations(dynamic=False), r"input_activations\.dynamic is False; it must be one of \[True\]"),
    (activations(strategy="tensor"), r"input_activations\.strategy is 'tensor'; it must be one of \['token'\]"),
    (activations(symmetric=False), r"input_activations\.symmetric is False"),
    (activations(num_bits=4), r"input_activations\.num_bits is 4"),
    (activations(type="float"), r"input_activations\.type is 'float'; it must be one of \['int'\]"),
    (compressed("int-quantized", FLOAT), r"format is 'int-quantized', but weights\.type is 'float'"),
    (compressed("float-quantized", FLOAT | {"strategy": "block"}), r"block_structure is None; with strategy 'block'"),
    (
        compressed("int-quantized", whole(8, strategy="channel", group_size=None, actorder="group")),
        r"actorder is 'group'; it is supported with pack-quantized and groups only",
    ),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_what_is_not_known_is_refused_by_name(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(settings)


def test_nothing_is_read_before_the_settings_are_known(tmp_path: Path) -> None:
    """There are no weights in the folder at all."""
    config = tiny("llama").config | {"quantization_config": GPTQ | {"group_size": 128, "bits": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for read in (load_model, read_config):
        with pytest.raises(CheckpointError, match=r"config\.json: quantization_config\.bits is 3"):
            read(tmp_path)


def test_layers_are_named_by_whole_parts() -> None:
    skipping = parse(AWQ | {"group_size": 128, "modules_to_not_convert": ["mlp.gate", "layers.2", "k_proj"]})
    for module, quantized in (
        ("model.layers.1.mlp.gate_proj", True),
        ("model.layers.2.mlp.up_proj", False),
        ("model.layers.22.mlp.up_proj", True),
        ("model.layers.1.self_attn.k_proj", False),
    ):
        assert (skipping.stored((module,)) is not None) == quantized, module


def test_a_name_comes_before_a_pattern_and_a_pattern_before_the_class() -> None:
    def group(size: int, *targets: str) -> dict[str, Any]:
        return {"targets": list(targets), "weights": whole(4, group_size=size)}

    groups = {"a": group(32, "Linear"), "b": group(64, "re:.*q_proj"), "c": group(128, LAYER)}
    format_ = parse(compressed("pack-quantized", {}) | {"config_groups": groups, "ignore": ["re:.*v_proj$"]})
    stored = {name: format_.stored((LAYER.replace("q_proj", name),)) for name in ("q_proj", "k_proj", "v_proj")}
    assert stored == {"q_proj": StoredMatrix("int4", 128), "k_proj": StoredMatrix("int4", 32), "v_proj": None}
    assert format_.stored((LAYER.replace("3", "4"),)) == StoredMatrix("int4", 64)


SEARCHED = {
    "amp": True, "autoround_version": "0.4.5", "batch_size": 8, "data_type": "int", "damp_percent": 0.01,
    "enable_minmax_tuning": True, "enable_norm_bias_tuning": False, "enable_quanted_input": True, "iters": 200,
    "gradient_accumulate_steps": 1, "low_gpu_mem_usage": True, "lr": 0.005, "minmax_lr": 0.005, "nsamples": 512,
    "scale_dtype": "torch.float16", "seqlen": 2048, "to_quant_block_names": None, "true_sequential": False,
    "act_bits": 16, "act_dynamic": True, "provider": "auto-round",
}  # fmt: skip


@pytest.mark.parametrize("settings", [AUTO_GPTQ, AUTO_AWQ, AUTO_AWQ | {"sym": True}, GPTQ_MODEL])
def test_how_the_numbers_were_searched_for_is_passed_over(settings: dict[str, Any]) -> None:
    searched = {key: value for key, value in SEARCHED.items() if key not in settings}
    assert parse(settings | searched) == parse(settings)
    with pytest.raises(ConfigError, match="act_bits is 8"):
        parse(settings | searched | {"act_bits": 8})
