"""Every format against its own writer: the same values bit by bit, the same model, and the same sizes in the plan."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from checkpoints.files import CheckpointError
from checkpoints.load import canonical_shapes, load_model
from checkpoints.quantized import parse
from checkpoints.quantized.mapping import plan_quantized, read_quantization
from checkpoints.quantized.matrix_assembly import read_matrix
from checkpoints.quantized.protocol import Layer, Tensors
from checkpoints.reader import open_checkpoint
from checkpoints.verify import dense_logits
from jaxinfer.config import ConfigError, ParallelConfig
from jaxinfer.memory_plan import abstract_model
from jaxinfer.models.model import Model
from jaxinfer.sharding import make_mesh
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import QTensor, dequantize
from pallas_kernels.quantized_matmul.layout import for_target
from tests.checkpoints.quantized import packers
from tests.checkpoints.quantized.models import PROMPT, SHARED, Pair, tiny, write_folder, write_pair
from tests.checkpoints.quantized.packers import Packed
from tests.checkpoints.test_quantized_load import matrices, relative

Random = np.random.Generator
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True, "modules_to_not_convert": None}
GPTQ = {"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}


def compressed(format_: str, weights: dict[str, Any], activations: dict[str, Any] | None = None, **more: Any) -> dict:
    """As llm-compressor writes it, with the keys that say nothing about the values."""
    weights = {"observer": "minmax", "observer_kwargs": {}, "actorder": None, "block_structure": None} | weights
    group = {"targets": ["Linear"], "weights": weights | {"dynamic": False}, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "quantization_status": "compressed",
        "global_compression_ratio": 1.9,
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.12.2",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group | {"input_activations": activations}},
    } | more


def whole(bits: int, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | more


FLOAT = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "group_size": None}
INT8_TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_TOKENS = INT8_TOKENS | {"type": "float"}


class Orders:
    """The group of every input, drawn once for all layers that share their inputs."""

    def __init__(self, random: Random, group: int) -> None:
        self._random, self._group = random, group
        self._drawn: dict[str, np.ndarray] = {}

    def __call__(self, module: str, inputs: int) -> np.ndarray:
        parent, end = module.rsplit(".", 1)
        name = f"{parent}.{SHARED.get(end, end)}"
        if name not in self._drawn:
            self._drawn[name] = self._random.permutation(np.arange(inputs) // self._group)
        return self._drawn[name]


@dataclasses.dataclass(frozen=True)
class Case:
    """family, settings, and a maker of a layer from (random, module, outputs, inputs, orders)."""

    family: str
    settings: dict[str, Any]
    pack: Callable[[Random, str, int, int, Orders], Packed]
    group: int = 32


def _gptq(group: int, ordered: bool = False, **options: Any) -> Callable[..., Packed]:
    def pack(random: Random, module: str, outputs: int, inputs: int, orders: Orders) -> Packed:
        index = orders(module, inputs) if ordered else None
        return packers.gptq(random, outputs, inputs, group, index=index, **options)

    return pack


def _packed(group: int, ordered: bool = False, **options: Any) -> Callable[..., Packed]:
    def pack(random: Random, module: str, outputs: int, inputs: int, orders: Orders) -> Packed:
        index = orders(module, inputs) if ordered else None
        return packers.pack_quantized(random, outputs, inputs, group, index=index, **options)

    return pack


def _plain(packer: Callable[..., Packed], *arguments: Any, **options: Any) -> Callable[..., Packed]:
    return lambda random, module, outputs, inputs, orders: packer(random, outputs, inputs, *arguments, **options)


def _fp8_static(random: Random, module: str, outputs: int, inputs: int, orders: Orders) -> Packed:
    """As in Mistral 3: another name of the scale, and one for the activations."""
    packed = packers.float_quantized(random, outputs, inputs, whole=True)
    tensors = dict(packed.tensors)
    tensors["weight_scale_inv"] = tensors.pop("weight_scale").reshape(())
    return dataclasses.replace(packed, tensors=tensors | {"activation_scale": np.float32(0.02).reshape(())})


CASES = {
    "awq-32": Case("llama", AWQ | {"group_size": 32}, _plain(packers.awq, 32)),
    "awq-128": Case("qwen2", AWQ | {"group_size": 128}, _plain(packers.awq, 128)),
    "awq-outputs": Case("mistral", AWQ | {"group_size": -1, "version": "GEMM"}, _plain(packers.awq, -1)),
    "gptq-64": Case("qwen2", GPTQ | {"group_size": 64}, _gptq(64)),
    "gptq-fused": Case("phi3", GPTQ | {"group_size": 32, "sym": False}, _gptq(32, symmetric=False)),
    "gptq-outputs": Case("llama", GPTQ | {"group_size": -1, "desc_act": True}, _gptq(-1)),
    "gptq-8-order": Case(
        "qwen3",
        GPTQ | {"bits": 8, "group_size": 32, "sym": False, "desc_act": True},
        _gptq(32, ordered=True, bits=8, symmetric=False),
    ),
    "gptq-order": Case("llama", GPTQ | {"group_size": 32, "desc_act": True}, _gptq(32, ordered=True)),
    "gptq-v2": Case(
        "gemma2",
        GPTQ | {"group_size": 64, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"},
        _gptq(64, ordered=True, symmetric=False, version="gptq_v2"),
        group=64,
    ),
    "packed": Case("llama", compressed("pack-quantized", whole(4)), _packed(32)),
    "packed-zeros": Case(
        "qwen3", compressed("pack-quantized", whole(4, symmetric=False)), _packed(32, symmetric=False)
    ),
    "packed-order": Case("olmo2", compressed("pack-quantized", whole(4, actorder="group")), _packed(32, ordered=True)),
    "packed-8-outputs": Case(
        "phi3",
        compressed("pack-quantized", whole(8, strategy="channel", group_size=None, symmetric=False)),
        _packed(-1, bits=8, symmetric=False),
    ),
    "packed-w4a8": Case("llama", compressed("pack-quantized", whole(4), INT8_TOKENS), _packed(32)),
    "int8": Case(
        "llama",
        compressed("int-quantized", whole(8, strategy="channel", group_size=None), INT8_TOKENS),
        _plain(packers.int_quantized),
    ),
    "int8-weights": Case(
        "granite",
        compressed("naive-quantized", whole(8, strategy="tensor", group_size=None)),
        _plain(packers.int_quantized, whole=True),
    ),
    "float8": Case("qwen2", compressed("float-quantized", FLOAT, FP8_TOKENS), _plain(packers.float_quantized)),
    "float8-whole": Case(
        "phi3",
        compressed("naive-quantized", FLOAT | {"strategy": "tensor"}, FP8_TOKENS),
        _plain(packers.float_quantized, whole=True),
    ),
    "float8-blocks": Case(
        "llama",
        compressed(
            "float-quantized",
            FLOAT | {"strategy": "block", "block_structure": [128, 128]},
            FP8_TOKENS | {"strategy": "group", "group_size": 128},
        ),
        _plain(packers.float_blocks, "weight_scale"),
    ),
    "awq-experts": Case("qwen3_moe", AWQ | {"group_size": 32}, _plain(packers.awq, 32)),
    "fp8-experts": Case("qwen3_moe", FP8 | {"weight_block_size": [128, 128]}, _plain(packers.float_blocks)),
    "fp8-blocks": Case("qwen3", FP8 | {"weight_block_size": [128, 128]}, _plain(packers.float_blocks)),
    "fp8-blocks-fused": Case("phi3", FP8 | {"weight_block_size": [128, 128]}, _plain(packers.float_blocks)),
    "fp8": Case("smollm3", FP8, _plain(packers.float_quantized, whole=True)),
    "mxfp4": Case("llama", MXFP4, _plain(packers.mxfp4)),
    "mxfp4-fused": Case("phi3", MXFP4, _plain(packers.mxfp4)),
    "fp8-static": Case("ministral3", FP8 | {"activation_scheme": "static", "weight_block_size": None}, _fp8_static),
}


def write(root: Path, case: Case, **options: Any) -> Pair:
    random = np.random.default_rng(11)
    orders = Orders(random, case.group)
    return write_pair(
        root, tiny(case.family), case.settings, lambda *layer: case.pack(random, *layer, orders), **options
    )


def write_once(folders: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Folders of a case by its name, written when it is first asked for."""
    return functools.cache(lambda name: write(folders.mktemp(name), CASES[name]))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return write_once(tmp_path_factory)


