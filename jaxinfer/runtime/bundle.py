"""Executables that were compiled earlier: made (`compile_bundle`), and loaded where they fit (`open_bundle`).

A bundle is code: loading an executable unpickles it, and running it runs whatever machine code it holds. What is
checked before either is in `bundle_files.py` (who could have written it, whole files) and `bundle_facts.py` (what it
was made for); docs/operations.md says it to operators.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from jaxinfer.config import ConfigError, ModelConfig, RuntimeConfig
from jaxinfer.models.model import Model
from jaxinfer.runtime.bundle_facts import expected_sizes, program_facts
from jaxinfer.runtime.bundle_files import BundleFolder, BundleRefused, Entry, Manifest, difference, write_bundle
from jaxinfer.runtime.cpu_kernels import AUTO, XLA, choose_form
from jaxinfer.runtime.engine_builder import make_layout, make_runner, probe_step
from jaxinfer.runtime.executables import Compiler, Executable, ExecutableSource, Lower
from jaxinfer.runtime.kv_cache import device_budget, free_host_bytes, gib, resolve_sizes
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.native_cpu.instructions import BY_NAME
from pallas_kernels.native_cpu.library import KernelsUnavailable, load

_LOG = logging.getLogger(__name__)
THREADS = 2

OnExecutable = Callable[[int, int, str], None]


# -- making one -------------------------------------------------------------------------------------------------------


def compile_bundle(
    path: Path,
    model: Model,
    stored: Mapping[str, Any],
    runtime: RuntimeConfig,
    mesh: Mesh,
    *,
    here: bool = True,
    overwrite: bool = False,
    progress: OnExecutable | None = None,
) -> Manifest:
    """Compiles every executable of an engine and writes them to `path`.

    model: may be abstract. stored: see `program_facts`. here: whether the mesh's devices are; executables for others
    are written as they come, those for devices that are here run once before, with weights of zeros. progress(done,
    total, name): called after each. Raises ConfigError for sizes that cannot
    be or, for devices that are not here, are not given; BundleRefused, OSError.
    """
    device = mesh.devices.flat[0]
    runtime = replace(runtime, cpu_kernels=choose_form(model, mesh, runtime).instructions or XLA)
    layout = make_layout(model, DeviceTarget.of(device), runtime)
    weight_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))
    budget = None
    if runtime.num_pages is None:
        if not here:
            raise ConfigError(
                "num_pages is None; it must be given for devices that are not here, whose memory cannot be measured"
            )
        extra = 0
        if device.platform != "cpu":
            extra = probe_step(model, mesh, runtime, layout).beside
        budget = device_budget(device, runtime, temporaries=extra, weights_to_come=weight_bytes // mesh.size)
    sizes = resolve_sizes(model.config, runtime, layout, budget, DeviceTarget.of(device).platform)
    runner = make_runner(model, mesh, runtime, sizes, layout)
    facts = program_facts(model.config, stored, runtime, mesh, sizes, model.dtype)
    programs = runner.jobs()

    def executables() -> Iterator[tuple[str, bytes]]:
        with ThreadPoolExecutor(THREADS) as threads:
            for done, (name, data) in enumerate(
                zip(programs, threads.map(serialized, programs.values()), strict=True), 1
            ):
                yield name, data
                if progress is not None:
                    progress(done, len(programs), name)

    def check(written: Path) -> None:
        leaves = [jax.device_put(np.zeros(x.shape, x.dtype), x.sharding) for x in jax.tree.leaves(model.params)]
        params = jax.tree.unflatten(jax.tree.structure(model.params), leaves)
        trial = make_runner(replace(model, params=params), mesh, runtime, sizes, layout)
        trial.warm_up(source=BundleSource(BundleFolder(written), mesh, _Nothing()))
        trial.close()

    with fresh_compilations():
        return write_bundle(
            path,
            facts,
            executables(),
            weight_bytes=weight_bytes,
            pool_bytes=sizes.pool_bytes,
            overwrite=overwrite,
            check=check if here else None,
        )


class _Nothing:
    """Stands for a bundle's lack of an executable. An `ExecutableSource`."""

    def get(self, name: str, lower: Lower) -> Executable:
        raise BundleRefused(f"{name} was compiled, but cannot be loaded and run")

    def replace(self, name: str, lower: Lower, error: Exception) -> Executable:
        raise error


