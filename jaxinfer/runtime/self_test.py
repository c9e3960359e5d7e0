"""The start-up self-test: each kernel that would be chosen runs once, before the engine trusts it.

Kernels run in a process of their own, which has ended before the engine opens the device: a kernel that hangs cannot be
interrupted from inside, and one that aborts takes its process along. A backend that is wrong, hangs or aborts is
withdrawn from this process (`dispatch.withdraw`), and the next in order serves. What was found is kept beside the
compiled programs, by device, driver and versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxinfer.config import ModelConfig, RuntimeConfig
from jaxinfer.models.stored_matrix import StoredMatrix
from jaxinfer.quantization import SCHEMES
from jaxinfer.runtime.bundle_facts import installed_version, sources_digest
from jaxinfer.runtime.device_memory import devices_are_open
from jaxinfer.runtime.self_test_child import MARK
from pallas_kernels import ptxas
from pallas_kernels.dispatch import withdraw
from pallas_kernels.qtensor import Activations, Kind
from pallas_kernels.trials import AttentionTrial, GroupedTrial, MatmulTrial, Trial, to_plain

CHILD = (sys.executable, "-m", "jaxinfer.runtime.self_test_child")
SECONDS = 120.0
"""For one backend of one trial, and for opening the device: compiling a kernel takes some ten seconds."""

_PACKAGES = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-triton", "triton", "libtpu")
_DEVICE_FACTS = ("/proc/driver/nvidia/version", "/proc/driver/nvidia/gpus/*/information")
_TPU_FACTS = ("TPU_ACCELERATOR_TYPE", "TPU_TYPE")


class Faulty(NamedTuple):
    """A backend that must not serve, and why."""

    op: str
    backend: str
    reason: str


class Verdict(NamedTuple):
    """passed: (op, backend, deviation). faulty: what was withdrawn. unfinished: why not all was tried, if so."""

    passed: tuple[tuple[str, str, float], ...]
    faulty: tuple[Faulty, ...]
    unfinished: str = ""

    def notes(self) -> tuple[str, ...]:
        """For people: a sentence for each op and backend."""
        good = [f"self-test: {op} by {name} is right (off by {off:.1e} at most)" for op, name, off in self.passed]
        bad = [f"self-test: {op} does not run by {name}: {why}" for op, name, why in self.faulty]
        rest = [f"self-test: not all could be tried: {self.unfinished}"] if self.unfinished else []
        return (*bad, *rest, *good)


def self_test(config: ModelConfig, runtime: RuntimeConfig, stored: Mapping[str, StoredMatrix]) -> tuple[str, ...]:
    """Tries what the engine would run and withdraws what fails; sentences about it.

    Must be called before JAX opens its devices.
    """
    if runtime.self_test == "off" or (runtime.self_test == "auto" and not _is_an_accelerator(runtime)):
        return ()
    if devices_are_open():
        return ("self-test: left out, JAX has opened the device already",)
    wanted = trials(config, runtime, stored)
    path = _path(runtime, wanted)
    verdict = None if runtime.self_test == "on" else _read(path)
    if verdict is None:
        verdict = run_trials(wanted, runtime.device, runtime.attention_backend)
        if not verdict.unfinished:
            _write(path, verdict)
    for op, backend, reason in verdict.faulty:
        withdraw(op, backend, reason)
    return verdict.notes()


def trials(config: ModelConfig, runtime: RuntimeConfig, stored: Mapping[str, StoredMatrix]) -> list[Trial]:
    """One for each form of attention and of product that the model's layers have, with one device's share of heads."""
    dtype = runtime.weights_dtype(config.dtype)
    kv_dtype = runtime.pages_dtype(dtype)
    devices = runtime.parallel.num_devices
    kv_heads = max(1, config.kept_kv_heads // devices)
    found: dict[Trial, None] = {
        AttentionTrial(
            max(1, mixer.num_heads // mixer.num_kv_heads) * kv_heads, kv_heads, mixer.head_dim, runtime.page_size,
            dtype, kv_dtype, float(mixer.scale), None if mixer.sliding_window is None else min(mixer.sliding_window, 9),
            mixer.soft_cap, mixer.sinks,
        ): None
        for mixer in config.attentions
    }  # fmt: skip
    products = _products(config, runtime, stored)
    for kind, group, activations in products:
        if kind is not None:
            found[MatmulTrial(kind, group, dtype, activations)] = None
        if config.expert_layers:
            found[GroupedTrial(dtype, kind, group, activations)] = None
    return list(found)


def _products(
    config: ModelConfig, runtime: RuntimeConfig, stored: Mapping[str, StoredMatrix]
) -> list[tuple[Kind | None, int | None, Activations | None]]:
    """(kind, group, activations) of the weights that layers have, all None of weights that are not quantized."""
    found: set[tuple[Kind | None, int | None, Activations | None]] = {
        (matrix.kind, matrix.group, matrix.activations) for matrix in stored.values()
    }
    if not stored and runtime.quantization is not None:
        scheme = SCHEMES[runtime.quantization]
        group = next((g for g in scheme.groups if config.hidden_size % g == 0), None)
        found.add((scheme.kind, group, scheme.activations))
    return sorted(found, key=str) or [(None, None, None)]


def run_trials(wanted: Sequence[Trial], platform: str | None = None, attention_backend: str | None = None) -> Verdict:
    """Runs trials until each has a backend that passes, or XLA's: a new process after each that hangs or aborts.

    attention_backend: the one that is asked for by name, and the only one that is tried then.
    """
    passed: dict[tuple[str, str], float] = {}
    faulty: list[Faulty] = []
    left, unfinished = list(wanted), ""
    while left and not unfinished:
        answers, ended = _one_process(
            {
                "trials": [to_plain(trial) for trial in left],
                "withdrawn": [list(fault) for fault in faulty],
                "platform": platform,
                "attention_backend": attention_backend,
            }
        )
        for answer in answers:
            if "deviation" in answer:
                key = answer["op"], answer["backend"]
                passed[key] = max(passed.get(key, 0.0), answer["deviation"])
            elif "failed" in answer:
                faulty.append(Faulty(answer["op"], answer["backend"], answer["failed"]))
        last = answers[-1] if answers else {}
        if not ended:
            left = []
        elif last.keys() == {"trial", "op", "backend"}:  # it was being tried
            faulty.append(Faulty(last["op"], last["backend"], ended))
            left = left[last["trial"] :]
        else:  # no kernel's fault. Where the device cannot be opened the engine will say so, with its reason
            unfinished = ended
    bad = {(fault.op, fault.backend) for fault in faulty}
    good = tuple((*key, off) for key, off in passed.items() if key not in bad)
    return Verdict(good, tuple(faulty), unfinished)


def _one_process(orders: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """What a process that tries kernels says, and why it did not come to its end, or ""."""
    process = subprocess.Popen(
        CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already: what follows says how
        process.stdin.write(json.dumps(orders))
        process.stdin.close()
    lines, answers = _lines(process), []
    try:
        while (line := lines.get(timeout=SECONDS)) is not None:
            if line.startswith(MARK):
                answers.append(json.loads(line.removeprefix(MARK)))
        code = process.wait(timeout=SECONDS)
    except (queue.Empty, subprocess.TimeoutExpired):
        return answers, f"it did not end within {SECONDS:g} s"
    finally:
        process.kill()
        process.wait()
    if code < 0:
        return answers, f"it ended its process with {signal.Signals(-code).name}"
    return answers, f"its process ended with {code}" if code else ""


def _lines(process: subprocess.Popen[str]) -> queue.SimpleQueue[str | None]:
    """The process's lines as they come, then None."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            found.put(line)
        found.put(None)

    threading.Thread(target=read, daemon=True, name="self-test").start()
    return found


