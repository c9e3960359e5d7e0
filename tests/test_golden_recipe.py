"""The stored goldens: complete, small, rebuilt the same everywhere, and about what they claim to be about."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.golden_recipe import (
    GOLDENS,
    KINDS,
    GoldenCase,
    build_config,
    build_tensors,
    cases,
    flag_from_json,
    load_case,
    tensor,
    write_checkpoint,
)
from tests.jaxinfer.models.dense import text_tensors

MAX_FILE_BYTES, MAX_TOTAL_BYTES = 150_000, 7_500_000

EXPECTED_CASES = [
    "apertus", "arcee", "arcee_bias", "exaone4", "gemma2", "gemma3", "gemma3_linear", "gemma3_whole", "glm4_moe",
    "gpt_oss", "granite", "granite_moe", "granite_moe_shared", "hunyuan", "hunyuan_bias", "llama", "llama3_rope",
    "llama_bias", "llama_dynamic", "llama_linear", "llama_tp8", "llama_yarn", "llama_yarn_mscale", "low_rank",
    "ministral3", "mistral", "mistral3", "mixtral", "nemotron_nas", "olmo2", "olmo3", "olmoe", "phi3",
    "phi3_longrope", "phi3_partial", "phi4_mini", "qwen2", "qwen2_5_vl", "qwen2_moe", "qwen2_window", "qwen2_yarn",
    "qwen3", "qwen3_moe", "qwen3_vl", "seed_oss", "smollm", "smollm3",
]  # fmt: skip

# sha256 of the float32 bytes: if one of these moves, every golden is worthless on that machine or numpy.
PINNED = {
    (
        1,
        "model.embed_tokens.weight",
        (131, 64),
        "matrix",
        0.2,
    ): "365a110d79794cd32474a8d504a6bab258c1e3cbc7bef50912984cfe6bda1a75",
    (
        2,
        "model.layers.0.input_layernorm.weight",
        (64,),
        "norm",
        1.0,
    ): "08d679b7ff7ab4bdae7acf70fde47b1da5a63da232a788a6672b71c001670327",
    (
        3,
        "model.norm.weight",
        (7,),
        "norm_offset",
        5.0,
    ): "997087db2932622f33d6aa78cb28aab4b89777bf0b3635c118e4734b3f088203",
    (
        4,
        "model.layers.1.self_attn.q_proj.bias",
        (3,),
        "bias",
        1.0,
    ): "b6595e4ac88940eb2303cd8e7138472c085282f088efac108ac344bbcc30835b",
}


@pytest.fixture(scope="module", params=EXPECTED_CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


def text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the keys of its language model, which may be an object in it."""
    return {**config, **config.get("text_config", {})}


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope entry in either spelling; of Gemma's two, the one of the full layers."""
    config = text_of(config)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope.get("full_attention", rope)


@pytest.mark.parametrize("arguments", PINNED)
def test_tensors_are_the_same_everywhere(arguments: tuple) -> None:
    array = tensor(*arguments)
    assert (array.dtype, array.shape) == (np.float32, arguments[2])
    assert hashlib.sha256(array.astype("<f4").tobytes()).hexdigest() == PINNED[arguments]


def test_tensors_depend_on_seed_and_name_and_have_the_promised_spread() -> None:
    first = tensor(1, "a", (200, 300), "matrix", 0.15)
    assert not np.array_equal(first, tensor(2, "a", (200, 300), "matrix", 0.15))
    assert not np.array_equal(first, tensor(1, "b", (200, 300), "matrix", 0.15))
    # 60,000 draws: the mean of a uniform variable is known to 0.0006, its standard deviation to 0.0003.
    assert abs(first.mean()) < 0.003
    assert abs(first.std() - 0.15) < 0.0015
    for kind, (centre, half_width) in KINDS.items():
        values = tensor(1, kind, (1000,), kind)
        assert centre - half_width <= values.min() < centre - 0.9 * half_width
        assert centre + 0.9 * half_width < values.max() <= centre + half_width


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind is 'normal'; it must be one of .*matrix"):
        tensor(1, "a", (2,), "normal")


def test_every_case_is_stored_and_nothing_else() -> None:
    assert cases() == EXPECTED_CASES
    assert sorted(path.name for path in GOLDENS.iterdir()) == sorted(
        f"{name}.{suffix}" for name in EXPECTED_CASES for suffix in ("json", "npz")
    )
    with pytest.raises(FileNotFoundError, match="no golden 'gpt2'"):
        load_case("gpt2")


def test_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in GOLDENS.iterdir()}
    assert max(sizes.values()) < MAX_FILE_BYTES
    assert sum(sizes.values()) < MAX_TOTAL_BYTES


