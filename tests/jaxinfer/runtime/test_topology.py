"""Devices that are not here, and reading a compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxinfer.config import ConfigError
from jaxinfer.runtime.topology import collectives, kernels, report, sent_bytes, topology_mesh

PROGRAM = """
  %all-reduce.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=1
  %ag = (f32[8,16]{1,0}, f32[8,64]{1,0}) all-gather-start(%y), dimensions={1}
  %done = f32[8,64]{1,0} all-gather-done(%ag)
  %pair = (s8[4], pred[2,3]) all-reduce(%a, %b), to_apply=%add
  %no = f32[100]{0} add(%all-reduce.1, %c)
"""


def test_collectives_are_counted_with_the_bytes_of_their_results() -> None:
    assert collectives(PROGRAM) == {"all-reduce": (2, 64 * 128 * 2 + 4 + 6), "all-gather": (1, 8 * 64 * 4)}
    assert collectives("") == {}


def test_what_a_ring_sends() -> None:
    found = {"all-reduce": (2, 800), "all-gather": (1, 400), "reduce-scatter": (1, 100), "collective-permute": (1, 7)}
    assert sent_bytes(found, 4) == 800 * 2 * 3 // 4 + 400 * 3 // 4 + 100 * 3 + 7
    assert sent_bytes({}, 4) == 0


def test_kernels_are_listed_with_the_chip_memory_that_they_take() -> None:
    call = '= (f32[8], s32[1]) custom-call(%q), custom_call_target="tpu_custom_call", backend_config='
    space = '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"SIZE"}]'
    memory = f'{{"custom_call_config":{{"body":"x"}},{space}}}'
    lines = (("attend.1", "4096"), ("attend.2", "8192"), ("write", "512"))
    text = "\n".join(f"  %{name} {call}{memory.replace('SIZE', size)}" for name, size in lines)
    assert kernels(text) == {"attend": 8192, "write": 512}
    assert kernels(PROGRAM) == {}


def test_a_program_on_this_cpu_is_reported() -> None:
    def double(x: jax.Array, pool: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x @ x, pool.at[0].set(1.0)

    x, pool = jax.ShapeDtypeStruct((32, 32), jnp.float32), jax.ShapeDtypeStruct((1000,), jnp.float32)
    found = report(jax.jit(double, donate_argnums=(1,)).lower(x, pool).compile())
    assert (found.arguments, found.donated) == (32 * 32 * 4 + 4000, 4000)
    assert found.peak >= found.arguments + 32 * 32 * 4
    assert found.collectives == {}


@pytest.mark.parametrize("name", ["", "v5e", "v5litepod-4", "h100:2", "hopper:x", "v5e:4"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"topology is .*; expected a TPU slice such as v5e:2x4"):
        topology_mesh(name)
