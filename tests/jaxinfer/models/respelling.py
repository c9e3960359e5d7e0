"""How config.json files are spelled: what nearly all have, and the newer spelling of an older one."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def published(architecture: str, model_type: str, dtype: str = "bfloat16", **values: Any) -> Config:
    """What nearly every published file has besides its own values."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        "transformers_version": "4.43.1",
        "use_cache": True,
    } | values


def text_part(config: Config) -> Config:
    """The object that describes the language model."""
    text: Config = config.get("text_config", config)
    return text


def respelled(config: Config) -> Config:
    """The same config in the newer spelling: `dtype`, and all rope settings in `rope_parameters`."""
    if "text_config" in config:
        dtype = config.get("torch_dtype") or config["text_config"]["dtype"]
        text = respelled({key: value for key, value in config["text_config"].items() if key != "dtype"})
        return {key: value for key, value in config.items() if key != "torch_dtype"} | {
            "text_config": text, "dtype": dtype,
        }  # fmt: skip
    if "rope_parameters" in config:
        return dict(config)
    new = {key: value for key, value in config.items() if key not in ("torch_dtype", "rope_theta", "rope_scaling")}
    if "torch_dtype" in config:
        new["dtype"] = config["torch_dtype"]
    scaling = dict(config.get("rope_scaling") or {"rope_type": "default"})
    scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type"))
    rope = scaling | {"rope_theta": config.get("rope_theta", 10000.0)}
    if "partial_rotary_factor" in new:
        rope["partial_rotary_factor"] = new.pop("partial_rotary_factor")
    if config["model_type"] == "gemma3_text":
        rope["rope_theta"] = config.get("rope_theta", 1000000.0)
        local = {"rope_type": "default", "rope_theta": new.pop("rope_local_base_freq", 10000.0)}
        rope = {"full_attention": rope, "sliding_attention": local}
        period, count = new.pop("sliding_window_pattern", 6), config["num_hidden_layers"]
        kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(count)]
        new |= {"layer_types": kinds, "_sliding_window_pattern": period, "use_bidirectional_attention": False}
    if config["model_type"] == "olmo3":
        local = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        rope = {"full_attention": rope, "sliding_attention": local}
    return new | {"rope_parameters": rope}
