"""A pytest plugin: every test's outcome becomes a record, and a process whose device is lost makes room for another."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from device_checks.child import DEVICE_LOST, device_answers
from device_checks.facts import tell
from device_checks.records import CRASHED, FAILED, OK, UNSUPPORTED, Records

SECTION = "tests"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device-records", help="folder of the results file")
    parser.addoption("--device-stage", type=int, default=0, help="stage of the device check that runs")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Worker())
    else:
        folder = Path(str(config.getoption("--device-records")))
        config.pluginmanager.register(_Recorder(Records(folder, int(config.getoption("--device-stage")), tell)))


class _Recorder:
    """In the process that hears of all tests."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when in ("setup", "teardown") and report.passed:
            return
        name = report.nodeid.removeprefix("tests/").replace("pallas_kernels/paged_attention/test_on_device.py", "")
        name = name.removeprefix("::")
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._records.add(SECTION, name, UNSUPPORTED, error=reason.removeprefix("Skipped: "))
        elif report.passed:
            self._records.add(SECTION, name, OK, seconds=report.duration)
        else:
            status = FAILED if report.when in ("setup", "call", "teardown") else CRASHED
            self._records.add(SECTION, name, status, error=_message(report), seconds=report.duration)


class _Worker:
    """In a process of pytest-xdist. A fault on a GPU makes every later call of its process fail: better none."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed and not device_answers("jax"):
            print(f"the device is lost after {item.nodeid}: {_message(report)}", file=sys.__stderr__, flush=True)
            os._exit(DEVICE_LOST)
        return report


def _message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]
