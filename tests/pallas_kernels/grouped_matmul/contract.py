"""What every backend of the grouped product must do. A backend's test subclasses `GroupedMatmulContract`."""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.grouped_matmul.api import OP, case_of
from pallas_kernels.grouped_matmul.reference import grouped_matmul as reference
from pallas_kernels.qtensor import QTensor, quantize
from pallas_kernels.quantized_matmul.layout import for_target

TOLERANCE = {np.dtype(jnp.float32): 1e-5, np.dtype(jnp.bfloat16): 1e-2}  # of the largest output


@dataclass(frozen=True)
class Grouped:
    """A case: rows of each expert, padding rows behind them, and the experts."""

    sizes: tuple[int, ...] = (3, 0, 9, 1)
    padding: int = 3
    outputs: tuple[int, ...] = (2, 24)
    inputs: int = 96
    dtype: jax.typing.DTypeLike = jnp.float32
    kind: str | None = None
    group: int | None = None
    activations: str | None = None

    def arrays(self, target: DeviceTarget) -> tuple[jax.Array, jax.Array | QTensor, jax.Array]:
        """x, weight and group sizes. The weight as the target keeps it."""
        rng = np.random.default_rng(self.inputs + sum(self.sizes))
        x = jnp.asarray(rng.standard_normal((sum(self.sizes) + self.padding, self.inputs)), self.dtype)
        weight = jnp.asarray(rng.standard_normal((len(self.sizes), *self.outputs, self.inputs)), self.dtype)
        sizes = jnp.array(self.sizes, jnp.int32)
        if self.kind is None:
            return x, weight, sizes
        rounded = quantize(weight, self.kind, self.group, activations=self.activations)  # type: ignore[arg-type]
        return x, for_target(rounded, target, leading=1), sizes


CASES = (
    Grouped(),
    Grouped(dtype=jnp.bfloat16),
    Grouped((0, 0, 0, 0), padding=5),
    Grouped((1, 0, 0, 0), padding=0, outputs=(40,), inputs=64, dtype=jnp.bfloat16),
    Grouped((1,) * 16, padding=0, outputs=(64,), inputs=128, dtype=jnp.bfloat16),
    Grouped((0, 70, 0, 30), padding=28, outputs=(2, 64), inputs=128, dtype=jnp.bfloat16),
    Grouped((20, 5, 0, 11), outputs=(7,), inputs=50),
    Grouped(kind="int8"),
    Grouped(kind="int8", activations="int8", dtype=jnp.bfloat16),
    Grouped(kind="fp8", dtype=jnp.bfloat16),
    Grouped(kind="int4", group=32, dtype=jnp.bfloat16),
    Grouped(kind="mxfp4", group=32, dtype=jnp.bfloat16),
    Grouped((9, 0, 17), outputs=(2, 64), inputs=256, kind="int4", group=128, dtype=jnp.bfloat16),
    Grouped(kind="mxfp4", group=32, dtype=jnp.bfloat16),
)


class GroupedMatmulContract:
    """Compares a backend with the oracle. Override `target` and `backend`, and `call` if it needs more than that."""

    backend = ""
    cases = CASES

    @property
    def target(self) -> DeviceTarget:
        raise NotImplementedError

    def call(self, x: jax.Array, weight: jax.Array | QTensor, sizes: jax.Array) -> jax.Array:
        """Runs the op."""
        run = jax.jit(lambda *args: grouped_matmul(*args, target=self.target, backend=self.backend))
        return run(x, weight, sizes)

    def refusal(self, case: Grouped) -> str | None:
        """Why the backend does not serve a case; None where it does."""
        x, weight, _ = case.arrays(self.target)
        (backend,) = [one for one in OP.backends if one.name == self.backend]
        return backend.supports(self.target, case_of(x, weight))

    def served(self, case: Grouped) -> tuple[jax.Array, jax.Array | QTensor, jax.Array]:
        reason = self.refusal(case)
        if reason is not None:
            pytest.skip(reason)
        return case.arrays(self.target)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_is_the_oracles(self, case):
        x, weight, sizes = self.served(case)
        got = np.asarray(self.call(x, weight, sizes))
        assert got.dtype == np.float32
        want = reference(np.asarray(x), weight, np.asarray(sizes))
        chex.assert_equal_shape([got, want])
        atol = TOLERANCE[np.dtype(case.dtype)] * max(1e-9, float(np.abs(want).max()))
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)
        assert not np.any(got[sum(case.sizes) :]), "padding rows must be zero"

    @pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[8], CASES[11]], ids=str)
    def test_a_row_does_not_depend_on_its_company(self, case):
        """Alone, in another order, beside rows of other experts: the same bits."""
        x, weight, sizes = self.served(case)
        together = np.asarray(self.call(x, weight, sizes))
        first = 0
        for expert, size in enumerate(case.sizes):
            if not size:
                continue
            row = first + size - 1
            alone = jnp.zeros(len(case.sizes), jnp.int32).at[expert].set(1)
            moved = jnp.zeros_like(x).at[0].set(x[row])  # padding behind it
            np.testing.assert_array_equal(np.asarray(self.call(moved, weight, alone))[0], together[row])
            short = jnp.zeros_like(x[:8]).at[0].set(x[row])
            np.testing.assert_array_equal(np.asarray(self.call(short, weight, alone))[0], together[row])
            first += size

    def test_padding_rows_may_hold_anything(self):
        case = CASES[0] if self.refusal(CASES[0]) is None else CASES[5]
        x, weight, sizes = self.served(case)
        want = np.asarray(self.call(x, weight, sizes))
        got = np.asarray(self.call(x.at[sum(case.sizes) :].set(jnp.nan), weight, sizes))
        np.testing.assert_array_equal(got, want)
