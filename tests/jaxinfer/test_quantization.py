"""Where the parts of a quantized weight go on a mesh, in the form that a TPU keeps; on virtual devices of the CPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from checkpoints.load import decoder_parameters
from jaxinfer import quantization
from jaxinfer.config import ConfigError, ParallelConfig
from jaxinfer.models.parameters import ParameterFacts
from jaxinfer.models.registry import model_config
from jaxinfer.models.shape import ModelShape
from jaxinfer.models.stored_matrix import StoredMatrix
from jaxinfer.quantization import SCHEMES, placing_of, rounding_of
from jaxinfer.sharding import TENSOR_AXIS, make_mesh
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import QTensor, dequantize
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product

TPU = DeviceTarget("tpu", "TPU v5 lite")
HEADS = ParameterFacts(("kv_heads", "q_group", "head", "embed"), inputs=1)
GATE_UP = ParameterFacts(("gate_up", "mlp", "embed"), inputs=1)
DOWN = ParameterFacts(("embed", "mlp"), inputs=1)


@pytest.fixture(autouse=True)
def _for_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Target:
        @staticmethod
        def of(device: Any) -> DeviceTarget:
            return TPU

    monkeypatch.setattr(quantization, "DeviceTarget", Target)


@pytest.mark.longer
@pytest.mark.parametrize(
    ("outputs", "facts", "values", "scales"),
    [
        ((4, 3, 8), HEADS, P(None, TENSOR_AXIS), P(None, TENSOR_AXIS)),
        ((2, 20), GATE_UP, P(None, None, TENSOR_AXIS), P(None, None, TENSOR_AXIS)),
        ((24,), DOWN, P(TENSOR_AXIS, None), P(TENSOR_AXIS, None)),
    ],
    ids=["heads", "gate_up", "down"],
)
def test_words_are_split_as_the_weight_is(
    outputs: tuple[int, ...], facts: ParameterFacts, values: P, scales: P
) -> None:
    mesh = make_mesh(ParallelConfig(tensor=4), "cpu")
    product = Product("int4", outputs=outputs, inputs=256, group=32, zeros=True, order=True)
    _, weight = cases.build(product, np.random.default_rng(0))
    placing = placing_of("a matrix", weight.shape, facts, StoredMatrix("int4", 32, zeros=True, order=True), mesh)
    placed = placing.apply(jax.tree.map(np.asarray, weight))
    abstract = placing.abstract()
    for part, like, spec in zip(
        jax.tree.leaves(placed), jax.tree.leaves(abstract), (values, scales, scales, P()), strict=True
    ):
        assert (part.shape, part.dtype) == (like.shape, like.dtype)
        assert part.sharding.is_equivalent_to(like.sharding, part.ndim)
        assert part.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), part.ndim)
    assert isinstance(placed, QTensor)
    packed_outputs = () if facts == GATE_UP else outputs[1:]
    assert (placed.target, placed.shape, placed.packed_outputs) == (TPU, weight.shape, packed_outputs)
    np.testing.assert_array_equal(np.asarray(dequantize(placed)), np.asarray(dequantize(weight)))


@pytest.mark.parametrize(("inputs", "lies_as_words"), [(256, True), (384, False)])
def test_a_share_that_is_no_block_of_words_stays_in_int4(inputs: int, lies_as_words: bool) -> None:
    """384 inputs are 96 for each of 4 devices."""
    mesh = make_mesh(ParallelConfig(tensor=4), "cpu")
    weight = jax.random.normal(jax.random.key(0), (24, inputs))
    rounding = rounding_of("layers.0.mlp.down.weight", weight, DOWN, SCHEMES["int4"], mesh)
    assert rounding is not None
    kept = rounding.apply(weight)
    assert (kept.packed_outputs is not None) == lies_as_words
    assert kept.values.dtype == (jnp.int32 if lies_as_words else jnp.int4)
    error = np.abs(np.asarray(dequantize(kept)) - np.asarray(weight)).max()
    assert error <= float(jnp.abs(weight).max()) / 13


@pytest.mark.parametrize(
    ("axes", "shape", "way_out"),
    [
        (("experts", "embed", "expert_mlp"), (4, 8, 192), "; --expert-parallel-size 2 with --tensor-parallel-size 2 "),
        (("experts", "embed", "expert_mlp"), (4, 8, 96), "; --expert-parallel-size 4 with --tensor-parallel-size 1 "),
        (("experts", "embed", "expert_mlp"), (5, 8, 96), ""),  # five experts cannot be dealt to four devices
        (("embed", "mlp"), (8, 192), "; at most 2 of the 4 devices can share its 192 inputs"),
        (("embed", "mlp"), (8, 40), ""),
    ],
)
def test_a_matrix_that_cannot_be_split_says_how_it_could_be(
    axes: tuple[str, ...], shape: tuple[int, ...], way_out: str
) -> None:
    """Rounded at load and stored by the checkpoint alike, in blocks of 32."""
    mesh = make_mesh(ParallelConfig(tensor=4), "cpu")
    facts = ParameterFacts(axes, inputs=1)
    with pytest.raises(ConfigError) as rounded:
        rounding_of("a matrix", jnp.zeros(shape), facts, SCHEMES["mxfp4"], mesh)
    assert f"32 must divide them for mxfp4{way_out}" in str(rounded.value)
    assert way_out or str(rounded.value).endswith("mxfp4")
    if shape[-1] % 32 == 0:
        with pytest.raises(ConfigError) as stored:
            placing_of("a matrix", shape, facts, StoredMatrix("mxfp4", 32), mesh)
        assert f"it must split them between groups{way_out}" in str(stored.value)


def test_seven_billion_parameters_in_int4_take_four_gigabytes() -> None:
    """Llama 2 7B as AWQ stores it: numbers of 4 bits with scales and zero points, and a dense vocabulary."""
    config = model_config(
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16", "vocab_size": 32000,
         "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    )  # fmt: skip
    mesh = make_mesh()
    stored = StoredMatrix("int4", 128, zeros=True)
    total = 0
    for path, parameter in decoder_parameters(config, ModelShape.of(config, 1), np.dtype(jnp.bfloat16))[1].items():
        if parameter.facts.inputs is None:
            total += 2 * int(np.prod(parameter.shape))
        else:
            total += placing_of(path, parameter.shape, parameter.facts, stored, mesh).as_stored.nbytes
    assert 3.5e9 < total < 4.05e9
