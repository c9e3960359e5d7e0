"""Devices that are not here, for the commands that only compile for them."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING

from jaxinfer.config import ConfigError, RuntimeConfig

if TYPE_CHECKING:
    from jaxinfer.runtime.topology import Topology


def add_topology_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """more: what else is to be known of it."""
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help=f"devices that are not here: v5e:1x1, v6e:2x4, v5p:2x2x1, hopper:1, ...{more} "
        "(default: the devices of this machine)",
    )


def check_topology(runtime: RuntimeConfig) -> None:
    """Raises ConfigError for settings that a topology decides."""
    for name in ("device", "tensor_parallel_size"):
        if getattr(runtime, name) != getattr(RuntimeConfig(), name):
            raise ConfigError(f"{name} is {getattr(runtime, name)!r}; it cannot go with a topology, which says it")


def described(name: str, runtime: RuntimeConfig) -> tuple[Topology, RuntimeConfig]:
    """Devices that are described and not there, and `runtime` for all of them; those that are there are left alone.

    Starts jax. Raises ConfigError.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax starts
    from jaxinfer.runtime.topology import LIBTPU_ENVIRONMENT, topology_mesh
    from jaxinfer.sharding import expert_size, tensor_size

    for variable, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    import jax

    jax.config.update("jax_platforms", "cpu")  # where jax was imported before
    topology = topology_mesh(name, None if runtime.enable_expert_parallel else runtime.expert_parallel_size)
    split = dataclasses.replace(
        runtime,
        tensor_parallel_size=tensor_size(topology.mesh),
        expert_parallel_size=expert_size(topology.mesh),
        enable_expert_parallel=False,
    )
    return topology, split
