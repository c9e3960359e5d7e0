"""The scripts that drive gcloud: linted, and run with a gcloud, a sudo and a Python that only write down what they are
asked for. Nothing here reaches a cloud."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, ROOT, free_port, program
from tests.fakes import FakeOptions
from tests.serving.http.browser import running

CLOUD = DEPLOY / "cloud"
SCRIPTS = sorted(CLOUD.glob("*.sh"))
BOTH = ("gpu_host.sh", "tpu_vm.sh")
COMMANDS = ("create", "install", "serve", "health", "logs", "stop", "delete")
WHERE = ("--name", "my vm", "--zone", "us-central2-b", "--project", "p-1")
RECORDER = f"""#!{sys.executable}
import json, os, sys
with open({{log!r}}, "a") as log:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=log)
{{more}}
"""


@pytest.fixture
def stand_in(tmp_path):
    """stand_in(name, more): a program that writes its arguments down, first on the PATH of `call`."""

    class StandIns:
        path, log = tmp_path / "bin", tmp_path / "log"

        def __call__(self, name: str, more: str = "") -> Path:
            self.path.mkdir(exist_ok=True)
            made = self.path / name
            made.write_text(RECORDER.format(log=str(self.log), more=more))
            made.chmod(0o755)
            return made

        @property
        def calls(self) -> list[list[str]]:
            return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

        def call(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
            path = f"{self.path}:/usr/bin:/bin"
            return subprocess.run(
                ["bash", str(CLOUD / script), *words],
                capture_output=True,
                text=True,
                timeout=60,
                env={"PATH": path, "HOME": str(tmp_path), **environment},
            )

    return StandIns()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    done = subprocess.run(
        [program("shellcheck", "shellcheck"), "--external-sources", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", BOTH)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_shows_what_a_run_does(script, command, stand_in):
    stand_in("gcloud")
    stand_in("python3")
    words = [command, *WHERE, "--port", "8123"]
    behind = ["--", "/models/my-model", "--max-num-seqs", "8"] if command == "serve" else []
    dry = stand_in.call(script, *words, "--dry-run", *behind)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert stand_in.calls == []
    shown = [shlex.split(line) for line in dry.stdout.splitlines()]
    wet = stand_in.call(script, *words, *behind)
    assert (wet.returncode, wet.stderr) == (0, "")
    assert stand_in.calls == shown
    tool = ["compute", "tpus", "tpu-vm"] if script == "tpu_vm.sh" else ["compute"]
    for call in shown:
        if call[0] == "gcloud":
            assert call[1 : 1 + len(tool)] == tool
            assert call[call.index("--zone") + 1] == "us-central2-b"
            assert call[call.index("--project") + 1] == "p-1"
        if "--command" in call:
            subprocess.run(["bash", "-n", "-c", call[call.index("--command") + 1]], check=True)
    if command == "serve":
        assert shown[0][-1] == "bash jaxinfer-deploy/on_host.sh serve 8123 /models/my-model --max-num-seqs 8"


@pytest.mark.parametrize("script", BOTH)
def test_what_is_copied_is_there(script, stand_in):
    stand_in("gcloud")
    stand_in("python3")
    lines = [shlex.split(line) for line in stand_in.call(script, "install", *WHERE, "--dry-run").stdout.splitlines()]
    (copied,) = [line for line in lines if "scp" in line]
    files = [word for word in copied if word.startswith(str(ROOT))]
    assert [Path(word).suffix for word in files] == [".whl", ".txt", ".sh", ".service", ".env"]
    for word in files[1:]:
        assert Path(word).is_file(), word
    assert copied[-1] == "my vm:jaxinfer-deploy/"
    (wheel,) = [line for line in lines if line[0] == "python3"]
    assert Path(files[0]).parent == Path(wheel[wheel.index("--wheel-dir") + 1])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--help"], None),
        ([], "the command is ''; it must be create, install, serve, health, logs, stop or delete"),
        (["destroy"], "the command is 'destroy'; it must be"),
        (["health", "--zone", "z"], "--name is missing; it names the VM"),
        (["health", "--name", "n"], "--zone is missing; it says where the VM is"),
        (["health", "--name"], "--name needs a value"),
        (["health", *WHERE, "--colour", "red"], "--colour is no option of"),
        (["health", *WHERE, "--port", "x"], "--port is 'x'; it must be a number"),
        (["serve", *WHERE, "MODEL"], "'MODEL' is no option; what goes to jaxinfer serve stands behind --"),
    ],
)
@pytest.mark.parametrize("script", BOTH)
def test_wrong_words_are_refused_by_name(script, words, why, stand_in):
    stand_in("gcloud")
    done = stand_in.call(script, *words)
    assert stand_in.calls == []
    assert done.returncode == (0 if why is None else 2)
    assert (why or "") in done.stderr
    assert why is not None or "usage:" in done.stdout


@pytest.mark.longer
def test_health_over_the_wire(stand_in, tmp_path):
    """gcloud's stand-in runs the command here, as ssh would there."""
    shutil.copytree(CLOUD, tmp_path / "jaxinfer-deploy")
    runs = (
        "import subprocess; sys.exit(subprocess.run(['bash', '-c', sys.argv[-1]], cwd=os.environ['HOME']).returncode)"
    )
    stand_in("gcloud", runs)
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with running(FakeOptions()) as s:
        done = stand_in.call("gpu_host.sh", "health", *WHERE, "--port", s.url.rsplit(":", 1)[1])
        assert (done.returncode, done.stdout) == (0, '{"status":"ready"}\n')
    with running(FakeOptions(load_seconds=6), ready=False) as s:
        done = stand_in.call("tpu_vm.sh", "health", *WHERE, "--port", s.url.rsplit(":", 1)[1])
        assert (done.returncode, done.stdout) == (1, '{"status":"loading"}\n')
    done = stand_in.call("tpu_vm.sh", "health", *WHERE, "--port", str(free_port()))
    assert done.returncode == 1
    assert "nothing answers on port" in done.stderr


