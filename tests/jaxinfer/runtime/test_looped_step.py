"""On a CPU a step's program does not grow with the layers, and copies neither weights nor pages."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import pytest

from jaxinfer.config import RuntimeConfig
from jaxinfer.memory_plan import abstract_model
from jaxinfer.models.registry import model_config
from jaxinfer.runtime.engine_builder import make_layout, make_runner
from jaxinfer.runtime.kv_cache import resolve_sizes
from jaxinfer.runtime.runner import Runner
from jaxinfer.sharding import make_mesh
from pallas_kernels.dispatch import DeviceTarget

MATRICES = 4  # of a layer
NORMS = 2
WIDENS_NORMS = jax.__version_info__ < (0, 11)  # XLA widens each layer's before it stacks them
SHAPE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 128, "intermediate_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
# What only names a layer's weights, and its products in the branches that choose one.
OF_EACH_LAYER = {"parameter", "get-tuple-element", "tuple", "bitcast", "dot", "fusion"}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (?P<types>.*?) (?P<name>[\w-]+)\(", re.MULTILINE)


class Program(NamedTuple):
    instructions: Counter[str]
    moved: set[tuple[int, ...]]  # shapes of arrays that are copied, converted or transposed outside of fused loops
    temporaries: int  # bytes
    donated: int
    fresh: int  # bytes of outputs that are no donated argument


def runner(layers: int, settings: dict[str, Any]) -> Runner:
    config, mesh = model_config(SHAPE | {"num_hidden_layers": layers}), make_mesh()
    runtime = RuntimeConfig(
        page_size=16, max_num_seqs=8, max_num_batched_tokens=8, num_pages=100, max_model_len=128,
        compilation_cache_dir=None, **settings,
    )  # fmt: skip
    model = abstract_model("tiny", config, runtime.dtype, mesh, runtime.quantization)
    target = DeviceTarget.of(mesh.devices.flat[0])
    layout = make_layout(model, target, runtime)
    return make_runner(model, mesh, runtime, resolve_sizes(config, runtime, layout, None, "cpu"), layout)


def shapes_in(types: str) -> set[tuple[int, ...]]:
    return {tuple(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\[([\d,]*)\]", types)}


def compiled(layers: int, settings: dict[str, Any], num_pages: int = 100) -> Program:
    one = runner(layers, settings)
    program = one.lower_step(one.ladder[0], num_pages=num_pages).compile()
    found = [(match["name"], match["types"]) for match in INSTRUCTION.finditer(program.as_text())]
    memory = program.memory_analysis()
    return Program(
        Counter(name for name, _ in found),
        set().union(*(shapes_in(types) for name, types in found if name in ("copy", "convert", "transpose"))),
        memory.temp_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )


@pytest.mark.longer
@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "quantization": "int8"},
        {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    ],
    ids=["float32", "bfloat16", "w8a8", "kv-int8"],
)
def test_a_program_of_more_layers_has_the_same_instructions(settings: dict[str, Any]) -> None:
    few, many = compiled(8, settings), compiled(32, settings)
    # The scales of a quantized matrix are the other result of its branch.
    apart = OF_EACH_LAYER | ({"copy"} if "quantization" in settings else set())
    if WIDENS_NORMS:
        assert many.instructions["convert"] - few.instructions["convert"] <= NORMS * (32 - 8)
        apart |= {"convert"}
    changed = {
        name: (few.instructions[name], many.instructions[name])
        for name in (set(few.instructions) | set(many.instructions)) - apart
        if few.instructions[name] != many.instructions[name]
    }
    assert not changed
    for name in ("dot", "fusion", "copy"):
        assert many.instructions[name] - few.instructions[name] <= MATRICES * (32 - 8)
    pages = 100 * SHAPE["num_key_value_heads"] * 16 * 32  # bytes of a layer's keys in the narrowest type
    assert many.donated >= 32 * 2 * pages
    assert many.fresh < pages


@pytest.mark.longer
def test_neither_weights_nor_pages_are_copied() -> None:
    """Temporaries are those of one layer, whatever the layers and the pages."""
    settings = {"dtype": "bfloat16"}
    few, many, large = compiled(8, settings), compiled(32, settings), compiled(32, settings, num_pages=1000)
    norms = NORMS * (32 - 8) * 128 * (4 if WIDENS_NORMS else 2)  # stacked, in bytes
    assert abs(many.temporaries - few.temporaries) <= 2 * norms
    assert large.temporaries == many.temporaries
    assert many.moved  # small arrays
    weights = {(2, 4, 32, 128), (256, 128), (128, 2, 2, 32), (128, 128), (2, 256, 128), (512, 128), (128, 256)}
    assert not many.moved & {*weights, *(shape[::-1] for shape in weights), (32 * 100, 2, 16, 32)}
