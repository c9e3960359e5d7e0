"""A folder appears whole or not at all, whatever ends the writing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from checkpoints.files import CONFIG_FILE, REPORT_FILE, CheckpointError, is_converted
from checkpoints.folder import read_config
from checkpoints.staging import check_target, staged
from tests.checkpoints.folders import tree


def fill(folder: Path, text: str = "new") -> None:
    (folder / "params").mkdir()
    for name in (CONFIG_FILE, "params/data", REPORT_FILE):
        (folder / name).write_text(text)


def make(target: Path, text: str, overwrite: bool = False) -> None:
    with staged(target, overwrite) as folder:
        fill(folder, text)


def test_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with staged(target, False) as folder:
        fill(folder)
        assert not target.exists()
        assert not is_converted(folder)  # whatever is in it, its name says that it is being written
    assert is_converted(target)
    assert tree(tmp_path / "deep") == [
        "model", f"model/{REPORT_FILE}", f"model/{CONFIG_FILE}", "model/params", "model/params/data"
    ]  # fmt: skip


def test_takes_the_place_of_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    make(tmp_path / "model", "new")
    assert is_converted(tmp_path / "model")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with staged(tmp_path / "model", False) as folder:
            fill(folder)
            raise error

    with pytest.raises(error):
        interrupted()
    assert tree(tmp_path) == []


def test_an_exception_leaves_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "model", "old")

    def interrupted() -> None:
        with staged(tmp_path / "model", True) as folder:
            fill(folder)
            raise ValueError

    with pytest.raises(ValueError):
        interrupted()
    assert (tmp_path / "model" / CONFIG_FILE).read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from checkpoints.files import CONFIG_FILE, REPORT_FILE
    from checkpoints.staging import check_target, staged
    with staged(Path(sys.argv[1]), True) as folder:
        for name in sys.argv[2:]:
            (folder / name).write_text("{}")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run_killed(target: Path, *files: str) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(target), *files]
    result = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, timeout=60, check=False)
    assert result.returncode == -signal.SIGKILL


@pytest.mark.parametrize("files", [("model.bin",), ("config.json", CONFIG_FILE), (CONFIG_FILE, REPORT_FILE)])
def test_a_killed_run_leaves_nothing_that_loads(tmp_path: Path, files: tuple[str, ...]) -> None:
    run_killed(tmp_path / "model", *files)
    assert os.listdir(tmp_path) == [".model.partial"]
    partial = tmp_path / ".model.partial"
    assert sorted(os.listdir(partial)) == sorted(files)
    assert not is_converted(partial)
    with pytest.raises(CheckpointError):
        read_config(partial)


def test_the_next_run_clears_up_after_a_killed_one(tmp_path: Path) -> None:
    run_killed(tmp_path / "model", "stale")
    make(tmp_path / "model", "new")
    assert os.listdir(tmp_path) == ["model"]
    assert "stale" not in os.listdir(tmp_path / "model")


def test_a_run_killed_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    make(tmp_path / "model", "old")
    (tmp_path / "model").rename(tmp_path / ".model.replaced")
    with pytest.raises(CheckpointError, match="it exists"):
        make(tmp_path / "model", "new")
    assert (tmp_path / "model" / CONFIG_FILE).read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_a_leftover_of_a_finished_replacement_is_removed(tmp_path: Path) -> None:
    make(tmp_path / "model", "old")
    fillable = tmp_path / ".model.replaced"
    fillable.mkdir()
    fill(fillable, "older")
    make(tmp_path / "model", "new", overwrite=True)
    assert (tmp_path / "model" / CONFIG_FILE).read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


def test_existing_folder_needs_overwrite(tmp_path: Path) -> None:
    make(tmp_path / "model", "old")
    with pytest.raises(CheckpointError, match=r"model: expected no such folder; it exists.*--overwrite"):
        make(tmp_path / "model", "new")
    assert (tmp_path / "model" / CONFIG_FILE).read_text() == "old"
    make(tmp_path / "model", "new", overwrite=True)
    assert (tmp_path / "model" / CONFIG_FILE).read_text() == "new"


def test_overwrite_replaces_only_converted_checkpoints(tmp_path: Path) -> None:
    """A typing error must not delete somebody's folder."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    (tmp_path / "file").write_text("text")
    make(tmp_path / "model", "old")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for name in ("photos", "file", "link"):
        with pytest.raises(CheckpointError, match=f"{name}: expected a converted checkpoint to overwrite"):
            make(tmp_path / name, "new", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "model", "photos"]


def test_two_runs_for_one_folder_are_kept_apart(tmp_path: Path) -> None:
    with staged(tmp_path / "model", False) as folder:
        (folder / "mine").write_text("x")
        with pytest.raises(CheckpointError, match="another conversion is writing it"):
            make(tmp_path / "model", "new")
        assert (folder / "mine").exists()
    assert (tmp_path / "model" / "mine").exists()


def test_a_target_is_judged_before_anything_is_made(tmp_path: Path) -> None:
    """As `staged` would judge it, without a trace."""
    check_target(tmp_path / "deep" / "model", False)
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty", False)
    make(tmp_path / "model", "old")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    before = tree(tmp_path)
    check_target(tmp_path / "model", True)
    for target, overwrite, message in [
        (tmp_path / "model", False, "expected no such folder; it exists"),
        (tmp_path / "other", False, "expected no such folder; it exists"),
        (tmp_path / "other", True, "expected a converted checkpoint to overwrite"),
        (tmp_path / "other" / "file" / "model", False, "expected a place that can be written"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            check_target(target, overwrite)
    assert tree(tmp_path) == before