def host(stand_in, tmp_path) -> Path:
    """The folder that a machine gets, and programs that change nothing there. Returns the root."""
    folder = tmp_path / "jaxinfer-deploy"
    folder.mkdir()
    for name in ("cloud/on_host.sh", "systemd/jaxinfer.service", "systemd/jaxinfer.env", "../constraints.txt"):
        shutil.copy(DEPLOY / name, folder)
    (folder / "jaxinfer-0.1.0-py3-none-any.whl").touch()
    stand_in("sudo", "os.execvp(sys.argv[1], sys.argv[1:])")
    stand_in("systemctl", "sys.exit(1 if 'is-failed' in sys.argv else 0)")
    stand_in("journalctl")
    python = tmp_path / "bin" / "python3.13"
    stand_in(
        "python3.13",
        f"if sys.argv[1:3] == ['-m', 'venv']:\n    os.makedirs(sys.argv[3] + '/bin', exist_ok=True)\n"
        f"    os.symlink({str(python)!r}, sys.argv[3] + '/bin/python')",
    )
    return tmp_path / "root"


def on_host(tmp_path, stand_in, *words: str, **environment: str) -> subprocess.CompletedProcess:
    script = str(tmp_path / "jaxinfer-deploy/on_host.sh")
    return stand_in.call(script, *words, PREFIX=str(tmp_path / "root"), **environment)


@pytest.mark.longer
def test_install_on_the_host(stand_in, tmp_path):
    root = host(stand_in, tmp_path)
    done = on_host(tmp_path, stand_in, "install", "tpu")
    assert done.returncode == 0, done.stderr
    assert (root / "etc/systemd/system/jaxinfer.service").read_text() == (
        DEPLOY / "systemd/jaxinfer.service"
    ).read_text()
    (pip,) = [call for call in stand_in.calls if call[0] == "python" and "pip" in call]
    assert pip[-1].endswith("jaxinfer-deploy/jaxinfer-0.1.0-py3-none-any.whl[tpu,otel]")
    assert pip[pip.index("--constraint") + 1].endswith("jaxinfer-deploy/constraints.txt")
    assert ["systemctl", "enable", "--quiet", "jaxinfer"] in stand_in.calls
    assert not [call for call in stand_in.calls if "apt-get" in call]
    settings = root / "etc/jaxinfer/jaxinfer.env"
    settings.write_text("mine")
    (root / "opt/jaxinfer/bin/python").unlink()
    assert on_host(tmp_path, stand_in, "install", "tpu").returncode == 0
    assert settings.read_text() == "mine"  # an operator's settings outlive an update


@pytest.mark.longer
def test_serve_on_the_host(stand_in, tmp_path):
    root = host(stand_in, tmp_path)
    (root / "etc/jaxinfer").mkdir(parents=True)
    settings = root / "etc/jaxinfer/jaxinfer.env"
    with running(FakeOptions()) as s:
        port = s.url.rsplit(":", 1)[1]
        done = on_host(tmp_path, stand_in, "serve", port, "/models/m", "--max-num-seqs", "8")
        assert (done.returncode, done.stdout) == (0, '{"status":"ready"}\n')
        assert settings.read_text() == 'JAXINFER_OPTIONS="/models/m --max-num-seqs 8"\n'
        assert ["systemctl", "restart", "jaxinfer"] in stand_in.calls
        assert on_host(tmp_path, stand_in, "serve", port).returncode == 0
        assert "--max-num-seqs 8" in settings.read_text()  # without options those of the last time
        refused = on_host(tmp_path, stand_in, "serve", port, "two words")
        assert refused.returncode == 1
        assert "option two words has characters that the unit's line cannot carry" in refused.stderr
    stand_in("systemctl", "sys.exit(0)")  # is-failed: yes
    failed = on_host(tmp_path, stand_in, "serve", str(free_port()))
    assert failed.returncode == 1
    assert "the server ended; its log is above" in failed.stderr
    assert any(call[0] == "journalctl" for call in stand_in.calls)
