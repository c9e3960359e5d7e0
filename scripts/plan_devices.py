"""Which of the published mixtures of experts fit which devices, from their config.json: the table in docs/models.md.

    python scripts/plan_devices.py --topology v5e:2x4 [--kv-tokens 32768] [--model Qwen3-30B-A3B]

One device's weights in each stored form, laid out as that device keeps them, and its part of the KV cache, against its
memory: a line for each model. A topology is one of `MEMORY`; TPUs need libtpu, GPUs JAX's CUDA plugin, as for
`compile_for.py`, which says whether the steps' temporaries go into what is left.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: devices are described, none is used
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
from jax.sharding import Mesh

from jaxinfer.config import AttentionConfig, ConfigError, ModelConfig, RuntimeConfig
from jaxinfer.memory_plan import abstract_model, count_parameters
from jaxinfer.models.registry import model_config
from jaxinfer.runtime.engine_builder import make_layout
from jaxinfer.runtime.topology import LIBTPU_ENVIRONMENT, topology_mesh
from jaxinfer.sharding import make_mesh, tensor_size
from pallas_kernels.dispatch import DeviceTarget
from tests.jaxinfer.models import hub_configs

MODELS = ("Mixtral-8x7B", "Qwen3-30B-A3B", "GLM-4.5-Air", "gpt-oss-20b", "gpt-oss-120b")
FORMATS = (None, "int8", "int4", "mxfp4")  # as stored, in bfloat16, and the schemes
GIB = 1 << 30
# Bytes of one device that programs may use. TPUs: what the compilers for them allow. An accelerator's share for weights
# and pool is RuntimeConfig.gpu_memory_utilization; of a CPU with 32 GB, 28 GiB are taken to be free.
MEMORY = {"hopper:1": 141_000_000_000, "v5e:2x4": int(15.75 * GIB), "v6e:2x4": int(31.25 * GIB), "cpu": 28 * GIB}


def mesh_of(topology: str) -> Mesh:
    if topology == "cpu":
        return make_mesh(platform="cpu")
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return topology_mesh(topology).mesh


def weights_of(name: str, config: ModelConfig, scheme: str | None, mesh: Mesh) -> int:
    """Bytes of the weights on one device. Raises ConfigError where the matrices cannot be cut that way."""
    model = abstract_model(name, config, "bfloat16", mesh, scheme)
    leaves = jax.tree.leaves(model.params)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def kv_bytes(name: str, config: ModelConfig, tokens: int, mesh: Mesh) -> tuple[int, int]:
    """(of a token that all layers keep, over all devices; of one device for a sequence of so many tokens)."""
    runtime = RuntimeConfig(tensor_parallel_size=tensor_size(mesh))
    model = abstract_model(name, config, "bfloat16", mesh)
    layout = make_layout(model, DeviceTarget.of(mesh.devices.flat[0]), runtime)
    of_a_token = layout.bytes_per_page // runtime.page_size
    mixers = [layer.mixer for layer in config.layers if isinstance(layer.mixer, AttentionConfig)]
    kept = [min(tokens, mixer.sliding_window or tokens) for mixer in mixers]
    return of_a_token * config.num_layers, of_a_token * sum(kept) // tensor_size(mesh)


def line(name: str, topology: str, tokens: int, mesh: Mesh) -> list[str]:
    config = model_config(hub_configs.ALL[name])
    usable = MEMORY[topology] * (1.0 if topology == "cpu" else RuntimeConfig().gpu_memory_utilization)
    everything, active = count_parameters(config)
    of_a_token, pool = kv_bytes(name, config, tokens, mesh)
    cells = [name, f"{everything / 1e9:.1f} B", f"{active / 1e9:.1f} B", f"{of_a_token / 1024:.0f} KiB"]
    for scheme in FORMATS:
        try:
            weights = weights_of(name, config, scheme, mesh)
        except ConfigError as error:
            print(f"{name}, {topology}, {scheme}: {error}", file=sys.stderr)
            cells.append("cannot be cut")
            continue
        left = usable - weights - pool
        cells.append(f"{weights / GIB:.1f}: " + ("fits" if left > 0 else f"{-left / GIB:.1f} missing"))
    return cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, choices=list(MEMORY))
    parser.add_argument("--kv-tokens", type=int, default=32768, help="of one sequence, beside the weights")
    parser.add_argument("--model", action="append", choices=list(hub_configs.ALL), help="may be repeated")
    args = parser.parse_args()
    mesh = mesh_of(args.topology)
    for name in args.model or MODELS:
        print("| " + " | ".join(line(name, args.topology, args.kv_tokens, mesh)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