def read_all(folder: Path) -> dict[str, QTensor]:
    """All matrices of a quantized folder as the reader gives them, before any device sees them."""
    dense = load_config(folder)
    quantization = read_quantization(folder, dense)
    assert quantization is not None
    with open_checkpoint(folder) as source:
        mapping = plan_quantized(dense, source, canonical_shapes(dense, np.dtype(np.float32)), quantization)
        return {path: read_matrix(matrix, mapping.format) for path, matrix in mapping.matrices.items()}


def load_config(folder: Path) -> Any:
    from checkpoints.folder import read_config

    return read_config(folder)[0]


def parameters(model: Model) -> dict[str, Any]:
    paths = jax.tree_util.tree_flatten_with_path(model.params, is_leaf=lambda leaf: isinstance(leaf, QTensor))[0]
    return {".".join(str(getattr(part, "key", part)) for part in path): leaf for path, leaf in paths}


def exchanged(model: Model, leaves: dict[str, Any]) -> Model:
    """The model with some of its parameters replaced."""

    def swap(path: Any, leaf: Any) -> Any:
        return leaves.get(".".join(str(getattr(part, "key", part)) for part in path), leaf)

    params = jax.tree_util.tree_map_with_path(swap, model.params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return dataclasses.replace(model, params=params)


@pytest.mark.parametrize("name", CASES)
def test_the_reader_gives_the_values_bit_by_bit(pairs: Callable[[str], Pair], name: str) -> None:
    """The dense folder goes through the rules that plain checkpoints go through."""
    pair = pairs(name)
    dense, read = parameters(load_model(pair.dense)), read_all(pair.quantized)
    assert len(read) == 4
    for path, weight in read.items():
        weight.check(path)
        found = np.asarray(dequantize(weight)).reshape(dense[path].shape)
        np.testing.assert_array_equal(found, np.asarray(dense[path]), err_msg=path)
        assert (weight.order is not None) == ("order" in name or name == "gptq-v2")
        assert weight.nbytes < 0.55 * dense[path].nbytes


# Compiling takes most of the time, so not all of them: each kind, with and without groups, zero points, order, blocks.
MODELS = [
    "awq-32", "awq-experts", "fp8-experts", "gptq-fused", "gptq-8-order", "packed-order", "packed-w4a8", "int8",
    "float8", "fp8-blocks", "mxfp4",
]  # fmt: skip


# One of each kind soon, the others in CI.
SOON = ("awq-32", "gptq-8-order", "float8", "mxfp4")


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.longer) for name in MODELS]
)
def test_the_model_multiplies_by_what_was_read(pairs: Callable[[str], Pair], name: str) -> None:
    """As stored, by the product that GPU and TPU have; and as the loader keeps it on this device."""
    pair = pairs(name)
    dense, loaded = load_model(pair.dense), load_model(pair.quantized)
    expected = dense_logits(dense, PROMPT)
    target = DeviceTarget.of(jax.devices()[0])
    read = {path: jax.tree.map(jax.numpy.asarray, weight) for path, weight in read_all(pair.quantized).items()}
    as_stored = {path: dataclasses.replace(weight, target=target) for path, weight in read.items()}
    # Activations in 8 bits err by half a step of 1/127, or of 1/16 for float8, at every product; else sums only.
    limit = {None: 1e-5, "int8": 0.03, "fp8": 0.12}[next(iter(read.values())).activations]
    assert relative(dense_logits(exchanged(loaded, as_stored), PROMPT), expected) < limit
    for path, weight in matrices(loaded).items():
        np.testing.assert_array_equal(
            np.asarray(dequantize(weight)),
            np.asarray(dequantize(jax.jit(for_target, static_argnums=1)(read[path], target))),
        )
    # Rounded once more to 8 bits, activations too, but for MXFP4: see `layout`.
    assert relative(dense_logits(loaded, PROMPT), expected) < (1e-5 if name == "mxfp4" else 0.06)


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_counts_what_the_model_takes(pairs: Callable[[str], Pair], name: str) -> None:
    folder = pairs(name).quantized
    model, config = load_model(folder), load_config(folder)
    quantization = read_quantization(folder, config)
    assert quantization is not None
    abstract = abstract_model("tiny", config, model.dtype, make_mesh(), None, quantization.stored)
    described = [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(abstract.params)]
    assert described == [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(model.params)]


