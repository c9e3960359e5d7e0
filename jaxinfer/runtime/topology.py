"""Meshes of devices that are not here, for ahead-of-time compilation, and what a compiled program says of itself.

TPU topologies need the `libtpu` package, GPU ones JAX's CUDA plugin; neither needs a device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.experimental import topologies
from jax.sharding import Mesh

from jaxinfer.config import ConfigError
from jaxinfer.sharding import mesh_of

# What libtpu must find in the environment when it is loaded where there is no TPU: no metadata server to ask, any slice
# to begin with, and other processes that may load it too.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Bytes of one device that programs may use. libtpu refuses what does not fit by itself, and says then, in GiB, what
# would have; the GPU compiler does not refuse, and a GPU's are the public figure.
_TPU_MEMORY = {
    kind: int(available * (1 << 30))
    for kind, available in (
        ("TPU v4", 15.25), ("TPU v5 lite", 15.75), ("TPU v5", 95.73), ("TPU v6 lite", 31.24), ("TPU7x", 94.74),
    )
}  # fmt: skip
_HOPPER_MEMORY = 141_000_000_000
# An H200 as XLA's GPU compiler wants it described: public specifications, and versions as XLA's own description of one
# has them. Without a driver's version the compiler believes in a driver that captures neither kernels of ours nor
# branches in a command buffer, and what it makes is not what a device runs; without CUB's it sorts in many kernels.
_HOPPER = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 clock_rate_ghz: 1.98
  device_memory_size: {_HOPPER_MEMORY}
  cuda_compute_capability {{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0" cub_version: "3.1.2"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA H200"
"""
_NAME = re.compile(r"(hopper):(\d+)|(v[2-6][a-z]?|tpu7x):(\d+(?:x\d+){1,2})")
_COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)
_ARRAY = re.compile(r"(pred|[suf]\d+|bf16|f8e\w+)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
# A Pallas kernel in a TPU program, and the on-chip memory (space 1) that it takes.
_TPU_KERNEL = re.compile(
    r"%(?P<name>[\w-]+?)(?:\.\d+)? = .*custom_call_target=\"tpu_custom_call\".*"
    r"\"used_scoped_memory_configs\":\[\{\"memory_space\":\"1\",\"offset\":\"\d+\",\"size\":\"(?P<size>\d+)\""
)


@dataclass(frozen=True)
class Topology:
    """Devices to compile for: a mesh over all of them, and the bytes of one device that programs may use, where that is
    known."""

    name: str
    mesh: Mesh
    memory: int | None


def topology_mesh(name: str, expert: int | None = 1) -> Topology:
    """The topology `v5e:2x4`, `v6e:2x2`, `v5p:2x2x1`, `tpu7x:2x2x1`, `hopper:4`, ..., all along the tensor axis.

    expert: how many of them lie along the expert axis instead, None for all: the tensor axis has their number divided
    by it.

    Raises:
        ConfigError: a name of another form, one that the compiler does not know, its package is missing, or `expert`
            does not divide the devices.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"topology is {name!r}; expected a TPU slice such as v5e:2x4 or v5p:2x2x1, or hopper:N")
    try:
        if match[1]:
            description = topologies.get_topology_desc(
                "", platform="cuda", target_config=_HOPPER, topology=f"1x1x{match[2]}"
            )
        else:
            # The smallest slice that the compiler describes is a whole host; one chip needs its bounds spelled out.
            single = {"chips_per_host_bounds": (1, 1, 1)} if set(match[4].split("x")) == {"1"} else {}
            description = topologies.get_topology_desc(name, platform="tpu", **single)
    except Exception as error:  # the plugins raise types of their own
        raise ConfigError(f"topology {name!r} cannot be described here: {error}") from error
    devices: Sequence[Any] = description.devices
    memory = _HOPPER_MEMORY if match[1] else _TPU_MEMORY.get(devices[0].device_kind)
    return Topology(name, mesh_of(devices, len(devices) if expert is None else expert), memory)


@dataclass(frozen=True)
class ProgramReport:
    """One device's share of a compiled program. Byte counts; None where the compiler does not say.

    Attributes:
        arguments, outputs, temporaries, donated: memory; `donated` is the part of the outputs that reuses arguments.
        flops, bytes_accessed: the compiler's own estimate, which knows of a Pallas kernel only what it was told.
        collectives: kind -> (how many, bytes of their results).
        kernels: name of a Pallas kernel -> bytes of on-chip memory (VMEM) that it takes at most. TPU programs only.
    """

    arguments: int
    outputs: int
    temporaries: int
    donated: int
    flops: float | None
    bytes_accessed: float | None
    collectives: dict[str, tuple[int, int]]
    kernels: dict[str, int]

    @property
    def peak(self) -> int:
        """What must be in memory at once."""
        return self.arguments + self.outputs - self.donated + self.temporaries


def report(compiled: Any) -> ProgramReport:
    """Reads a `jax.stages.Compiled`."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    text = compiled.as_text()
    return ProgramReport(
        arguments=int(memory.argument_size_in_bytes),
        outputs=int(memory.output_size_in_bytes),
        temporaries=int(memory.temp_size_in_bytes),
        donated=int(memory.alias_size_in_bytes),
        flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
        collectives=collectives(text),
        kernels=kernels(text),
    )


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Counts the collectives in the text of an optimised program, and the bytes of their results."""
    found: dict[str, tuple[int, int]] = {}
    for match in _COLLECTIVE.finditer(program):
        sizes = [_bytes(kind, shape) for kind, shape in _ARRAY.findall(match["shape"])]
        # An asynchronous start gives its operands and its results as one tuple: the results are the larger part.
        size = max(sizes, default=0) if f"{match['kind']}-start(" in match[0] else sum(sizes)
        count, total = found.get(match["kind"], (0, 0))
        found[match["kind"]] = (count + 1, total + size)
    return found


def sent_bytes(found: Mapping[str, tuple[int, int]], devices: int) -> int:
    """What each of so many devices sends in `collectives`, in bytes, where all take part and pass parts around a ring
    (Thakur et al. 2005, doi:10.1177/1094342005051521): no way of doing them sends less."""
    others = devices - 1
    shares = {"all-reduce": 2 * others / devices, "reduce-scatter": others, "collective-permute": 1}
    return int(sum(size * shares.get(kind, others / devices) for kind, (_, size) in found.items()))


def kernels(program: str) -> dict[str, int]:
    """Reads the Pallas kernels and the on-chip memory that each takes off the text of an optimised TPU program."""
    found: dict[str, int] = {}
    for match in _TPU_KERNEL.finditer(program):
        found[match["name"]] = max(found.get(match["name"], 0), int(match["size"]))
    return found


def _bytes(kind: str, shape: str) -> int:
    bits = 8 if kind == "pred" or kind.startswith("f8") else int(_BITS.findall(kind)[0])
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8