@contextlib.contextmanager
def fresh_compilations() -> Iterator[None]:
    """No persistent compilation cache: an executable that came out of it lacks parts when it is serialized."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX remembers after its first compilation whether there is one
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def serialized(lower: Lower) -> bytes:
    """A program, compiled, as the bytes that `loaded` takes. Inside `fresh_compilations` only."""
    payload, in_tree, out_tree = serialize_executable.serialize(lower().compile())
    return pickle.dumps((payload, in_tree, out_tree))


def loaded(data: bytes, devices: list[Any]) -> Executable:
    """The executable, on `devices`. Unpickles `data`, which runs code in it: check where it comes from before."""
    payload, in_tree, out_tree = pickle.loads(data)
    return serialize_executable.deserialize_and_load(payload, in_tree, out_tree, execution_devices=devices)


# -- using one --------------------------------------------------------------------------------------------------------


@dataclass
class Programs:
    """Where an engine's executables come from. runtime: what the engine runs with. refused: why not from a bundle."""

    runtime: RuntimeConfig
    source: Compiler | BundleSource
    refused: str | None = None

    def notes(self) -> tuple[str, ...]:
        """What an operator should know."""
        if self.refused is not None:
            return (f"bundle {self.runtime.bundle} is not used: {self.refused}",)
        return (self.source.note(),) if isinstance(self.source, BundleSource) else ()


@contextlib.contextmanager
def bundle_or_compiler(
    config: ModelConfig, stored: Mapping[str, Any], runtime: RuntimeConfig, mesh: Mesh
) -> Iterator[Programs]:
    """`open_bundle` for `runtime.bundle`; where there is none a compiler, and where it is refused also a warning."""
    if runtime.bundle is None:
        yield Programs(runtime, Compiler())
        return
    try:
        opened, source = open_bundle(runtime.bundle, config, stored, runtime, mesh)
    except BundleRefused as error:
        _LOG.warning("bundle %s is not used, and programs are compiled: %s", runtime.bundle, error)
        yield Programs(runtime, Compiler(), str(error))
        return
    try:
        yield Programs(opened, source)
    except BaseException:
        source.close()
        raise


def open_bundle(
    path: str | os.PathLike[str],
    config: ModelConfig,
    stored: Mapping[str, Any],
    runtime: RuntimeConfig,
    mesh: Mesh,
) -> tuple[RuntimeConfig, BundleSource]:
    """A bundle whose executables are those of this engine, which begin to load beside whatever the caller does next.

    Returns the runtime config with the bundle's `num_pages` and `cpu_kernels`, where the user leaves them open, and the
    source. Nothing was
    unpickled before the checks were done. Raises BundleRefused; ConfigError for what cannot be with no bundle either.
    """
    folder = BundleFolder(path)
    try:
        manifest = folder.manifest
        resolved = runtime if runtime.num_pages is not None else _with_pages_of(manifest, runtime)
        resolved = _with_kernels_of(manifest, resolved)
        try:
            sizes, dtype = expected_sizes(config, resolved, mesh)
        except ConfigError as error:
            if runtime.num_pages is not None:
                raise
            raise BundleRefused(f"its num_pages cannot be: {error}") from error
        found = difference(manifest.facts, program_facts(config, stored, resolved, mesh, sizes, dtype))
        if found is not None:
            raise BundleRefused(found)
        _check_room(manifest, mesh)
    except BaseException:
        folder.close()
        raise
    return resolved, BundleSource(folder, mesh)


def _with_pages_of(manifest: Manifest, runtime: RuntimeConfig) -> RuntimeConfig:
    settings = manifest.facts.get("settings")
    pages = settings.get("num_pages") if isinstance(settings, Mapping) else None
    if type(pages) is not int or pages < 1:
        raise BundleRefused(f"facts.settings.num_pages is {pages!r:.80}; it must be a positive integer")
    return replace(runtime, num_pages=pages)