def test_the_cases_together_cover_families_spellings_and_rope_types() -> None:
    configs = [load_case(name).config for name in EXPECTED_CASES]
    families = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "smollm3"}
    families |= {"exaone4", "seed_oss", "olmo3", "arcee", "hunyuan_v1_dense", "apertus", "nemotron-nas"}
    families |= {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "granitemoeshared", "glm4_moe", "gpt_oss"}
    families |= {"ministral3", "gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl"}
    assert {config["model_type"] for config in configs} == families
    ropes = {rope_of(config).get("rope_type", rope_of(config).get("type", "default")) for config in configs}
    assert ropes == {"default", "linear", "dynamic", "llama3", "yarn", "longrope"}
    assert sum("rope_parameters" in config for config in configs) >= 6
    assert sum("torch_dtype" in config for config in configs) >= 6
    assert sum(load_case(name).config_alt is not None for name in EXPECTED_CASES) >= 3
    two_way = {load_case(name).config["model_type"] for name in EXPECTED_CASES if 2 in tensor_parallel(name)}
    assert two_way >= {"llama", "qwen3", "gemma2", "phi3"}
    assert tensor_parallel("llama_tp8") == [1, 2, 4, 8]


def tensor_parallel(name: str) -> list[int]:
    return load_case(name).extra["tensor_parallel"]


def test_manifest_fits_the_config(case: GoldenCase) -> None:
    config, shapes = text_of(case.config), text_tensors(case.tensors)
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", hidden // heads)
    assert heads % kv_heads == 0
    assert shapes["model.embed_tokens.weight"] == (vocab, hidden)
    assert shapes["model.norm.weight"] == (hidden,)
    tied = config.get("tie_word_embeddings", config["model_type"].startswith("gemma"))
    assert ("lm_head.weight" in shapes) == (not tied)
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
    assert layers == set(range(config["num_hidden_layers"]))
    width = config["intermediate_size"]
    if case.name in ("nemotron_nas", "low_rank"):  # every layer has sizes of its own, which the config lists
        return
    for layer in layers:
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        assert shapes[attention + "o_proj.weight"] == (hidden, heads * head_dim)
        experts = not {name for name in shapes if name.startswith(mlp + "down_proj")}
        if not experts:
            assert shapes[mlp + "down_proj.weight"] == (hidden, width)
        if config["model_type"] == "phi3":
            assert shapes[attention + "qkv_proj.weight"] == ((heads + 2 * kv_heads) * head_dim, hidden)
            assert shapes[mlp + "gate_up_proj.weight"] == (2 * width, hidden)
        else:
            assert shapes[attention + "q_proj.weight"] == (heads * head_dim, hidden)
            assert shapes[attention + "k_proj.weight"] == shapes[attention + "v_proj.weight"]
            assert shapes[attention + "k_proj.weight"] == (kv_heads * head_dim, hidden)
            if not experts:
                assert shapes[mlp + "up_proj.weight"] == (width, hidden)
                gated = config["model_type"] not in ("arcee", "apertus")
                assert shapes.get(mlp + "gate_proj.weight") == ((width, hidden) if gated else None)


def test_one_dimensional_tensors_are_off_their_initial_values(case: GoldenCase) -> None:
    for name, array in build_tensors(case).items():
        if array.ndim == 1:
            initial = 0.0 if case.specs[name].kind in ("bias", "norm_offset") else 1.0
            assert np.abs(array - initial).mean() > 0.05, name


def test_answers_are_complete_and_consistent(case: GoldenCase) -> None:
    vocab = text_of(case.config)["vocab_size"]
    assert len(case.prompts) == len(case.logits) == len(case.greedy) == 3
    assert max(map(len, case.prompts)) > 64, "a prompt must cross several pages of 16"
    for prompt, logits, tokens in zip(case.prompts, case.logits, case.greedy, strict=True):
        assert (logits.dtype, logits.shape) == (np.float32, (len(prompt), vocab))
        assert np.isfinite(logits).all()
        assert len(tokens) == 64
        assert all(0 <= token < vocab for token in (*prompt, *tokens))
        assert int(logits[-1].argmax()) == tokens[0]
        assert len(set(tokens)) >= 8
    assert (case.decode_logits.dtype, case.decode_logits.shape) == (np.float32, (64, vocab))
    assert tuple(case.decode_logits.argmax(-1).tolist()) == case.greedy[1]
    scale = max(float(np.abs(logits).max()) for logits in case.logits)
    # with and without a cache: the same sums in another order, so a few float32 roundings apart
    assert np.abs(case.decode_logits[0] - case.logits[1][-1]).max() < 5e-6 * scale


def test_no_greedy_step_is_a_near_tie(case: GoldenCase) -> None:
    assert case.min_margin > 1e-3
    best = np.sort(case.decode_logits, axis=-1)
    assert float((best[:, -1] - best[:, -2]).min()) >= case.min_margin
    assert case.extra["float32_error"] <= 2e-6
    assert set(case.extra["made_by"]) == {"torch", "transformers", "numpy", "python", "arguments"}


def test_longrope_crosses_its_border_while_decoding(case: GoldenCase) -> None:
    stale = case.extra["stale_cache_differs_at"]
    rope = rope_of(case.config)
    if rope.get("rope_type", rope.get("type")) != "longrope":
        assert stale == [None] * 3
        return
    border = case.config["original_max_position_embeddings"]
    for prompt, step in zip(case.prompts, stale, strict=True):
        crosses = len(prompt) <= border < len(prompt) + 64
        assert (step is not None) == crosses
        # step s is read off a sequence of len(prompt) + s tokens: none can differ until that exceeds the border
        assert step is None or len(prompt) + step > border
    assert len(case.prompts[-1]) > border


