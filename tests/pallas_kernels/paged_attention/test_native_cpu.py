"""The C++ kernel for CPUs: the contract with every instruction set that this machine has."""

from __future__ import annotations

import pytest

from pallas_kernels.dispatch import DeviceTarget, Unsupported, select
from pallas_kernels.paged_attention.api import OP
from tests.pallas_kernels.native_cpu.loaded import target_for
from tests.pallas_kernels.paged_attention.cases import Shape
from tests.pallas_kernels.paged_attention.contract import SHAPES, PagedAttentionContract, case_of

PLAIN = DeviceTarget("cpu", "cpu")


class NativeContract(PagedAttentionContract):
    backend = "native_cpu"
    name = ""

    @property
    def target(self) -> DeviceTarget:
        return target_for(self.name)


class TestAvx512Bf16(NativeContract):
    name = "avx512_bf16"


class TestAvx512(NativeContract):
    name = "avx512"


class TestAvx2(NativeContract):
    name = "avx2"


def test_pages_of_another_type_are_left_to_xla():
    target = target_for("avx2")
    narrow = next(shape for shape in SHAPES if shape.kv_dtype is not None)
    assert select(OP, target, case_of(narrow)).name == "xla"
    assert select(OP, target, case_of(Shape())).name == "native_cpu"
    assert select(OP, PLAIN, case_of(Shape())).name == "xla"
    with pytest.raises(Unsupported, match="have not been loaded"):
        select(OP, PLAIN, case_of(Shape()), "native_cpu")