@pytest.mark.parametrize("name", ["awq-32", "gptq-order", "int8", "mxfp4"])
def test_on_two_devices_it_is_the_same_model(pairs: Callable[[str], Pair], name: str) -> None:
    folder = pairs(name).quantized
    one, two = load_model(folder), load_model(folder, mesh=make_mesh(ParallelConfig(tensor=2)))
    for path, weight in matrices(two).items():
        np.testing.assert_array_equal(np.asarray(weight.values), np.asarray(matrices(one)[path].values), err_msg=path)
        assert not weight.values.sharding.is_fully_replicated
    logits = [dense_logits(model, PROMPT) for model in (one, two)]
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-2 * np.abs(logits[0]).max())


def test_with_copied_kv_heads_it_is_the_same_model(pairs: Callable[[str], Pair]) -> None:
    folder = pairs("gptq-order").quantized
    one, four = load_model(folder), load_model(folder, mesh=make_mesh(ParallelConfig(tensor=4)))
    assert matrices(four)["layers.0.attention.qkv.weight"].outputs == (4, 3, 32)
    logits = [dense_logits(model, PROMPT) for model in (one, four)]
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-2 * np.abs(logits[0]).max())


def test_progress_ends_at_the_total(pairs: Callable[[str], Pair]) -> None:
    calls: list[tuple[int, int]] = []
    load_model(pairs("awq-32").quantized, progress=lambda done, total, path: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == calls[0][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_the_tensors_of_experts_are_read_as_they_lie(tmp_path: Path) -> None:
    """(E, O, I / 2) and (E, O, I / 32), without a copy, named after the parameter."""
    random, module = np.random.default_rng(2), "model.layers.0.mlp.experts"
    each = [packers.mxfp4(random, 6, 96, "gate_up_proj") for _ in range(5)]
    stacked = {f"{module}.{suffix}": np.stack([one.tensors[suffix] for one in each]) for suffix in each[0].tensors}
    write_folder(tmp_path / "made", {}, stacked)
    format_ = parse(MXFP4)
    stored = format_.stored((module,))
    assert stored is not None
    layer = Layer((module,), 6, 96, stored, experts=5, parameter="gate_up_proj")
    with open_checkpoint(tmp_path / "made") as source:
        parts = format_.read(layer, Tensors(source, layer, format_.parts(layer)))
        assert (parts.values.shape, parts.scales.shape) == ((5, 6, 48), (5, 6, 3))
        assert not parts.values.flags.owndata
        weight = QTensor(jax.numpy.asarray(parts.values), jax.numpy.asarray(parts.scales), kind="mxfp4")
        weight.check()
        np.testing.assert_array_equal(np.asarray(dequantize(weight)), np.stack([one.value for one in each]))
        fewer = dataclasses.replace(layer, experts=4)
        words = r"gate_up_proj_blocks: expected shape \(4, 6, 3, 16\), found \(5, 6, 3, 16\)"
        with pytest.raises(CheckpointError, match=words):
            Tensors(source, fewer, format_.parts(fewer))
        other = dataclasses.replace(layer, parameter="down_proj")
        with pytest.raises(CheckpointError, match=r"down_proj_blocks is missing; .* for each of 5 experts"):
            Tensors(source, other, format_.parts(other))
        odd = dataclasses.replace(layer, inputs=80)
        with pytest.raises(ConfigError, match="has 80 inputs; MXFP4 needs a multiple of 32"):
            format_.parts(odd)