def test_every_flag_shows_and_keeps_a_loadable_checkpoint(case: GoldenCase) -> None:
    assert len({flag.name for flag in case.flags}) == len(case.flags) >= 2
    right, config = build_tensors(case), build_config(case)
    for flag in case.flags:
        assert flag.error > 1e-2, flag.name
        wrong = build_tensors(case, flag=flag)
        assert set(wrong) == (set(right) | set(flag.add)) - set(flag.drop)
        changed = any(not np.array_equal(wrong[name], right[name]) for name in set(wrong) & set(right))
        if flag.tensor_ones or flag.tensor_zeros:
            assert changed
            assert build_config(case, flag=flag) == config
        else:
            assert not changed
            assert build_config(case, flag=flag) != config
    assert case.flag(case.flags[0].name) is case.flags[0]
    with pytest.raises(KeyError, match="has no flag 'nonsense'"):
        case.flag("nonsense")
    assert build_config(case) == case.config, "flags must not leak into the case"


def test_flags_with_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"flag x: unknown keys \['tensor_twos'\]"):
        flag_from_json({"name": "x", "tensor_twos": "norm"})


def test_the_second_spelling_changes_the_spelling_only(case: GoldenCase) -> None:
    if case.config_alt is None:
        with pytest.raises(ValueError, match="no second spelling"):
            build_config(case, alt=True)
        return
    assert ("dtype" in case.config_alt) != ("dtype" in case.config)
    assert ("torch_dtype" in case.config_alt) != ("torch_dtype" in case.config)
    first, second = text_of(case.config), text_of(case.config_alt)
    assert ("rope_parameters" in second) != ("rope_parameters" in first)
    spelled = {"dtype", "torch_dtype", "rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"}
    patterns = {"layer_types", "sliding_window_pattern", "max_window_layers", "no_rope_layers"}
    only_here = {"partial_rotary_factor", "no_rope_layer_interval"} | spelled | patterns
    if "text_config" in first:  # an older config may lack it, then its keys and name are those of the whole
        only_here |= {"text_config", "model_type", "use_cache"}
    for key in (set(first) | set(second)) - only_here:
        assert first[key] == second[key], key


def test_checkpoint_round_trip(case: GoldenCase, tmp_path: Path) -> None:
    folder = write_checkpoint(case, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text()) == case.config
    assert (folder / "generation_config.json").exists() == (case.generation_config is not None)
    arrays = load_file(folder / "model.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == case.tensors
    for name, array in build_tensors(case).items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_sharded_checkpoint(tmp_path: Path, shards: int) -> None:
    case = load_case("qwen2")
    folder = write_checkpoint(case, tmp_path, shards=shards)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert not (folder / "model.safetensors").exists()
    assert set(index["weight_map"]) == set(case.tensors)
    assert len(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == 4 * sum(math.prod(shape) for shape in case.tensors.values())
    right = build_tensors(case)
    for file in sorted(folder.glob("model-*.safetensors")):
        arrays = load_file(file)
        assert arrays, "no shard is empty"
        for name, array in arrays.items():
            assert index["weight_map"][name] == file.name
            np.testing.assert_array_equal(array, right.pop(name))
    assert not right
    assert json.loads((folder / "generation_config.json").read_text()) == case.generation_config


def test_impossible_shards_and_dtypes_are_refused(tmp_path: Path) -> None:
    case = load_case("llama")
    for shards in (0, len(case.tensors) + 1):
        with pytest.raises(ValueError, match=rf"shards is {shards}; it must be between 1 and"):
            write_checkpoint(case, tmp_path, shards=shards)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        write_checkpoint(case, tmp_path, dtype="int8")


def test_half_precision_checkpoints_round_to_nearest_and_say_so(tmp_path: Path) -> None:
    for name, key in (("llama", "torch_dtype"), ("mistral", "dtype")):
        case = load_case(name)
        right = build_tensors(case)
        for dtype, kind in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
            folder = write_checkpoint(case, tmp_path / name / dtype, dtype=dtype)
            assert json.loads((folder / "config.json").read_text())[key] == dtype
            arrays = load_file(folder / "model.safetensors")
            assert all(array.dtype == kind for array in arrays.values())
            for tensor_name, array in arrays.items():
                np.testing.assert_array_equal(array, right[tensor_name].astype(kind))


def test_flagged_and_respelled_checkpoints(tmp_path: Path) -> None:
    case = load_case("llama")
    flag = case.flag("tie_word_embeddings")
    folder = write_checkpoint(case, tmp_path / "flag", flag=flag)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    folder = write_checkpoint(case, tmp_path / "alt", alt=True)
    assert json.loads((folder / "config.json").read_text()) == case.config_alt
    with pytest.raises(ValueError, match="flags are written in the first spelling"):
        write_checkpoint(case, tmp_path / "both", alt=True, flag=flag)