def _with_kernels_of(manifest: Manifest, runtime: RuntimeConfig) -> RuntimeConfig:
    """With the CPU kernels that the bundle's programs call, loaded."""
    settings = manifest.facts.get("settings")
    kernels = settings.get("cpu_kernels") if isinstance(settings, Mapping) else None
    if runtime.cpu_kernels != AUTO or kernels == XLA:
        return runtime if runtime.cpu_kernels != AUTO else replace(runtime, cpu_kernels=XLA)
    if kernels not in BY_NAME:
        raise BundleRefused(
            f"facts.settings.cpu_kernels is {kernels!r:.80}; it must be one of {', '.join((XLA, *BY_NAME))}"
        )
    try:
        load(kernels)
    except KernelsUnavailable as error:
        raise BundleRefused(f"its programs call CPU kernels that cannot be had here: {error}") from error
    return replace(runtime, cpu_kernels=kernels)


def _check_room(manifest: Manifest, mesh: Mesh) -> None:
    """A pool as large as on the machine where the bundle was made may be too large for this one."""
    device = mesh.devices.flat[0]
    wanted = manifest.weight_bytes + manifest.pool_bytes
    if device.platform == "cpu":
        free = free_host_bytes()
    else:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return
        free, wanted = stats["bytes_limit"] - stats["bytes_in_use"], wanted // mesh.size
    if wanted > free:
        raise BundleRefused(f"weights and the bundle's KV pool take {gib(wanted)}; {gib(free)} are free")


class BundleSource:
    """Executables of an opened bundle, and compiled ones where that has none or a bad one. An `ExecutableSource`.

    Loads all of them at once, in threads, in the manifest's order. `failures` says of each executable that did not come
    from the bundle why. `close` gives up what nobody has asked for yet; the rest closes itself.
    """

    def __init__(self, folder: BundleFolder, mesh: Mesh, otherwise: ExecutableSource | None = None) -> None:
        self.failures: dict[str, str] = {}
        self._folder = folder
        self._devices = list(mesh.devices.flat)
        self._otherwise = otherwise if otherwise is not None else Compiler()
        self._lock = threading.Lock()
        self._used: set[str] = set()
        self._unread = len(folder.manifest.executables)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bundle")
        self._loading: dict[str, Future[Executable]] = {
            entry.name: self._threads.submit(self._load, entry) for entry in folder.manifest.executables
        }
        self._threads.shutdown(wait=False)  # nothing else is submitted, and the threads end by themselves

    def _load(self, entry: Entry) -> Executable:
        try:
            data = self._folder.read(entry)
        finally:
            with self._lock:
                self._unread -= 1
                last = self._unread == 0
            if last:
                self._folder.close()
        return loaded(data, self._devices)

    def get(self, name: str, lower: Lower) -> Executable:
        with self._lock:
            future = self._loading.pop(name, None)
        if future is None:
            return self._compiled(name, lower, "the bundle does not hold it")
        try:
            executable = future.result()
        except BundleRefused as error:
            return self._compiled(name, lower, str(error))
        except Exception as error:  # of unpickling, and of the device's runtime: any type at all
            return self._compiled(name, lower, f"it cannot be loaded: {_one_line(error)}")
        with self._lock:
            self._used.add(name)
        return executable

    def replace(self, name: str, lower: Lower, error: Exception) -> Executable:
        with self._lock:
            from_bundle = name in self._used
            self._used.discard(name)
        if not from_bundle:
            return self._otherwise.replace(name, lower, error)
        return self._compiled(name, lower, f"it cannot be run: {_one_line(error)}")

    def _compiled(self, name: str, lower: Lower, reason: str) -> Executable:
        with self._lock:
            self.failures[name] = reason
        _LOG.warning("bundle %s: %s is compiled instead: %s", self._folder.path, name, reason)
        return self._otherwise.get(name, lower)

    def note(self) -> str:
        """What became of the bundle, in one line for people."""
        said = f"bundle {self._folder.path}: {len(self._used)} executables loaded"
        failed = [f"{name} ({reason})" for name, reason in self.failures.items()]
        return f"{said}, {len(failed)} compiled: {'; '.join(failed)}" if failed else said

    def close(self) -> None:
        """Loads nothing more, and lets go of what nobody asked for: for an engine that does not come to be."""
        self._threads.shutdown(cancel_futures=True)
        self._loading.clear()
        self._folder.close()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
