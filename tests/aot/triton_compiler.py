"""Compiles programs with Triton kernels for cards that are not here, down to the assembler's report.

Needs jax-triton, JAX's CUDA plugin and `ptxas`, and no GPU. Compiles in a process of its own: what jax-triton writes
for debugging goes where an environment variable says, and an error inside LLVM aborts the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jax.experimental import topologies

from jaxinfer.runtime.topology import Topology
from jaxinfer.sharding import tensor_mesh
from pallas_kernels import ptxas
from tests.aot.elsewhere import run_elsewhere

# Shared memory that a block of threads may have (CUDA C++ programming guide, technical specifications by compute
# capability), and what XLA is told of a card of that kind, from public specifications.
CARDS: dict[int, dict[str, Any]] = {
    80: {"name": "NVIDIA A100-SXM4-80GB", "shared": 166_912, "cores": 108, "threads": 2048},
    86: {"name": "NVIDIA A10", "shared": 101_376, "cores": 72, "threads": 1536},
    89: {"name": "NVIDIA L4", "shared": 101_376, "cores": 58, "threads": 1536},
    90: {"name": "NVIDIA H200", "shared": 232_448, "cores": 132, "threads": 2048},
    100: {"name": "NVIDIA B200", "shared": 232_448, "cores": 148, "threads": 2048},
    103: {"name": "NVIDIA B300", "shared": 232_448, "cores": 158, "threads": 2048},
    120: {"name": "NVIDIA GeForce RTX 5090", "shared": 101_376, "cores": 170, "threads": 1536},
    121: {"name": "NVIDIA GB10", "shared": 101_376, "cores": 48, "threads": 1536},
}

NEEDS = [
    pytest.mark.skipif(
        importlib.util.find_spec("jax_triton") is None,
        reason="jax-triton is not installed: the kernel cannot be compiled",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None and importlib.util.find_spec("jax_cuda12_plugin") is None,
        reason="JAX's CUDA plugin is not installed: nothing can be compiled for a GPU",
    ),
    pytest.mark.skipif(ptxas.find() is None, reason="ptxas, of the CUDA toolkit, is not here"),
]


def compile_elsewhere(module: str, folder: Path, *arguments: Any) -> list[dict[str, Any]]:
    """What `tell` says of the kernels in a process that runs `module` with these arguments.

    Args:
        folder: an empty one, for what jax-triton writes.
    """
    environment = {"JAX_TRITON_DUMP_DIR": str(folder)}
    done = run_elsewhere(module, *map(str, arguments), environment=environment, timeout=110)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def tell() -> None:
    """Prints what the assembler says of all kernels that this process compiled."""
    print(json.dumps([resources(folder) for folder in Path(os.environ["JAX_TRITON_DUMP_DIR"]).iterdir()]))


def topology(capability: int, devices: int) -> Topology:
    """Cards that are not here."""
    card = CARDS[capability]
    description = topologies.get_topology_desc(
        "",
        platform="cuda",
        topology=f"1x1x{devices}",
        target_config=f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {card["shared"] + 1024}
  shared_memory_per_block_optin: {card["shared"]}
  threads_per_core_limit: {card["threads"]} core_count: {card["cores"]} fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 600000000000 l2_cache_size: 6291456 clock_rate_ghz: 1.4 device_memory_size: 24000000000
  cuda_compute_capability {{ major: {capability // 10} minor: {capability % 10} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }}
device_description_str: "{card["name"]}"
""",
    )
    mesh = tensor_mesh(description.devices)
    return Topology(card["name"], mesh, None)


def resources(folder: Path) -> dict[str, Any]:
    """What the assembler says of a kernel that jax-triton wrote down."""
    (source,) = folder.glob("*.ptx")
    (information,) = folder.glob("*.compile_info")
    text = source.read_text()
    target = re.findall(r"^\.target (\w+)", text, re.MULTILINE)[0]
    assembler = ptxas.find()
    assert assembler is not None
    command = [assembler.path, "-v", f"-arch={target}", source, "-o", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "target": target,
        "shared": int(re.findall(r"shared_mem_bytes: (\d+)", information.read_text())[0]),
        "registers": int(re.findall(r"Used (\d+) registers", told)[0]),
        "spills": [int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", told)],
        "ahead": max((int(count) for count in re.findall(r"cp\.async\.wait_group\s+(?:0x)?(\d+)", text)), default=0),
        "products": len(re.findall(r"(?:wg)?mma\S*\.bf16\.bf16|tcgen05\.mma\S*kind::f16", text)),
        "fused": text.count("fma.rn.f32"),
        "tf32": text.count("tf32"),
    }
