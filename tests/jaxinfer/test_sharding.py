"""Axes: of the mesh, and from an array's logical ones to them."""

from __future__ import annotations

import jax
import pytest

from jaxinfer.config import ConfigError, ParallelConfig, RuntimeConfig
from jaxinfer.sharding import EXPERT_AXIS, MESH_AXES, TENSOR_AXIS, make_mesh, partition_spec, tensor_mesh, tensor_size


def test_the_mesh_has_every_axis_and_its_devices_lie_along_the_tensor_axis() -> None:
    runtime = RuntimeConfig(tensor_parallel_size=4)
    for mesh in (make_mesh(runtime.parallel), tensor_mesh(jax.devices()[:4])):
        assert mesh.axis_names == MESH_AXES == ("data", "pipe", "tensor", "expert")
        assert dict(mesh.shape) == {"data": 1, "pipe": 1, "tensor": 4, "expert": 1}
        assert tensor_size(mesh) == 4
        assert list(mesh.devices.flat) == jax.devices()[:4]


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size is 999; there are {jax.device_count()} "):
        make_mesh(ParallelConfig(tensor=999))


@pytest.mark.parametrize("axis", ["data", "pipe", "expert"])
def test_axes_that_nothing_serves_yet_are_refused_by_name(axis: str) -> None:
    with pytest.raises(ConfigError, match=f"parallel axis {axis} is 2; only tensor can be above 1"):
        ParallelConfig(**{axis: 2})


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "2"])
def test_a_size_is_a_positive_integer(size: object) -> None:
    with pytest.raises(ConfigError, match=f"parallel axis tensor is {size!r}; it must be a positive integer"):
        ParallelConfig(tensor=size)  # type: ignore[arg-type]


def test_axes_lie_where_the_table_says() -> None:
    assert partition_spec(("kv_heads", "q_group", "head", "embed")) == jax.P(TENSOR_AXIS, None, None, None)
    assert partition_spec(("experts", None, "mlp")) == jax.P(EXPERT_AXIS, None, TENSOR_AXIS)


@pytest.mark.parametrize(("first", "second"), [("q_heads", "kv_heads"), ("mlp", "vocab_out"), ("mlp", "mlp")])
def test_two_axes_of_an_array_cannot_lie_on_one_mesh_axis(first: str, second: str) -> None:
    with pytest.raises(ValueError, match=f"{first}', 'embed', '{second}.*'tensor', 'tensor'"):
        partition_spec((first, "embed", second))


def test_an_axis_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['vocab'\] are none of \['batch', "):
        partition_spec(("vocab", "embed"))
