"""Where MODEL is: the shipped demo, a folder, or a hub id in the local Hugging Face cache. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from jaxinfer.config import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_cache_from(environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache as that library finds it: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME, ~/.cache."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    base = Path(environ["XDG_CACHE_HOME"]) if environ.get("XDG_CACHE_HOME") else Path("~/.cache")
    return base.expanduser() / "huggingface" / "hub"


def demo_path() -> Path:
    """The demo checkpoint that is installed with the package. Raises ConfigError when this installation lacks it."""
    spec = importlib.util.find_spec("checkpoints")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(location) / "demo").is_dir():
            return Path(location) / "demo"
    raise ConfigError("this installation has no demo checkpoint (checkpoints/demo); name a MODEL")


def resolve_model(name: str | None, hub_cache: Path | None = None, what: str = "MODEL") -> Path:
    """The folder of a model.

    name: a folder, a hub id "organisation/name", or None for the shipped demo. hub_cache: the Hugging Face cache, where
    hub ids are looked up; None is the default place in the home folder. what: calls the name so in errors. Raises
    ConfigError, with the command that downloads when the name looks like a hub id.
    """
    if name is None:
        return demo_path()
    try:
        folder = Path(name).expanduser()
        there, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user's home, a name that no file can have
        raise ConfigError(f"{what} is {name[:200]!r}; there cannot be such a folder: {error}") from error
    if name and is_folder:
        return folder
    if name and there:
        raise ConfigError(f"{what} is {name!r}, a file; it must be a checkpoint folder or a hub id in the local cache")
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(f"{what} is {name!r}; there is no such folder, and it is not a hub id (ORGANISATION/NAME)")
    return _cached_snapshot(name, hub_cache if hub_cache is not None else hub_cache_from({}), what)


def _cached_snapshot(hub_id: str, hub_cache: Path, what: str) -> Path:
    """Layout: models--ORG--NAME/refs/main holds a commit, models--ORG--NAME/snapshots/COMMIT/ the files."""
    entry = hub_cache / f"models--{hub_id.replace('/', '--')}"
    reference = entry / "refs" / "main"
    if reference.is_file():
        snapshot = entry / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if (snapshot / "config.json").is_file():
            return snapshot
    raise ConfigError(
        f"{what} is {hub_id!r}; there is no such folder, and {hub_cache} does not hold that model. "
        f"Download it with: hf download {hub_id}"
    )
