"""Makes a mixture of experts of the demo that computes the same function, to judge what rounding experts costs.

    python scripts/upcycle_demo.py FOLDER [--seed N]

Writes a Hugging Face folder in GLM 4.5's layout. Each MLP, 640 channels wide, becomes a shared expert of 128 and eight
experts of 128 in two groups: the four of a group have the other 512 channels between them, cut into neighbours in the
first group and dealt out in turns in the second. The router sends each token to all four of one group, by a random
product in which the rows of a group are equal; so their weights are 1/4 each, times routed_scaling_factor 4.
(Komatsuzaki et al. 2022, arXiv:2212.05055, train on from copies of the whole MLP; here nothing is trained.)
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from checkpoints.load import load_model
from jaxinfer.model_path import demo_path

GROUPS, ACTIVE, WIDTH = 2, 4, 128
SEED = 4  # of the few that were tried, one whose tokens go to both groups in every layer
FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def split_mlp(gate_up: np.ndarray, down: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(2, F, D) and (D, F) -> the same of the shared expert, then of each expert of each group."""
    channels = np.arange(gate_up.shape[1])
    shared, rest = channels[:WIDTH], channels[WIDTH:]
    parts = [shared, *np.split(rest, ACTIVE), *(rest[first::ACTIVE] for first in range(ACTIVE))]
    return [(gate_up[:, part], down[:, part]) for part in parts]


def layer_tensors(layer: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The layer's tensors by their names behind `model.layers.N.`."""
    qkv, out = np.asarray(layer["attention"]["qkv"]["weight"]), np.asarray(layer["attention"]["out"]["weight"])
    hidden = qkv.shape[-1]
    parts = {"q": qkv[:, :-2], "k": qkv[:, -2], "v": qkv[:, -1]}
    found: dict[str, Any] = {f"self_attn.{name}_proj.weight": part.reshape(-1, hidden) for name, part in parts.items()}
    found["self_attn.o_proj.weight"] = out.reshape(hidden, -1)
    found["input_layernorm.weight"] = np.asarray(layer["attention_norm"]["weight"])
    found["post_attention_layernorm.weight"] = np.asarray(layer["mlp_norm"]["weight"])
    mlps = split_mlp(np.asarray(layer["mlp"]["gate_up"]["weight"]), np.asarray(layer["mlp"]["down"]["weight"]))
    for number, ((gate, up), down) in enumerate(mlps):
        name = f"mlp.experts.{number - 1}" if number else "mlp.shared_experts"
        found |= {f"{name}.gate_proj.weight": gate, f"{name}.up_proj.weight": up, f"{name}.down_proj.weight": down}
    rows = rng.standard_normal((GROUPS, hidden)) / hidden**0.5
    found["mlp.gate.weight"] = np.repeat(rows, ACTIVE, axis=0).astype(qkv.dtype)
    found["mlp.gate.e_score_correction_bias"] = np.zeros(GROUPS * ACTIVE, np.float32)
    return found


def upcycle(folder: Path, seed: int = SEED) -> None:
    """Makes the folder, which must not exist."""
    source = demo_path()
    params, rng = load_model(source).params, np.random.default_rng(seed)
    config = json.loads((source / "config.json").read_text()) | {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "partial_rotary_factor": 1.0,
        "first_k_dense_replace": 0, "moe_intermediate_size": WIDTH, "n_shared_experts": 1, "use_qk_norm": False,
        "n_routed_experts": GROUPS * ACTIVE, "num_experts_per_tok": ACTIVE, "n_group": GROUPS, "topk_group": 1,
        "norm_topk_prob": True, "routed_scaling_factor": float(ACTIVE),
    }  # fmt: skip
    del config["mlp_bias"]  # GLM has none, and no switch for it
    tensors = {
        "model.embed_tokens.weight": np.asarray(params["embed"]["weight"]),
        "model.norm.weight": np.asarray(params["final_norm"]["weight"]),
    }
    for number, layer in params["layers"].items():
        named = layer_tensors(layer, rng)
        tensors |= {f"model.layers.{number}.{name}": np.ascontiguousarray(part) for name, part in named.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in FILES:
        shutil.copyfile(source / name, folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to make; must not exist")
    parser.add_argument("--seed", type=int, default=SEED, help="of the router")
    arguments = parser.parse_args()
    upcycle(arguments.folder, arguments.seed)
    print(f"{arguments.folder}: {GROUPS * ACTIVE} experts, {ACTIVE} active and one shared, of {WIDTH} channels each")
