"""Writes tests/goldens_rope.json: what transformers makes of rope settings, as it reads and computes them itself.

    VENV/bin/python scripts/make_rope_goldens.py

Needs transformers and torch, which the project itself does without. A case is a whole config.json; recorded are, for
each layer type, frequencies and attention factor and, for longrope, those beyond the trained length; or the error.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens_rope.json"

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
_PHI: dict[str, Any] = {**_LLAMA, "model_type": "phi3", "original_max_position_embeddings": 1024}
_GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_hidden_layers": 6,
}
_SHORT, _LONG = [1.0 + i / 10 for i in range(8)], [2.0 + i for i in range(8)]
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
_GEMMA_YARN = {**_YARN, "rope_theta": 1e6}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONGROPE = {"type": "longrope", "short_factor": _SHORT, "long_factor": _LONG}
_SLIDING = {"rope_type": "default", "rope_theta": 1e4}


def _scaled(**scaling: Any) -> dict[str, Any]:
    return {**_LLAMA, "rope_theta": 1e4, "rope_scaling": scaling}


CASES: dict[str, dict[str, Any]] = {
    "default": {**_LLAMA, "rope_theta": 5e5},
    "twice, in parameters": {
        **_LLAMA,
        "rope_theta": 1e4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
    "twice, in scaling": _scaled(type="linear", factor=2.0, rope_theta=5e5),
    "linear": _scaled(type="linear", factor=4.0),
    "dynamic": _scaled(type="dynamic", factor=4.0),
    "llama3": _scaled(**_LLAMA3, original_max_position_embeddings=1024),
    "llama3 without trained length": _scaled(**_LLAMA3),
    "llama3 with the trained length at the top": {**_scaled(**_LLAMA3), "original_max_position_embeddings": 1024},
    "yarn": _scaled(**_YARN),
    "yarn without factor": _scaled(rope_type="yarn", original_max_position_embeddings=1024),
    "yarn with null factor": _scaled(rope_type="yarn", factor=None, original_max_position_embeddings=1024),
    "yarn without trained length": _scaled(rope_type="yarn", factor=4.0),
    "yarn untruncated": _scaled(**_YARN, truncate=False),
    "yarn with attention factor": _scaled(**_YARN, attention_factor=1.25),
    "yarn with mscale": _scaled(**_YARN, mscale=1.0, mscale_all_dim=0.8),
    "yarn with one mscale": _scaled(**_YARN, mscale=0.707),
    "yarn with betas": _scaled(**_YARN, beta_fast=16, beta_slow=2),
    "yarn with zero betas": _scaled(**_YARN, beta_fast=0, beta_slow=0),
    "yarn with an empty ramp": _scaled(**{**_YARN, "original_max_position_embeddings": 7}, beta_fast=1, beta_slow=1),
    "longrope": {**_PHI, "rope_scaling": _LONGROPE},
    "su": {**_PHI, "rope_scaling": {**_LONGROPE, "type": "su"}},
    "longrope with factor": {**_PHI, "rope_scaling": {**_LONGROPE, "factor": 32.0}},
    "longrope of a class without a trained length": {**_LLAMA, "rope_scaling": {**_LONGROPE, "factor": 4.0}},
    "phi3, partial": {**_PHI, "partial_rotary_factor": 0.5},
    "gemma3": _GEMMA,
    "gemma3, linear": {**_GEMMA, "rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3, yarn": {**_GEMMA, "rope_parameters": {"full_attention": _GEMMA_YARN, "sliding_attention": _SLIDING}},
    "gemma3, yarn untruncated": {
        **_GEMMA,
        "rope_parameters": {"full_attention": {**_GEMMA_YARN, "truncate": False}, "sliding_attention": _SLIDING},
    },
    "gemma3, trained length at the top": {
        **_GEMMA,
        "original_max_position_embeddings": 512,
        "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
            "sliding_attention": _SLIDING,
        },
    },
    "gemma3, theta twice": {
        **_GEMMA,
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": _SLIDING,
        },
    },
}


def _default(config: Any, layer_type: str | None) -> tuple[list[float], float]:
    """`default` is no entry of the table: models compute it themselves, from theta and the rotated part of a head."""
    rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = int(head * rope.get("partial_rotary_factor", 1.0))
    return [rope["rope_theta"] ** (-2 * pair / size) for pair in range(size // 2)], 1.0


def _compute(config: Any, layer_type: str | None, length: int | None) -> dict[str, Any]:
    rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    if rope["rope_type"] == "default":
        frequencies, factor = _default(config, layer_type)
    else:
        function = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        tensor, factor = function(config, "cpu", seq_len=length, layer_type=layer_type)
        frequencies = tensor.tolist()
    return {"frequencies": frequencies, "attention_factor": factor}


def run(config: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            read = AutoConfig.from_pretrained(folder)
        except Exception as error:  # whatever the library refuses with is what is recorded
            return {"error": f"{type(error).__name__}: {error.args[0]}"}
    if config["model_type"] == "gemma3_text":
        return {kind: _compute(read, kind, None) for kind in ("full_attention", "sliding_attention")}
    found = {"all": _compute(read, None, None)}
    if read.rope_parameters["rope_type"] == "longrope":
        found["long"] = _compute(read, None, 2 * read.max_position_embeddings)
    return found


def main() -> None:
    cases = {name: {"config": config, **run(config)} for name, config in CASES.items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    OUT.write_text(
        f'{{\n "transformers": "{transformers.__version__}",\n "cases": {{\n{lines}\n }}\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
