"""The network's parameters out of a checkpoint, to train on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints.load import load_model
from demo_training.network import NetworkConfig


def params_of(folder: Path, config: NetworkConfig) -> dict[str, Any]:
    """The parameters as `Network` names and lays them out, float32: `export` and `jaxinfer convert` backwards.

    Raises:
        ValueError: the checkpoint is of another size.
    """
    stored = load_model(folder).params
    embedding = np.asarray(stored["embed"]["weight"])
    layers = {int(number): _layer(layer) for number, layer in stored["layers"].items()}
    params = {
        "embedding": embedding,
        "layers": layers,
        "norm": {"scale": np.asarray(stored["final_norm"]["weight"])},
    }
    sizes = (
        len(layers),
        *embedding.shape,
        *layers[0]["mlp"]["gate"].shape,
        layers[0]["attention"]["k"].shape,
    )
    asked = (config.layers, config.vocab_size, config.hidden, config.hidden, config.mlp)
    if sizes != (*asked, (config.hidden, config.kv_heads * config.head_dim)):
        raise ValueError(f"{folder}: has other sizes than the network that is asked for ({config})")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def _layer(layer: dict[str, Any]) -> dict[str, Any]:
    """Stored matrices are (out, in), fused: qkv (K, N/K + 2, H, D) and gate_up (2, F, D)."""
    qkv, out = (np.asarray(layer["attention"][name]["weight"]) for name in ("qkv", "out"))
    (gate, up), down = (np.asarray(layer["mlp"][name]["weight"]) for name in ("gate_up", "down"))
    hidden = qkv.shape[-1]
    parts = {"q": qkv[:, :-2], "k": qkv[:, -2], "v": qkv[:, -1]}
    return {
        "attention": {
            **{name: part.reshape(-1, hidden).T for name, part in parts.items()},
            "o": out.reshape(hidden, -1).T,
        },
        "attention_norm": {"scale": np.asarray(layer["attention_norm"]["weight"])},
        "mlp": {"gate": gate.T, "up": up.T, "down": down.T},
        "mlp_norm": {"scale": np.asarray(layer["mlp_norm"]["weight"])},
    }
