"""A step as a client sees it: a real server in a process of its own, and `jaxinfer bench serve` against it over gRPC.

The model has the Llama-3.2-1B shape and random weights, written as a checkpoint and loaded as any other: its steps are
short, so that the time between two tokens shows what serving costs beside the device. Standard library and numpy only
in this process: the device is the server's.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from served import Served

from device_checks.child import Case
from device_checks.settings import ROOT, Settings

SHAPE = "llama3.2-1b"
STREAMS = (32, 8)
_PROMPT, _BUDGET = 16, 32  # few buckets to compile
_DEMO = ROOT / "checkpoints" / "demo"
_REPEATED = 1 << 24  # random numbers that fill every tensor: drawing them all would take longer than all else here


def cases(settings: Settings) -> Iterator[Case]:
    server = _Server(settings)
    try:
        yield Case("start-up", server.start_up)
        for streams in STREAMS:
            yield Case(f"streams: {streams}", functools.partial(server.measure, streams))
    finally:
        server.stop()


class _Server:
    """Starts when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scratch = Path(tempfile.mkdtemp(prefix="device_check_served_"))
        self._served: Served | None = None
        self._started: dict[str, Any] = {}
        self._fault: str | None = None  # why it cannot be started: once is enough

    def start_up(self) -> dict[str, Any]:
        self._running()
        return self._started

    def measure(self, streams: int) -> dict[str, Any]:
        """`streams` requests at once, that all decode together."""
        server, output = self._running(), 16 if self._settings.rehearse else 256
        command = [sys.executable, "-m", "jaxinfer", "bench", "serve", "--url", f"grpc://{server.grpc}",
                   "--num-prompts", str(streams), "--random-input-len", str(_PROMPT), "--random-output-len",
                   str(output), "--ignore-eos", "--save-result", "--result-dir", str(self._scratch),
                   "--result-filename", f"{streams}.json"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise RuntimeError(f"the client ended with {done.returncode}: {''.join(last)}")
        (run,) = json.loads((self._scratch / f"{streams}.json").read_text())["runs"]
        return {
            "streams": streams,
            "output_tokens": run["total_output_tokens"],
            "itl_p50_ms": run["p50_itl_ms"],
            "itl_p99_ms": run["p99_itl_ms"],
            "ttft_p50_ms": run["p50_ttft_ms"],
            "tokens_per_second": run["output_throughput"],
        }

    def _running(self) -> Served:
        if self._fault is not None:
            raise RuntimeError(self._fault)
        if self._served is None:
            begin = time.perf_counter()
            folder = _DEMO
            if not self._settings.rehearse:
                folder = self._scratch / SHAPE
                write_repeated(SHAPE, folder)
            written = time.perf_counter()
            most = max(STREAMS)
            # What the kernels compute was seen before, each in a process of its own; other protocols' gateways need
            # packages of their own.
            command = [sys.executable, "-m", "jaxinfer", "serve", str(folder), "--port", "0", "--max-num-seqs",
                       str(most), "--max-num-batched-tokens", str(_BUDGET), "--max-model-len", "512", "--self-test",
                       "off", "--gateways", "none", "--compilation-cache-dir",
                       str(self._settings.cache / "xla")]  # fmt: skip
            try:
                self._served = Served(command, ROOT)
            except SystemExit as error:  # with all that the server said
                print(error, flush=True)
                last = [line for line in str(error).splitlines() if line.strip()][-1:]
                self._fault = f"the server did not start: {''.join(last)}"
                raise RuntimeError(self._fault) from error
            ready = time.perf_counter()
            self._started = {"written_seconds": written - begin, "ready_seconds": ready - written}
        return self._served

    def stop(self) -> None:
        if self._served is not None:
            self._served.stop(seconds=10.0)
        shutil.rmtree(self._scratch, ignore_errors=True)  # a server that had to be killed may still write there


def write_repeated(shape: str, folder: Path) -> None:
    """A checkpoint of that shape whose tensors repeat the same random numbers, of the usual deviation."""
    import ml_dtypes
    import numpy as np
    from make_random_model import DEMO, DEVIATION, TEXT_FILES, tensor_shapes
    from model_shapes import SHAPES
    from safetensors.numpy import save_file

    block = np.random.default_rng(0).standard_normal(_REPEATED, np.float32)
    block = (block * DEVIATION).astype(ml_dtypes.bfloat16)
    folder.mkdir(parents=True)
    tensors = {
        name: np.ones(size, ml_dtypes.bfloat16) if len(size) == 1 else np.resize(block, size)
        for name, size in tensor_shapes(SHAPES[shape])
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]))
    for name in TEXT_FILES:
        shutil.copyfile(DEMO / name, folder / name)
