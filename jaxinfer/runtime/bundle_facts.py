"""What a bundle's executables were made for and with, as JSON: a bundle is used where all of it is the same.

An executable is a compiler's output for one program, one kind of device and one set of flags, and nothing in it says
so. Here is everything that shapes one, and what only the arguments of a call carry (weights, a request's parameters) is
not.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import pallas_kernels
from jaxinfer.config import ConfigError, ModelConfig, RuntimeConfig
from jaxinfer.models.model import Model
from jaxinfer.models.shape import ModelShape
from jaxinfer.runtime.engine_builder import make_layout, resolve_max_logprobs
from jaxinfer.runtime.kv_cache import Sizes, resolve_sizes
from jaxinfer.sharding import expert_size, model_size, tensor_size
from pallas_kernels import ptxas
from pallas_kernels.dispatch import DeviceTarget, withdrawn

# Fields of RuntimeConfig that shape programs, and those that do not (a test finds a field that is in neither).
SHAPING_SETTINGS = frozenset(
    {
        "dtype", "quantization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "step_sizes",
        "max_logprobs", "kv_cache_dtype", "page_size", "num_pages", "tensor_parallel_size", "expert_parallel_size",
        "batch_invariant", "attention_backend", "cpu_kernels",
    }
)  # fmt: skip
OTHER_SETTINGS = frozenset(
    {
        "gpu_memory_utilization",  # decides num_pages, which is among the above
        "enable_prefix_caching", "priority_ageing_seconds", "seed", "compilation_cache_dir", "bundle",
        "self_test",  # what it withdraws is a fact of its own
        "serve_while_warming", "language_model_only", "max_pinned_ratio", "max_pinned_ratio_per_tenant",
        "device",  # the mesh says which it is
        "enable_expert_parallel",  # decides the two sizes above
    }
)  # fmt: skip
# Of the model's description: what other files may say anew, and is an argument of programs.
_UNSHAPING_MODEL_FIELDS = ("eos_token_ids", "pad_token_id", "notes")
_PACKAGES = {
    "cpu": ("jax", "jaxlib", "flax"),
    "gpu": (
        "jax", "jaxlib", "flax", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt",
        "jax-triton", "triton",  # where they are missing XLA serves
    ),
    "tpu": ("jax", "jaxlib", "flax", "libtpu"),
}  # fmt: skip
_JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_debug_nans",
)
# Flags that say where compilers write what they think, or how many virtual devices there are, which the mesh says.
_UNSHAPING_FLAGS = re.compile(r"--xla_(dump_\w*|force_host_platform_device_count)(=.*)?")
# What compilers ask of an x86 CPU; the other words of /proc/cpuinfo are the kernel's and the hypervisor's business.
_X86_FEATURES = re.compile(
    r"(s?sse|pni|avx|amx|fma|f16c|bmi|abm|popcnt|aes|vaes|v?pclmul|sha|sm[34]|gfni|movbe|movdir|adx|xop|tbm|cx16|lahf"
    r"|xsave|mmx|3dnow|rdrand|rdseed|rdpid|clflushopt|clwb|clzero|prefetch|wbnoinvd|serialize|fsgsbase|lm$|cmov|fxsr)\w*"
)
_CPUINFO = Path("/proc/cpuinfo")


def program_facts(
    config: ModelConfig, stored: Mapping[str, Any], runtime: RuntimeConfig, mesh: Mesh, sizes: Sizes, dtype: str
) -> dict[str, Any]:
    """Everything that shapes an engine's programs.

    stored: what the checkpoint has quantized, as `checkpoints.storage.Storage.to_dict` says it. sizes, dtype: resolved.
    Raises ConfigError where the CPU does not say what it is.
    """
    target = DeviceTarget.of(mesh.devices.flat[0])
    model = config.to_dict()
    for name in _UNSHAPING_MODEL_FIELDS:
        model.pop(name, None)
    return {
        "jaxinfer": installed_version("jaxinfer"),
        "sources": sources_digest(),
        "packages": _versions(target.platform),
        "device": {
            "platform": target.platform,
            "kind": target.device_kind,
            "compute_capability": None if target.compute_capability is None else list(target.compute_capability),
        },
        "mesh": {"axes": dict(mesh.shape), "device_ids": [device.id for device in mesh.devices.flat]},
        "cpu": cpu_facts() if target.platform == "cpu" else None,
        "ptx": _newest_ptx() if target.platform == "gpu" else None,
        "flags": {name: _flags(os.environ.get(name, "")) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
        "settings_of_jax": {name: _plain(getattr(jax.config, name)) for name in _JAX_SETTINGS},
        "withdrawn": sorted(f"{op}: {backend}" for op, backend in withdrawn()),
        "model": _digest(model),
        "stored": _digest(stored),
        "settings": {
            "dtype": dtype,
            "quantization": runtime.quantization,
            "kv_cache_dtype": runtime.kv_cache_dtype,
            "max_model_len": sizes.max_model_len,
            "max_num_seqs": sizes.max_num_seqs,
            "max_num_batched_tokens": sizes.max_num_batched_tokens,
            "step_sizes": None if runtime.step_sizes is None else list(runtime.step_sizes),
            "max_logprobs": resolve_max_logprobs(runtime, config),
            "page_size": sizes.page_size,
            "num_pages": sizes.num_pages,
            "tensor_parallel_size": tensor_size(mesh),
            "expert_parallel_size": expert_size(mesh),
            "batch_invariant": runtime.batch_invariant,
            "attention_backend": runtime.attention_backend,
            "cpu_kernels": runtime.cpu_kernels,
        },
    }


def expected_sizes(config: ModelConfig, runtime: RuntimeConfig, mesh: Mesh) -> tuple[Sizes, str]:
    """The sizes and the weights' dtype of an engine whose `runtime.num_pages` is given, before anything is loaded.

    Raises ConfigError for what cannot be.
    """
    dtype = runtime.weights_dtype(config.dtype)
    target = DeviceTarget.of(mesh.devices.flat[0])
    shape = ModelShape.of(config, model_size(mesh), expert_size(mesh))
    described = Model("", config, shape, dtype, None, {})  # type: ignore[arg-type]
    layout = make_layout(described, target, runtime)
    return resolve_sizes(config, runtime, layout, None, target.platform), dtype


def sources_digest() -> str:
    """Of the files of the engine's own rooms: a version number stands for many states of a working copy."""
    found = hashlib.sha256()
    for root in (Path(__file__).resolve().parents[1], Path(str(pallas_kernels.__file__)).parent):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".cc", ".cpp", ".h", ".so"):
                found.update(f"{root.name}/{path.relative_to(root)}\0".encode())
                found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def cpu_facts(cpuinfo: Path = _CPUINFO) -> dict[str, Any]:
    """Which CPU this is, what it can do, and how many cores compilers split work for.

    Raises ConfigError where the system does not say.
    """
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError as error:
        raise ConfigError(f"{cpuinfo} cannot be read, so the CPU's features are not known: {error}") from error
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    words = sorted(set((said.get("flags") or said.get("Features") or "").split()))
    if not words:
        raise ConfigError(f"{cpuinfo} names no features of the CPU")
    if "flags" in said:
        words = [word for word in words if _X86_FEATURES.match(word)]
    names = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU architecture", "CPU part")
    return {
        "architecture": platform.machine(),
        **{name: said[name] for name in names if name in said},
        "features": words,
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("NPROC"),  # what XLA takes for the number of cores where it is set
    }


def _newest_ptx() -> int | None:
    """What the assembler here takes of the PTX that programs may hold."""
    assembler = ptxas.find()
    return None if assembler is None else assembler.ptx


def _versions(platform_name: str) -> dict[str, str | None]:
    return {name: installed_version(name) for name in _PACKAGES.get(platform_name, _PACKAGES["cpu"])}


def installed_version(package: str) -> str | None:
    """None where it is not installed, or runs from its sources."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _flags(text: str) -> list[str]:
    return sorted(flag for flag in text.split() if not _UNSHAPING_FLAGS.fullmatch(flag))


def _plain(value: Any) -> str | int | bool | None:
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
