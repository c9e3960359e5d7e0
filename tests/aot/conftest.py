"""Programs compiled for devices that are not here. A test skips, with the reason, where its compiler is missing."""

from __future__ import annotations

import os

from jaxinfer.runtime.topology import LIBTPU_ENVIRONMENT

for name, value in LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
