"""Bundles on disk: whole or not there, nobody else's, and described by a manifest that is checked first."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from jaxinfer.config import ConfigError
from jaxinfer.runtime import bundle_files
from jaxinfer.runtime.bundle_files import MANIFEST_FILE, BundleFolder, BundleRefused, difference, write_bundle

FILES = [("step", b"first"), ("admit", b"second"), ("score", b"")]
FACTS = {"jaxlib": "1", "cpu": {"features": ["avx", "sse"]}}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    write_bundle(path, FACTS, FILES, weight_bytes=3, pool_bytes=4)
    return path


def test_what_is_written_is_read(bundle: Path) -> None:
    with BundleFolder(bundle) as folder:
        manifest = folder.manifest
        assert (dict(manifest.facts), manifest.weight_bytes, manifest.pool_bytes) == (FACTS, 3, 4)
        assert [(entry.name, folder.read(entry)) for entry in manifest.executables] == FILES


def test_nobody_else_may_write_to_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_bundle(tmp_path / "bundle", FACTS, FILES, weight_bytes=0, pool_bytes=0)
    finally:
        os.umask(before)
    for path in (tmp_path / "bundle", *(tmp_path / "bundle").iterdir()):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path


def test_a_bundle_is_there_whole_or_not_at_all(tmp_path: Path, bundle: Path) -> None:
    def failing():
        yield FILES[0]
        raise RuntimeError("compilers fail")

    for path, overwrite in ((tmp_path / "new", False), (bundle, True)):
        with pytest.raises(RuntimeError, match="compilers fail"):
            write_bundle(path, {}, failing(), weight_bytes=0, pool_bytes=0, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    with BundleFolder(bundle) as folder:
        assert len(folder.manifest.executables) == 3


def test_only_bundles_are_overwritten(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleRefused, match="is there already; give another, or --overwrite"):
        write_bundle(bundle, {}, FILES, weight_bytes=0, pool_bytes=0)
    write_bundle(bundle, {}, FILES[:1], weight_bytes=0, pool_bytes=0, overwrite=True)
    with BundleFolder(bundle) as folder:
        assert len(folder.manifest.executables) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(bundle)
    for name in ("mine", "link"):
        with pytest.raises(BundleRefused, match="is no bundle; what is overwritten must be one"):
            write_bundle(tmp_path / name, {}, FILES, weight_bytes=0, pool_bytes=0, overwrite=True)
    with pytest.raises(BundleRefused, match="is no folder that may be written"):
        write_bundle(tmp_path / "none" / "bundle", {}, FILES, weight_bytes=0, pool_bytes=0)


@pytest.mark.parametrize("name", [".", MANIFEST_FILE, "001.executable"])
@pytest.mark.parametrize(("bit", "who"), [(stat.S_IWGRP, "its group"), (stat.S_IWOTH, "everybody")])
def test_what_others_may_write_to_is_refused(bundle: Path, name: str, bit: int, who: str) -> None:
    path = bundle / name
    path.chmod(path.stat().st_mode | bit)
    with pytest.raises(BundleRefused, match=f"may be written by {who}; a bundle is code, so chmod go-w it"):
        read_all(bundle)


@pytest.mark.parametrize("name", ["bundle", MANIFEST_FILE, "000.executable"])
def test_what_belongs_to_another_user_is_refused(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may give files away; where the tests are not root's, they are read as if by somebody else."""
    if os.geteuid() == 0:
        os.chown(bundle if name == "bundle" else bundle / name, 12345, -1)
    else:
        monkeypatch.setattr(bundle_files.os, "geteuid", lambda: 12345)
    with pytest.raises(BundleRefused, match=r"belongs to user \d+; it must belong to user \d+, who runs this, or to"):
        read_all(bundle)


def test_links_and_what_is_no_file_are_not_followed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"first")
    (bundle / "000.executable").unlink()
    (bundle / "000.executable").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleRefused, match=r"000\.executable cannot be read"):
        read_all(bundle)
    (bundle / "000.executable").unlink()
    os.mkfifo(bundle / "000.executable")
    with pytest.raises(BundleRefused, match=r"000\.executable is not a plain file"):
        read_all(bundle)


