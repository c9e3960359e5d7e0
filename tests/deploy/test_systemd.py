"""The systemd unit: systemd's own judgement, and that it fits the server."""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys

from serving.engine_process import EXIT_REFUSED
from serving.server import ServerConfig
from tests.deploy.files import CLOSE_SECONDS, DEPLOY, program, serve_arguments

UNIT = DEPLOY / "systemd/jaxinfer.service"


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(UNIT.read_text())
    return found


def here(tmp_path) -> str:
    """A copy whose program is there."""
    copy = tmp_path / "jaxinfer.service"
    copy.write_text(UNIT.read_text().replace("/opt/jaxinfer/bin/jaxinfer", sys.executable))
    return str(copy)


def test_systemd_takes_it(tmp_path):
    analyze = program("systemd-analyze", "systemd")
    done = subprocess.run([analyze, "verify", here(tmp_path)], capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if "jaxinfer" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_systemd_sees_little_to_attack(tmp_path):
    analyze = program("systemd-analyze", "systemd")
    command = [analyze, "security", "--offline=yes", "--threshold=40", here(tmp_path)]  # of 100; a bare unit has 96
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-800:]


def test_a_drain_has_the_time_that_the_server_takes():
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) > ServerConfig().grace_seconds + 2 * CLOSE_SECONDS
    assert service["KillMode"] == "mixed"  # SIGTERM is the server's alone
    assert service["RestartPreventExitStatus"] == str(EXIT_REFUSED)


def test_the_options_are_the_servers():
    (line,) = [line for line in (DEPLOY / "systemd/jaxinfer.env").read_text().splitlines() if not line.startswith("#")]
    name, value = line.split("=", 1)
    assert unit()["Service"]["ExecStart"].endswith(f"serve ${name}")
    (options,) = shlex.split(value)
    arguments = serve_arguments(options.split())
    assert str(arguments.ledger).startswith("/var/lib/" + unit()["Service"]["StateDirectory"])
