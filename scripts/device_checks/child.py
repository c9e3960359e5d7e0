"""A section's process: runs its cases one after the other and writes down what becomes of each."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from device_checks.facts import tell
from device_checks.records import BEGIN, FAILED, OK, UNSUPPORTED, Records, first_line
from device_checks.sections import Section
from device_checks.settings import Settings

_PARENT_SECONDS = 0.3
DEVICE_LOST = 70  # exit status: the device no longer answers, a new process must go on


class Case(NamedTuple):
    """`run` returns the fields of its record. A NotImplementedError says that there is nothing to run, and why."""

    name: str
    run: Callable[[], dict[str, Any]]


def run_section(section: Section, settings: Settings) -> int:
    """Runs the cases that no earlier process of the section has begun; returns the exit status."""
    records = Records(settings.out, settings.stage, tell)
    begun = {record["case"] for record in records.read(section.name)}
    module = importlib.import_module(section.module)
    for case in module.cases(settings, **section.options):
        if case.name in begun:
            continue
        print(f"-- {case.name}", flush=True)
        records.add(section.name, case.name, BEGIN)
        begin = time.perf_counter()
        try:
            fields = case.run()
        except NotImplementedError as error:
            reason = " ".join(str(error).split())
            records.add(section.name, case.name, UNSUPPORTED, error=reason)
        except Exception as error:
            traceback.print_exc()
            seconds = time.perf_counter() - begin
            records.add(section.name, case.name, FAILED, error=first_line(error), seconds=seconds)
            if not device_answers(section.framework):
                return DEVICE_LOST
        else:
            records.add(section.name, case.name, OK, seconds=time.perf_counter() - begin, **fields)
    return 0


def end_with_parent(records: Records) -> None:
    """Ends this process, and those that it started, soon after the one that started it: a run that was killed must not
    go on holding the device. Not while a result is being kept and told."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        with records.alone():
            if os.getpgrp() == os.getpid():  # as the supervisor starts it
                os.killpg(0, signal.SIGKILL)
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def device_answers(framework: str) -> bool:
    """Whether the device still computes: after a fault on a GPU every later call of the process fails too."""
    try:
        if framework == "torch":
            import torch

            total = float(torch.ones(8, device="cuda" if torch.cuda.is_available() else "cpu").sum())
        else:
            import jax.numpy as jnp

            total = float(jnp.ones(8).sum())
    except Exception as error:
        print(f"the device no longer answers: {first_line(error)}", file=sys.stderr)
        return False
    return total == 8.0