def test_files_are_the_ones_that_the_manifest_means(bundle: Path) -> None:
    for data, message in (
        (b"First", r"001\.executable has 5 bytes; the manifest says 6"),
        (b"second, and more", r"001\.executable has 7 bytes"),  # no more is read than tells it
        (b"Second", r"001\.executable is not the file that the manifest's sha256 was made of"),
    ):
        (bundle / "001.executable").write_bytes(data)
        with pytest.raises(BundleRefused, match=message):
            read_all(bundle)
    (bundle / "001.executable").unlink()
    with pytest.raises(BundleRefused, match=r"001\.executable cannot be read: No such file"):
        read_all(bundle)


def test_a_hash_that_lies_is_found(bundle: Path) -> None:
    change(bundle, lambda found: found["executables"][0].update(sha256="0" * 64))
    with pytest.raises(BundleRefused, match=r"000\.executable is not the file"):
        read_all(bundle)


def test_a_torn_manifest_is_refused_wherever_it_is_torn(bundle: Path) -> None:
    whole = (bundle / MANIFEST_FILE).read_bytes()
    for length in range(0, len(whole) - 2, 29):  # without its last line's end it is whole
        (bundle / MANIFEST_FILE).write_bytes(whole[:length])
        with pytest.raises(BundleRefused, match="is not JSON"):
            BundleFolder(bundle)
    (bundle / MANIFEST_FILE).unlink()
    with pytest.raises(BundleRefused, match=r"manifest\.json cannot be read"):
        BundleFolder(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2; it must be 1"),
        ({"facts": []}, r"facts is \[\]; it must be an object"),
        ({"weight_bytes": -1}, "weight_bytes is -1; it must be a number of bytes"),
        ({"pool_bytes": True}, "pool_bytes is True"),
        ({"extra": 1}, r"manifest\.json has \['executables', 'extra'"),
        ({"executables": []}, r"executables is \[\]; it must be a list of some"),
        ({"executables": [1]}, r"executables\[0\] is 1; it must be an object of name, file, bytes and sha256"),
        *(
            ({"executables": [{"name": "a", "bytes": 1, "sha256": "", "file": file}]}, r"\.file is ")
            for file in ("", ".", "..", "../x", "/etc/passwd", "a\0b", MANIFEST_FILE)
        ),
        ({"executables": [{"name": 1, "bytes": 1, "sha256": "", "file": "a"}]}, r"\.name is 1; it must be a string"),
        ({"executables": [{"name": "a", "bytes": 1.5, "sha256": "", "file": "a"}]}, r"\.bytes is 1\.5"),
        ({"executables": [{"name": "a", "bytes": 1, "sha256": "", "file": "a"}] * 2}, "two executables have one name"),
    ],
)
def test_a_manifest_that_is_none_is_refused_by_name(bundle: Path, changes: dict, message: str) -> None:
    change(bundle, lambda found: found.update(changes))
    with pytest.raises(BundleRefused, match=message):
        BundleFolder(bundle)


def test_a_folder_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in (tmp_path / "none", tmp_path / "file", "~nosuchuser/x", "a\0b"):
        with pytest.raises(ConfigError, match="bundle is '"):
            BundleFolder(name)


def test_differences_are_told_in_words() -> None:
    here = {"jaxlib": "1", "cpu": {"features": ["avx", "sse"], "cores": 2}}
    assert difference(json.loads(json.dumps(here)), here) is None
    assert difference(here | {"jaxlib": "2"}, here) == "jaxlib is '1' here; the bundle was made for '2'"
    assert difference(here | {"cpu": None}, here) is not None
    other = {"features": ["amx", "sse"], "cores": 2}
    told = difference(here | {"cpu": other}, here)
    assert told == "cpu.features differ between where the bundle was made and here: amx only there, avx only here"
    assert difference(here | {"more": 1}, here) == "more is None here; the bundle was made for 1"
    assert difference({"jaxlib": "1"}, here) is not None
    assert difference({"flag": 1}, {"flag": True}) is not None  # JSON keeps them apart


def read_all(path: Path) -> None:
    with BundleFolder(path) as folder:
        for entry in folder.manifest.executables:
            folder.read(entry)


def change(path: Path, how) -> None:
    found = json.loads((path / MANIFEST_FILE).read_text())
    how(found)
    (path / MANIFEST_FILE).write_text(json.dumps(found))
