"""`jaxinfer serve` over the pretended device: what `started.py` runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .device import HostOptions


def main(argv: list[str]) -> int:
    """[HostOptions as JSON, option of `jaxinfer serve` ...]"""
    from serving.commands import serve

    options = HostOptions(**json.loads(argv[0]))
    return serve.main(argv[1:], hub_cache=Path("/nonexistent"), build=lambda _folder, _arguments: options.build)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
