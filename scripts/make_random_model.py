"""Writes a Hugging Face folder of a published Llama shape with random weights and the demo's tokenizer, for benchmarks.

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


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of a Llama checkpoint."""
    hidden, mlp, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    query, kv = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
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
        yield f"{prefix}.mlp.gate_proj.weight", (mlp, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (mlp, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, mlp)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=[name for name, config in SHAPES.items() if config["model_type"] == "llama"])
    parser.add_argument("folder", type=Path, help="folder to make; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = SHAPES[args.shape]
    args.folder.mkdir(parents=True)
    rng = np.random.default_rng(args.seed)
    tensors = {
        name: np.ones(shape, ml_dtypes.bfloat16)
        if len(shape) == 1
        else (rng.standard_normal(shape, np.float32) * DEVIATION).astype(ml_dtypes.bfloat16)
        for name, shape in tensor_shapes(config)
    }
    save_file(tensors, args.folder / "model.safetensors", metadata={"format": "pt"})
    (args.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TEXT_FILES:
        shutil.copyfile(DEMO / name, args.folder / name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{args.folder}: {args.shape}, {len(tensors)} tensors, {size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
