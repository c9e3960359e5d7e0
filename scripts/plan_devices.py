"""Which of the published mixtures of experts fit which devices, from their config.json: the table in docs/models.md.

    python scripts/plan_devices.py --topology v5e:2x4 [--kv-tokens 32768] [--model Qwen3-30B-A3B]

One device's weights in each stored form, laid out as that device keeps them, and its part of the KV cache, against its
memory: a line for each model. A `*` is behind what tensor parallelism alone cannot cut: there experts are dealt to all
devices. gpt-oss in mxfp4 is as published, with attention in bfloat16. TPUs need libtpu, GPUs JAX's CUDA plugin, as for
`compile_for.py`, which says whether the steps' temporaries go into what is left.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: devices are described, none is used
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
from jax.sharding import Mesh
from published_models import MIXTURES, STORED, WIDE, write_config

from checkpoints.folder import read_config
from checkpoints.storage import read_storage
from jaxinfer.config import AttentionConfig, ConfigError, ModelConfig, RuntimeConfig
from jaxinfer.memory_plan import abstract_model, count_parameters
from jaxinfer.runtime.engine_builder import make_layout
from jaxinfer.runtime.kv_cache import GIB
from jaxinfer.runtime.topology import LIBTPU_ENVIRONMENT, Topology, topology_mesh
from jaxinfer.sharding import expert_size, make_mesh, tensor_size
from pallas_kernels.dispatch import DeviceTarget

FORMATS = (None, "int8", "int4", "mxfp4")  # in bfloat16, and the schemes
TOPOLOGIES = ("hopper:1", "v5e:2x4", "v6e:2x4", "cpu")
CPU_MEMORY = 28 * GIB  # of a CPU with 32 GB so much is taken to be free


def described(name: str, expert: int | None = 1) -> Topology:
    if name == "cpu":
        return Topology(name, make_mesh(platform="cpu"), CPU_MEMORY)
    for variable, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    return topology_mesh(name, expert)


def weights_of(name: str, scheme: str | None, mesh: Mesh) -> int:
    """Bytes of the weights on one device. Raises ConfigError where the matrices cannot be cut that way."""
    published = name in STORED and scheme == "mxfp4"
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_config(name if published or name not in STORED else name + WIDE, Path(scratch))
        config = read_config(folder)[0]
        stored = read_storage(folder, config).matrices
    model = abstract_model(name, config, "bfloat16", mesh, None if published else scheme, stored)
    leaves = jax.tree.leaves(model.params)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def kv_bytes(name: str, config: ModelConfig, tokens: int, mesh: Mesh) -> tuple[int, int]:
    """(of a token that all layers keep, over all devices; of one device for a sequence of so many tokens)."""
    runtime = RuntimeConfig(tensor_parallel_size=tensor_size(mesh), expert_parallel_size=expert_size(mesh))
    model = abstract_model(name, config, "bfloat16", mesh)
    layout = make_layout(model, DeviceTarget.of(mesh.devices.flat[0]), runtime)
    of_a_token = layout.bytes_per_page // runtime.page_size
    mixers = [layer.mixer for layer in config.layers if isinstance(layer.mixer, AttentionConfig)]
    kept = [min(tokens, mixer.sliding_window or tokens) for mixer in mixers]
    return of_a_token * config.num_layers, of_a_token * sum(kept) // mesh.size


def line(name: str, topology: Topology, tokens: int) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        config = read_config(write_config(name, Path(scratch)))[0]
    assert topology.memory is not None
    on_cpu = topology.name == "cpu"
    usable = topology.memory * (1.0 if on_cpu else RuntimeConfig().gpu_memory_utilization)
    everything, active = count_parameters(config)
    of_a_token, pool = kv_bytes(name, config, tokens, topology.mesh)
    cells = [name, f"{everything / 1e9:.1f} B", f"{active / 1e9:.1f} B", f"{of_a_token / 1024:.0f} KiB"]
    for scheme in FORMATS:
        found = cut(name, scheme, topology)
        if found is None:
            cells.append("not cut")
            continue
        weights, mark = found
        left = usable - weights - pool
        cells.append(f"{weights / GIB:.1f}{mark}" + ("" if left > 0 else f", {-left / GIB:.1f} missing"))
    return cells


def cut(name: str, scheme: str | None, topology: Topology) -> tuple[int, str] | None:
    """Bytes of the weights on one device, and a mark if experts had to be dealt; None where they cannot be cut."""
    for expert, mark in ((1, ""), (None, "*")):
        mesh = topology.mesh if expert == 1 else described(topology.name, expert).mesh
        try:
            return weights_of(name, scheme, mesh), mark
        except ConfigError as error:
            print(f"{name}, {topology.name}, {scheme}: {error}", file=sys.stderr)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, choices=TOPOLOGIES)
    parser.add_argument("--kv-tokens", type=int, default=32768, help="of one sequence, beside the weights")
    parser.add_argument("--model", action="append", choices=MIXTURES, help="may be repeated")
    args = parser.parse_args()
    topology = described(args.topology)
    for name in args.model or MIXTURES:
        print("| " + " | ".join(line(name, topology, args.kv_tokens)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
