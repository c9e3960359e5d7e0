"""Where MODEL is found: folders, the local Hugging Face cache, the demo."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxinfer.config import ConfigError
from jaxinfer.model_path import demo_path, hub_cache_from, resolve_model

COMMIT = "0123456789abcdef"


@pytest.fixture
def hub_cache(tmp_path) -> Path:
    entry = tmp_path / "hub" / "models--org--some.model-1"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(f"{COMMIT}\n")
    snapshot = entry / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return tmp_path / "hub"


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve_model("org/name") == Path("org/name")  # a folder wins over a hub id


def test_a_hub_id_is_its_main_snapshot(hub_cache):
    assert resolve_model("org/some.model-1", hub_cache).name == COMMIT


@pytest.mark.parametrize("missing", ["refs/main", f"snapshots/{COMMIT}/config.json"])
def test_an_incomplete_download_is_none(hub_cache, missing):
    (hub_cache / "models--org--some.model-1" / missing).unlink()
    with pytest.raises(ConfigError, match=r"Download it with: hf download org/some.model-1"):
        resolve_model("org/some.model-1", hub_cache)


@pytest.mark.parametrize("name", ["nowhere", "/not/there", "a/b/c", "../x", "org/na me", ""])
def test_what_is_neither_folder_nor_hub_id(name, hub_cache, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where nothing of these names stands
    with pytest.raises(ConfigError, match="not a hub id"):
        resolve_model(name, hub_cache)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ConfigError, match="a file; it must be a checkpoint folder"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_the_cache_is_where_hugging_face_puts_it():
    home = Path.home()
    assert hub_cache_from({}) == home / ".cache/huggingface/hub"
    assert hub_cache_from({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hub_cache_from({"XDG_CACHE_HOME": "/x", "HF_HOME": "/h"}) == Path("/h/hub")
    assert hub_cache_from({"HF_HOME": "/h", "HF_HUB_CACHE": "~/c"}) == home / "c"
    assert hub_cache_from({"HF_HOME": ""}) == home / ".cache/huggingface/hub"


def test_no_name_is_the_demo(tmp_path, monkeypatch):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "checkpoints" else None)
    with pytest.raises(ConfigError, match="no demo checkpoint"):
        resolve_model(None)
    (tmp_path / "demo").mkdir()
    assert resolve_model(None) == demo_path() == tmp_path / "demo"
