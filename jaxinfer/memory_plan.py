"""`jaxinfer plan`: what a model needs on a device, and what fits, without loading its weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.config import ConfigError, ModelConfig, MoeConfig, RuntimeConfig
from jaxinfer.models.decoder import abstract_decoder
from jaxinfer.models.model import Model
from jaxinfer.models.parameters import facts_of
from jaxinfer.models.shape import ModelShape
from jaxinfer.models.stored_matrix import StoredMatrix, check_stored
from jaxinfer.quantization import SCHEMES, placing_of, rounding_of
from jaxinfer.runtime.cpu_kernels import choose_form
from jaxinfer.runtime.engine_builder import make_layout, probe_step
from jaxinfer.runtime.kv_cache import Budget, Sizes, device_budget, free_bytes, gib, resolve_sizes
from jaxinfer.runtime.topology import sent_bytes
from jaxinfer.sharding import expert_size, local_bytes, model_size, named_sharding
from pallas_kernels.dispatch import DeviceTarget

TUNING = "XLA's trials of the largest product's forms, while it compiles"


@dataclass(frozen=True)
class PlanReport:
    """All byte counts are per device. `temporary_bytes`: the largest step's, from the compiled program itself, or what
    XLA takes while it compiles (`StepProbe.tuning`) where that is more."""

    model: str
    device: str
    parameters: int
    active_parameters: int  # see `count_parameters`
    weight_bytes: int
    slot_bytes: int
    temporary_bytes: int
    pool_bytes: int
    kv_bytes_per_token: int
    sizes: Sizes
    bucket: str
    tuning_bytes: int = 0  # of the temporaries, what XLA takes while it compiles
    form: str = ""  # what products are computed with on a CPU, and why
    collectives: str = ""  # what the devices exchange in the largest step
    memory_bytes: int | None = None  # that are free; None where the device does not say

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.slot_bytes + self.temporary_bytes + self.pool_bytes

    @property
    def full_length_requests(self) -> int:
        """Requests of the longest kind that fit at once. Each holds whole pages, which it shares with nobody; the last
        token's KV is never needed (see scheduling/checks.py)."""
        sizes = self.sizes
        pages = max(1, -(-(sizes.max_model_len - 1) // sizes.page_size))
        return min(sizes.max_num_seqs, sizes.shape.fitting(sizes.num_pages - 1, pages))

    @property
    def _most(self) -> str:
        """What takes most temporaries."""
        return f"the largest step, {self.bucket}" if self.temporary_bytes > self.tuning_bytes else TUNING

    def rows(self) -> list[tuple[str, str]]:
        """The report as (label, value), in reading order."""
        sizes = self.sizes
        tokens = (sizes.num_pages - 1) // sizes.cache_groups.num_tables * sizes.page_size
        per_token = f"{self.kv_bytes_per_token:,} bytes"
        if sizes.shape.windows:
            kept = self.kv_bytes_per_token * sizes.shape.whole // sizes.cache_groups.num_tables
            per_token += f", {kept:,} of them beyond all windows"
        of = "" if sizes.cache_groups.num_tables == 1 else f" tokens in {sizes.cache_groups.depth} layers"
        return [
            ("model", f"{self.model}, {self.parameters / 1e6:,.1f} M parameters"),
            *self._active(),
            ("device", self.device),
            ("weights", gib(self.weight_bytes)),
            ("slot state", f"{gib(self.slot_bytes)} for {sizes.max_num_seqs} sequences"),
            ("temporaries", f"{gib(self.temporary_bytes)} in {self._most}"),
            ("KV per token", per_token),
            (
                "KV pool",
                f"{gib(self.pool_bytes)}: {sizes.num_pages - 1:,} pages of {sizes.page_size}{of} = {tokens:,} tokens",
            ),
            ("longest request", f"{sizes.max_model_len:,} tokens"),
            ("full-length requests at once", f"{self.full_length_requests:,}"),
            ("total", gib(self.total_bytes) + ("" if self.memory_bytes is None else f" of {gib(self.memory_bytes)}")),
            *([("collectives", self.collectives)] if self.collectives else []),
            *([("products", self.form)] if self.form else []),
        ]

    def _active(self) -> list[tuple[str, str]]:
        if self.active_parameters == self.parameters:
            return []
        share = self.active_parameters / self.parameters
        return [("active parameters", f"{self.active_parameters / 1e6:,.1f} M of a token, {share:.1%}")]

    def to_dict(self) -> dict[str, Any]:
        """The report's numbers, for JSON."""
        sizes, plain = self.sizes, dataclasses.asdict(dataclasses.replace(self, sizes=None))  # type: ignore[arg-type]
        del plain["sizes"]
        names = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "page_size", "num_pages", "notes")
        chosen = {name: getattr(sizes, name) for name in names}
        return {**plain, **chosen, "full_length_requests": self.full_length_requests}


def count_parameters(config: ModelConfig, shape: ModelShape | None = None) -> tuple[int, int]:
    """All parameters of a model, and the active ones: those that one token meets, of experts only the chosen ones.

    The vocabulary's matrices count whole in both, as in published figures. shape: None means one device.
    """
    _, state = abstract_decoder(config, shape or ModelShape.of(config, 1), jax.numpy.dtype("bfloat16"))
    total = active = 0
    for path, leaf in nnx.to_flat_state(state):
        size = math.prod(leaf.get_value().shape)
        total += size
        if "experts" in facts_of(leaf).axes:
            moe = config.layers[int(str(path[1]))].feed_forward
            assert isinstance(moe, MoeConfig)
            size = size // moe.num_experts * moe.router.experts_per_token
        active += size
    return total, active


def abstract_model(
    name: str,
    config: ModelConfig,
    dtype: str,
    mesh: Mesh,
    quantization: str | None = None,
    stored: Mapping[str, StoredMatrix] | None = None,
) -> Model:
    """The model as shapes with shardings, no arrays. stored: {path: matrices that the checkpoint has quantized}."""
    shape = ModelShape.of(config, model_size(mesh), expert_size(mesh))
    stored = stored or {}
    check_stored(stored, quantization, config, shape)
    graphdef, state = abstract_decoder(config, shape, jax.numpy.dtype(dtype))

    def struct(path: tuple[Any, ...], variable: Any) -> Any:
        value, facts = variable.get_value(), facts_of(variable)
        wide = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=named_sharding(mesh, facts.axes))
        dotted = ".".join(map(str, path))
        if dotted in stored:
            return placing_of(dotted, value.shape, facts, stored[dotted], mesh).abstract()
        if quantization is None:
            return wide
        rounding = rounding_of(dotted, wide, facts, SCHEMES[quantization], mesh)
        return wide if rounding is None else rounding.apply(wide)

    flat = [(path, leaf.replace(struct(path, leaf))) for path, leaf in nnx.to_flat_state(state)]
    return Model(name, config, shape, dtype, graphdef, nnx.to_pure_dict(nnx.from_flat_state(flat)))


