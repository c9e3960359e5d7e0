"""Layers packed by AutoAWQ and AutoGPTQ themselves, read here: the same values bit by bit.

Needs torch and these packages, which are no dependencies. Both are no longer developed and import much that they do not
need for packing, so that only the modules that pack are imported, not the packages around them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.load import load_model
from pallas_kernels.qtensor import dequantize
from tests.checkpoints.quantized.models import tiny, write_pair
from tests.checkpoints.quantized.packers import Packed, numbers, widened
from tests.checkpoints.quantized.test_formats import AWQ, GPTQ, Orders, parameters, read_all

torch = pytest.importorskip("torch", reason="the packages that pack need torch")

GROUP = 32


def packing_module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """A module of a package whose `__init__` files are left out."""
    top = importlib.util.find_spec(name.split(".")[0])
    if top is None or not top.submodule_search_locations:
        pytest.skip(f"{name.split('.')[0]}, which packs such files, is not installed")
    root = Path(top.submodule_search_locations[0])
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir() and "__pycache__" not in path.parts)):
        bare = types.ModuleType(".".join((top.name, *folder.relative_to(root).parts)))
        bare.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, bare.__name__, bare)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def drawn(random: np.random.Generator, outputs: int, inputs: int, bits: int) -> tuple[np.ndarray, ...]:
    """Whole numbers, zero points and scales, in types that the packages find again by dividing."""
    zeros = random.integers(1, 2**bits, (outputs, inputs // GROUP))  # 0 less one spoils its neighbours in AutoGPTQ
    scales = np.exp2(random.integers(-9, -5, zeros.shape)).astype(np.float16)
    return numbers(random, outputs, inputs, bits), zeros, scales


def check(root: Path, settings: dict[str, Any], pack: Any, family: str) -> None:
    pair = write_pair(root, tiny(family), settings, pack)
    dense = parameters(load_model(pair.dense))
    for path, weight in read_all(pair.quantized).items():
        found = np.asarray(dequantize(weight)).reshape(dense[path].shape)
        np.testing.assert_array_equal(found, np.asarray(dense[path]), err_msg=path)


def test_auto_awq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = packing_module(monkeypatch, "awq.modules.linear.gemm")
    monkeypatch.setattr(module, "get_best_device", lambda: "cpu")
    random = np.random.default_rng(1)

    def pack(name: str, outputs: int, inputs: int) -> Packed:
        q, zeros, scales = drawn(random, outputs, inputs, 4)
        value = widened(q, zeros, scales, np.arange(inputs) // GROUP)
        packed = module.WQLinear_GEMM.from_linear(
            linear(value), 4, GROUP, scales=torch.from_numpy(scales.T.copy()), zeros=torch.from_numpy(zeros.T.copy())
        )
        return Packed({key: getattr(packed, key).numpy() for key in ("qweight", "qzeros", "scales")}, value)

    check(tmp_path, AWQ | {"group_size": GROUP}, pack, "qwen2")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_auto_gptq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, ordered: bool) -> None:
    module = packing_module(monkeypatch, "auto_gptq.nn_modules.qlinear.qlinear_cuda")
    random = np.random.default_rng(bits)
    orders = Orders(random, GROUP)

    def pack(name: str, outputs: int, inputs: int) -> Packed:
        q, zeros, scales = drawn(random, outputs, inputs, bits)
        index = orders(name, inputs) if ordered else np.arange(inputs) // GROUP
        value = widened(q, zeros, scales, index)
        layer = module.QuantLinear(bits, GROUP, inputs, outputs, bias=False)
        parts = (torch.from_numpy(part.astype(np.float32)) for part in (scales, zeros))
        layer.pack(linear(value), *parts, g_idx=torch.from_numpy(index.astype(np.int32)))
        tensors = {key: getattr(layer, key).numpy() for key in ("qweight", "qzeros", "scales", "g_idx")}
        return Packed(tensors, value)

    check(tmp_path, GPTQ | {"bits": bits, "group_size": GROUP, "sym": False, "desc_act": ordered}, pack, "llama")


def linear(value: np.ndarray) -> Any:
    """A layer of torch with this weight and no bias."""
    layer = torch.nn.Linear(value.shape[1], value.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(value))
    return layer
