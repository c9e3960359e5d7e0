"""Axes: of the mesh, and from an array's logical ones to them."""

from __future__ import annotations

import jax
import pytest

from jaxinfer.config import ConfigError, ParallelConfig, RuntimeConfig
from jaxinfer.sharding import (
    EXPERT_AXIS,
    MESH_AXES,
    MODEL_AXES,
    TENSOR_AXIS,
    expert_size,
    make_mesh,
    mesh_of,
    model_size,
    partition_spec,
    tensor_mesh,
    tensor_size,
)


def test_the_mesh_has_every_axis_and_its_devices_lie_along_the_tensor_axis() -> None:
    runtime = RuntimeConfig(tensor_parallel_size=4)
    for mesh in (make_mesh(runtime.parallel), tensor_mesh(jax.devices()[:4])):
        assert mesh.axis_names == MESH_AXES == ("data", "pipe", "tensor", "expert")
        assert dict(mesh.shape) == {"data": 1, "pipe": 1, "tensor": 4, "expert": 1}
        assert tensor_size(mesh) == 4
        assert list(mesh.devices.flat) == jax.devices()[:4]


def test_experts_have_an_axis_of_their_own() -> None:
    for runtime, sizes in (
        (RuntimeConfig(tensor_parallel_size=2, expert_parallel_size=4), (2, 4)),
        (RuntimeConfig(tensor_parallel_size=8, enable_expert_parallel=True), (1, 8)),
    ):
        for mesh in (make_mesh(runtime.parallel), mesh_of(jax.devices()[:8], sizes[1])):
            assert (tensor_size(mesh), expert_size(mesh), model_size(mesh)) == (*sizes, 8)
            assert list(mesh.devices.flat) == jax.devices()[:8]


def test_devices_that_cannot_be_dealt_are_refused() -> None:
    with pytest.raises(ConfigError, match="expert_parallel_size is 3; it must divide the 4 devices"):
        mesh_of(jax.devices()[:4], 3)
    with pytest.raises(ConfigError, match="expert_parallel_size is 2; with enable_expert_parallel it must be 1"):
        RuntimeConfig(expert_parallel_size=2, enable_expert_parallel=True)
    with pytest.raises(ConfigError, match="expert_parallel_size is 0; it must be a positive integer"):
        RuntimeConfig(expert_parallel_size=0)
    asked = "tensor_parallel_size x expert_parallel_size is 16 x 32 = 512"
    with pytest.raises(ConfigError, match=f"{asked}; there are {jax.device_count()} "):
        make_mesh(ParallelConfig(tensor=16, expert=32))


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size is 999; there are {jax.device_count()} "):
        make_mesh(ParallelConfig(tensor=999))


@pytest.mark.parametrize("axis", ["data", "pipe"])
def test_axes_that_nothing_serves_yet_are_refused_by_name(axis: str) -> None:
    with pytest.raises(ConfigError, match=f"parallel axis {axis} is 2; only tensor and expert can be above 1"):
        ParallelConfig(**{axis: 2})


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "2"])
def test_a_size_is_a_positive_integer(size: object) -> None:
    with pytest.raises(ConfigError, match=f"parallel axis tensor is {size!r}; it must be a positive integer"):
        ParallelConfig(tensor=size)  # type: ignore[arg-type]


def test_axes_lie_where_the_table_says() -> None:
    assert partition_spec(("kv_heads", "q_group", "head", "embed")) == jax.P(MODEL_AXES, None, None, None)
    assert partition_spec(("experts", None, "expert_mlp")) == jax.P(EXPERT_AXIS, None, TENSOR_AXIS)


@pytest.mark.parametrize(("first", "second"), [("q_heads", "kv_heads"), ("mlp", "vocab_out"), ("experts", "mlp")])
def test_two_axes_of_an_array_cannot_lie_on_one_mesh_axis(first: str, second: str) -> None:
    with pytest.raises(ValueError, match=f"{first}', 'embed', '{second}.*, each of which splits one only"):
        partition_spec((first, "embed", second))


def test_an_axis_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['vocab'\] are none of \['batch', "):
        partition_spec(("vocab", "embed"))
