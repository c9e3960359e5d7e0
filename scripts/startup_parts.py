"""One start of an engine in this process, in parts, as JSON: {part: [seconds, CPU seconds]}. See bench_startup.py.

python scripts/startup_parts.py CACHE_DIR BUNDLE_OR_NOTHING [MODEL]
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

_found: dict[str, list[float]] = {}
_last = [time.perf_counter(), 0.0]  # the process's CPU time counts from its beginning: Python's own start, too


def part(name: str) -> None:
    """What was done since the last part was `name`."""
    now = [time.perf_counter(), time.process_time()]
    seconds = _found.setdefault(name, [0.0, 0.0])
    for i in range(2):
        seconds[i] += now[i] - _last[i]
    _last[:] = now


class Timed:
    """Another source, and what its threads took. An `ExecutableSource`."""

    def __init__(self, source: Any) -> None:
        self._source, self._lock = source, threading.Lock()
        self.name = "programs (threads' sum)"

    def get(self, name: str, lower: Any) -> Any:
        begin = time.perf_counter(), time.thread_time()
        try:
            return self._source.get(name, lower)
        finally:
            took = time.perf_counter() - begin[0], time.thread_time() - begin[1]
            with self._lock:
                seconds = _found.setdefault(self.name, [0.0, 0.0])
                seconds[0] += took[0]
                seconds[1] += took[1]

    def replace(self, name: str, lower: Any, error: Exception) -> Any:
        return self._source.replace(name, lower, error)


def main() -> int:
    cache, bundle, *model = sys.argv[1:]
    from checkpoints.folder import read_config
    from checkpoints.load import load_model
    from checkpoints.storage import read_storage, with_stored_defaults
    from jaxinfer.config import RuntimeConfig
    from jaxinfer.model_path import resolve_model
    from jaxinfer.runtime.bundle import bundle_or_compiler
    from jaxinfer.runtime.engine_builder import assemble_engine, configure_jax
    from jaxinfer.runtime.runner import Runner
    from jaxinfer.sharding import make_mesh

    part("imports")
    folder: Path = resolve_model(model[0] if model else None)
    runtime = RuntimeConfig(compilation_cache_dir=cache, bundle=bundle or None)
    configure_jax(runtime)
    mesh = make_mesh(runtime.parallel, runtime.device)
    config = read_config(folder)[0]
    runtime = with_stored_defaults(folder, config, runtime)
    stored = read_storage(folder, config).to_dict()
    part("devices, config")
    make_state, run_once = Runner._make_state, Runner._run_once

    def timed_state(self: Runner) -> None:
        part("sizes, waiting")
        make_state(self)
        part("pool and slots")

    def timed_run(self: Runner, name: str) -> None:
        part("waiting for programs")
        run_once(self, name)
        part("first runs")

    Runner._make_state, Runner._run_once = timed_state, timed_run  # type: ignore[method-assign]
    with bundle_or_compiler(config, stored, runtime, mesh) as programs:
        part("bundle's checks")
        runtime = programs.runtime
        loaded = load_model(folder, dtype=runtime.dtype, mesh=mesh, quantization=runtime.quantization)
        part("weights")
        engine = assemble_engine(loaded, mesh, runtime, source=Timed(programs.source))
        part("the rest")
    runner: Any = engine.runner
    runner.close()
    _found["in all"] = [sum(seconds[i] for name, seconds in _found.items() if "threads" not in name) for i in range(2)]
    print(json.dumps(_found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
