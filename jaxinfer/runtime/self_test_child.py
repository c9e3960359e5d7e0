"""The process in which kernels are tried: `python -m jaxinfer.runtime.self_test_child`, its orders on stdin as JSON.

Orders: trials (`pallas_kernels.trials.to_plain`); withdrawn, [op, backend, reason] of what has failed before; platform,
or null for JAX's choice; attention_backend, or null for the first that can. Answers are lines of `MARK` and JSON:
{"trial", "op", "backend"} when a backend is about to be tried, and then the same with "deviation", or with "failed" and
why. A trial whose backend failed goes on with the next in order, until one passes or XLA's own is left, which is not
tried.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import jax

from pallas_kernels import trials
from pallas_kernels.dispatch import DeviceTarget, Unsupported, select, withdraw
from pallas_kernels.native_cpu.library import KernelsUnavailable, load

MARK = "self-test: "  # before an answer: libraries write to stdout, too


def main() -> None:
    orders: dict[str, Any] = json.loads(sys.stdin.read())
    for op, backend, reason in orders["withdrawn"]:
        withdraw(op, backend, reason)
    target = _target(orders["platform"])
    _say(device=target.device_kind, platform=target.platform)
    for number, plain in enumerate(orders["trials"]):
        trial = trials.from_plain(plain)
        named = orders["attention_backend"] if isinstance(trial, trials.AttentionTrial) else None
        _try(number, trial.prepare(target), target, named)
    _say(done=True)


def _try(number: int, prepared: trials.Prepared, target: DeviceTarget, named: str | None) -> None:
    op = prepared.op.name
    while (backend := _next(prepared, target, named)) != trials.XLA:
        _say(trial=number, op=op, backend=backend)
        try:
            deviation = prepared.deviation(backend)
        except Exception as error:  # a compiler, or a device, has errors of its own; whatever it is, it did not work
            failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        else:
            if deviation <= trials.TOLERANCE:
                _say(trial=number, op=op, backend=backend, deviation=deviation)
                return
            failed = f"its result is off by {deviation:.2g} of the largest number"
        withdraw(op, backend, failed)
        _say(trial=number, op=op, backend=backend, failed=failed)


def _next(prepared: trials.Prepared, target: DeviceTarget, named: str | None) -> str:
    """What would serve; XLA's where nothing can, which the engine will say."""
    try:
        return select(prepared.op, target, prepared.case, named).name
    except Unsupported:
        return trials.XLA


def _target(platform: str | None) -> DeviceTarget:
    target = DeviceTarget.of(jax.devices(platform)[0])
    if target.platform != "cpu":
        return target
    try:
        return dataclasses.replace(target, instructions=load("auto").name)
    except KernelsUnavailable:
        return target


def _say(**what: Any) -> None:
    print(f"{MARK}{json.dumps(what)}", flush=True)


if __name__ == "__main__":
    main()
