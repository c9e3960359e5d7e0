"""Writes the demo, smaller, as a Hugging Face folder: to see what pruning and low rank cost. Nothing is trained.

    python scripts/make_compressed.py pruned|factored FOLDER [--keep 0.75] [--without self_attn.4 mlp.2]

pruned: MLPs keep that share of their channels, those of largest norm; --without takes a layer's attention or MLP away.
factored: each matrix becomes two factors by its singular values, with that share of its numbers."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from make_random_model import DEMO, TEXT_FILES
from safetensors.numpy import save_file

from checkpoints.layouts import Dims, layout_of
from checkpoints.load import canonical_shapes, read_config
from checkpoints.rules import family_rules
from checkpoints.store import StoredParams
from checkpoints.tensor_assembly import DTYPES

NORMS = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}


def demo_tensors() -> dict[str, np.ndarray]:  # its conversion, backwards
    config, tensors = read_config(DEMO)[0], {}
    stored = StoredParams(DEMO, shapes := canonical_shapes(config, DTYPES["float32"]), DTYPES["bfloat16"])
    for rule in (rule for rule in family_rules(config, DEMO, ()) if rule.target in shapes):
        layout = layout_of(rule, Dims.of(config, rule.target), shapes[rule.target])
        rows = stored.read(rule.target, DTYPES["float32"])[layout.placements[0].index]
        tensors[rule.source] = rows.reshape(layout.source_shape)
    return tensors


def prune(tensors: dict[str, np.ndarray], config: dict, keep: float, without: list[str]) -> None:
    config |= {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "block_configs": []}
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    for prefix in (f"model.layers.{i}." for i in range(config["num_hidden_layers"])):
        names = [f"{prefix}mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
        gate, up, down = (tensors[name] for name in names)
        norms = np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
        kept = np.sort(np.argsort(-norms)[: round(keep * len(norms))])
        tensors |= dict(zip(names, (gate[kept], up[kept], down[:, kept]), strict=True))
        gone = [part for part in NORMS if f"{part}.{prefix.split('.')[2]}" in without]
        unused = tuple(f"{prefix}{name}." for part in gone for name in (part, NORMS[part]))
        for name in [name for name in tensors if name.startswith(unused)]:
            del tensors[name]
        attention = {"n_heads_in_group": group, "no_op": "self_attn" in gone}
        mlp = {"intermediate_size": len(kept), "no_op": "mlp" in gone}
        config["block_configs"].append({"attention": attention, "ffn": mlp})


def factor(tensors: dict[str, np.ndarray], config: dict, keep: float, _: list[str]) -> None:
    for module in [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors.pop(f"{module}.weight")
        config.setdefault("truncation_ranks", {})[module] = rank = max(1, int(keep * weight.size / sum(weight.shape)))
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        tensors[f"{module}.ALinear.weight"] = left[:, :rank] * np.sqrt(values[:rank])
        tensors[f"{module}.BLinear.weight"] = np.sqrt(values[:rank, None]) * right[:rank]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["pruned", "factored"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, default=0.75)
    parser.add_argument("--without", nargs="*", default=[], metavar="PART.LAYER")
    args = parser.parse_args()
    config, tensors = json.loads((DEMO / "config.json").read_text()), demo_tensors()
    (prune if args.kind == "pruned" else factor)(tensors, config, args.keep, args.without)
    args.folder.mkdir(parents=True)
    narrow = {name: np.ascontiguousarray(array, DTYPES["bfloat16"]) for name, array in tensors.items()}
    save_file(narrow, args.folder / "model.safetensors")
    (args.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in TEXT_FILES:
        shutil.copyfile(DEMO / name, args.folder / name)
    print(f"{args.folder}: {sum(array.size for array in tensors.values()) / 1e6:.2f} M parameters")
