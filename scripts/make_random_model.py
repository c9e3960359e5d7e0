"""Writes a Hugging Face folder of a known shape with random weights and the demo's tokenizer, for benchmarks.

    python scripts/make_random_model.py llama-0.3b FOLDER [--seed 0]

Matrices are bfloat16, normal with deviation 0.02 (the usual `initializer_range`); norms are ones. It answers noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))

from model_shapes import SHAPES

DEMO = Path(__file__).resolve().parent.parent / "checkpoints" / "demo"
TEXT_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
DEVIATION = 0.02
KINDS = ("llama", "qwen3", "qwen3_moe")
_HEAD_NORMS = ("qwen3", "qwen3_moe")


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of a Llama, Qwen 3 or Qwen 3 MoE checkpoint."""
    hidden, mlp, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    query, kv = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    experts = config.get("num_experts", 0)
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj.weight", (query, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, query)
        if config["model_type"] in _HEAD_NORMS:
            yield f"{prefix}.self_attn.q_norm.weight", (head_dim,)
            yield f"{prefix}.self_attn.k_norm.weight", (head_dim,)
        if experts:
            yield f"{prefix}.mlp.gate.weight", (experts, hidden)
            for expert in range(experts):
                yield from _mlp(f"{prefix}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
        else:
            yield from _mlp(f"{prefix}.mlp", hidden, mlp)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)


def _mlp(prefix: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.gate_proj.weight", (width, hidden)
    yield f"{prefix}.up_proj.weight", (width, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, width)


def write_model(shape: str, folder: Path, seed: int = 0) -> int:
    """Makes the folder, which must not exist, and returns the bytes of its tensors."""
    config = SHAPES[shape]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {
        name: np.ones(shape, ml_dtypes.bfloat16)
        if len(shape) == 1
        else (rng.standard_normal(shape, np.float32) * DEVIATION).astype(ml_dtypes.bfloat16)
        for name, shape in tensor_shapes(config)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TEXT_FILES:
        shutil.copyfile(DEMO / name, folder / name)
    return sum(tensor.nbytes for tensor in tensors.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=[name for name, shape in SHAPES.items() if shape["model_type"] in KINDS])
    parser.add_argument("folder", type=Path, help="folder to make; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    size = write_model(args.shape, args.folder, args.seed)
    print(f"{args.folder}: {args.shape}, {size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
