"""DeviceTarget and the choice of a backend."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace

import jax
import pytest

from pallas_kernels.dispatch import Backend, DeviceTarget, Op, Unsupported, select

CPU = DeviceTarget("cpu", "cpu")
HOPPER = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
MODULE = "tests.pallas_kernels.lazily_imported"


def only_on(platform: str):
    return lambda target, case: None if target.platform == platform else f"runs on {platform} only"


OP: Op[int] = Op(
    "double",
    (
        Backend(
            "hopper", lambda target, case: None if target.compute_capability == (9, 0) else "needs 9.0", "absent:run"
        ),
        Backend("small", lambda target, case: None if case < 10 else f"case {case} is above 9", f"{MODULE}:run"),
        Backend("cpu", only_on("cpu"), "absent:run"),
    ),
)


def test_target_of_a_real_device():
    device = jax.devices("cpu")[0]
    assert DeviceTarget.of(device) == DeviceTarget("cpu", device.device_kind, None)


@pytest.mark.parametrize("platform", ["gpu", "cuda"])
def test_target_of_a_gpu_has_its_compute_capability_as_numbers(platform: str):
    device = SimpleNamespace(platform=platform, device_kind="NVIDIA X", compute_capability="12.1")
    assert DeviceTarget.of(device) == DeviceTarget("gpu", "NVIDIA X", (12, 1))


def test_target_of_a_tpu_has_none():
    assert DeviceTarget.of(SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")).compute_capability is None


def test_target_refuses_a_capability_that_it_cannot_read():
    device = SimpleNamespace(platform="gpu", device_kind="X", compute_capability="gfx942")
    with pytest.raises(ValueError, match=r"'gfx942'.*major\.minor"):
        DeviceTarget.of(device)


def test_target_is_frozen_and_hashable():
    assert len({CPU, DeviceTarget("cpu", "cpu"), HOPPER}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        CPU.platform = "tpu"  # type: ignore[misc]


def test_the_first_backend_that_can_is_picked():
    assert select(OP, HOPPER, 3).name == "hopper"
    assert select(OP, CPU, 3).name == "small"
    assert select(OP, CPU, 10).name == "cpu"


def test_a_case_by_name_only_is_never_picked_without_the_name():
    few = lambda case: "few are served better" if case < 5 else None  # noqa: E731
    extra = Backend("extra", only_on("cpu"), f"{MODULE}:run", by_name_only=few)
    op: Op[int] = Op("double", (extra, *OP.backends))
    assert select(op, CPU, 5).name == "extra"
    assert select(op, CPU, 3).name == "small"
    assert select(op, CPU, 3, backend="extra") is extra
    with pytest.raises(Unsupported, match="extra: only by name: few are served better"):
        select(Op("double", (extra,)), CPU, 3)
    with pytest.raises(Unsupported, match="extra: runs on cpu only"):
        select(Op("double", (extra,)), HOPPER, 3)


def test_a_named_backend_is_picked_over_a_preferred_one():
    assert select(OP, HOPPER, 3, backend="small").name == "small"


def test_a_named_backend_that_cannot_serve_says_why():
    with pytest.raises(NotImplementedError, match=r"double backend 'small' .* cpu \(cpu\): case 12 is above 9"):
        select(OP, CPU, 12, backend="small")


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match="'triton'; known: hopper, small, cpu"):
        select(OP, CPU, 3, backend="triton")


def test_when_nothing_can_serve_every_reason_is_given():
    target = DeviceTarget("tpu", "TPU v5 lite")
    with pytest.raises(Unsupported) as error:
        select(OP, target, 99)
    text = str(error.value)
    assert "TPU v5 lite" in text
    for reason in ("hopper: needs 9.0", "small: case 99 is above 9", "cpu: runs on cpu only"):
        assert reason in text


def test_nothing_is_imported_before_load():
    sys.modules.pop(MODULE, None)
    picked = select(OP, CPU, 3)  # its rivals name a module that does not exist
    assert MODULE not in sys.modules
    assert picked.load()(21) == 42
    assert MODULE in sys.modules
