"""Settings that must be made before jax starts: eight virtual CPU devices for the tensor-parallel tests."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# With the default pool of one thread per core, collectives between virtual devices starve each other and abort.
os.environ.setdefault("NPROC", "32")

import jax

jax.config.update("jax_num_cpu_devices", 8)