def _is_an_accelerator(runtime: RuntimeConfig) -> bool:
    """Whether JAX would open one, as far as can be told without opening it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if runtime.device == "cpu" or platforms == "cpu":
        return False
    has_gpu = any(map(_is_installed, ("jax_cuda12_plugin", "jax_cuda13_plugin"))) and Path("/dev/nvidiactl").exists()
    has_tpu = _is_installed("libtpu") and any(map(Path.exists, map(Path, ("/dev/accel0", "/dev/vfio/vfio"))))
    return has_gpu or has_tpu


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _path(runtime: RuntimeConfig, wanted: Sequence[Trial]) -> Path | None:
    if runtime.compilation_cache_dir is None:
        return None
    facts = {
        "trials": [to_plain(trial) for trial in wanted],
        "sources": sources_digest(),
        "packages": {name: version for name in _PACKAGES if (version := installed_version(name)) is not None},
        "ptxas": str(ptxas.find()),
        "devices": [path.read_text() for text in _DEVICE_FACTS for path in sorted(Path("/").glob(text[1:]))],
        "tpu": [os.environ.get(name, "") for name in _TPU_FACTS],
        "platform": [runtime.device, os.environ.get("JAX_PLATFORMS", "")],
        "flags": [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return Path(runtime.compilation_cache_dir).expanduser() / f"self-test-{name}.json"


def _read(path: Path | None) -> Verdict | None:
    if path is None or not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        passed = tuple((str(op), str(backend), float(off)) for op, backend, off in found["passed"])
        return Verdict(passed, tuple(Faulty(*each) for each in found["faulty"]))
    except (ValueError, KeyError, TypeError):  # half written, or another program's: found out anew
        return None


def _write(path: Path | None, verdict: Verdict) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    started = path.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
    started.write_text(json.dumps(verdict._asdict()))
    started.replace(path)