def make_plan(
    name: str,
    config: ModelConfig,
    runtime: RuntimeConfig,
    mesh: Mesh,
    stored: Mapping[str, StoredMatrix] | None = None,
    *,
    memory: int | None = None,
) -> PlanReport:
    """Plans a model on a mesh; `stored` as in `abstract_model`.

    memory: bytes of a device that are free, instead of asking it: it need not be here.

    Raises ConfigError, with the arithmetic, for what cannot fit.
    """
    device = mesh.devices.flat[0]
    dtype = runtime.weights_dtype(config.dtype)
    model = abstract_model(name, config, dtype, mesh, runtime.quantization, stored)
    layout = make_layout(model, DeviceTarget.of(device), runtime)
    weights = sum(map(local_bytes, jax.tree.leaves(model.params)))
    if runtime.num_pages is None:  # what cannot fit is not compiled
        _check_fits(device_budget(device, runtime, temporaries=0, weights_to_come=weights, memory=memory), weights)
    probe = probe_step(model, mesh, runtime, layout)
    budget = None
    if runtime.num_pages is None:
        budget = device_budget(device, runtime, temporaries=probe.beside, weights_to_come=weights, memory=memory)
        _check_fits(budget, weights)
    sizes = resolve_sizes(config, runtime, layout, budget, device.platform)
    parameters, active = count_parameters(config, model.shape)
    plan = PlanReport(
        model=name,
        device=f"{mesh.size} x {device.device_kind}",
        parameters=parameters,
        active_parameters=active,
        weight_bytes=weights,
        slot_bytes=probe.slot_bytes,
        temporary_bytes=max(probe.temporaries, probe.tuning),
        pool_bytes=sizes.pool_bytes // model_size(mesh),
        kv_bytes_per_token=sizes.kv_bytes_per_token // model_size(mesh),
        sizes=sizes,
        bucket=probe.bucket,
        tuning_bytes=probe.tuning,
        form=choose_form(model, mesh, runtime).why if device.platform == "cpu" else "",
        collectives=_exchanged(probe.collectives, mesh.size),
        memory_bytes=_free(device, mesh) if memory is None else memory,
    )
    _check_total(plan)
    return plan


def _exchanged(found: Mapping[str, tuple[int, int]], devices: int) -> str:
    if not found:
        return ""
    kinds = ", ".join(f"{count} {kind} ({gib(size)})" for kind, (count, size) in sorted(found.items()))
    return f"{kinds} in the largest step, in which each device sends {gib(sent_bytes(found, devices))}"


def _check_fits(budget: Budget, weights: int) -> None:
    if budget.num_bytes > 0:
        return
    missing = f"{gib(-budget.num_bytes)} ({-budget.num_bytes:,} bytes) are missing"
    raise ConfigError(f"the model does not fit: {missing}: {gib(weights)} of weights a device; {budget.reason}")


def _free(device: Any, mesh: Mesh) -> int | None:
    """Bytes that each device of the mesh may still take; the devices of a CPU share what it has."""
    free = free_bytes(device)
    return free if free is None or device.platform != "cpu" else free // mesh.size


def _check_total(plan: PlanReport) -> None:
    """The sum: a pool may have been sized by hand, and a CPU's leaves room for what steps need without asking them."""
    if plan.memory_bytes is None or plan.total_bytes <= plan.memory_bytes:
        return
    missing = plan.total_bytes - plan.memory_bytes
    parts = ", ".join(
        f"{gib(size)} {name}"
        for name, size in (
            ("of weights", plan.weight_bytes),
            ("of slot state", plan.slot_bytes),
            ("of temporaries", plan.temporary_bytes),
            (f"for {plan.sizes.num_pages} pages", plan.pool_bytes),
        )
    )
    raise ConfigError(
        f"the model does not fit: {gib(missing)} ({missing:,} bytes) are missing: of {gib(plan.memory_bytes)} it takes "
        f"{parts}"
    )
