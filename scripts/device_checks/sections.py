"""The list of sections, in the order in which they run. Standard library only."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

GROUPS = ("ceilings", "tests", "attention", "products", "experts", "engine", "quantized")


@dataclasses.dataclass(frozen=True)
class Section:
    """One process, or several if one dies: then the next goes on behind the case that killed it.

    Attributes:
        name: what the results call it.
        group: what `--only` selects it by.
        module: its `cases(settings, **options)` yields the cases.
        seconds: limit of the whole section.
        case_seconds: limit of a case, compilation included.
        platforms: where it makes sense.
        framework: "jax" or "torch", for the check that the device still answers after a failure.
        needs: packages without which it is left out.
        options: for `cases`.
    """

    name: str
    group: str
    module: str
    seconds: float
    case_seconds: float
    platforms: tuple[str, ...] = ("gpu", "tpu")
    framework: str = "jax"
    needs: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def longer(self, times: float) -> Section:
        return dataclasses.replace(self, seconds=self.seconds * times, case_seconds=self.case_seconds * times)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Section:
        fields: dict[str, Any] = json.loads(text)
        for name, value in fields.items():
            if isinstance(value, list):
                fields[name] = tuple(value)
        return cls(**fields)


def _attention(backend: str, seconds: float, *platforms: str) -> Section:
    module = "device_checks.attention_ours"
    return Section(f"attention/{backend}", "attention", module, seconds, 40, platforms, options={"backend": backend})


def _peer(name: str, module: str, seconds: float, framework: str) -> Section:
    needs = ("torch", "triton") if name == "torch_flex" else (framework,)
    module = f"device_checks.{module}"
    return Section(f"attention/{name}", "attention", module, seconds, 45, ("gpu",), framework, needs, {"peer": name})


def _product(backend: str, seconds: float, *platforms: str) -> Section:
    module = "device_checks.product_ours"
    return Section(f"products/{backend}", "products", module, seconds, 40, platforms, options={"backend": backend})


def _experts(name: str, seconds: float, *platforms: str, needs: tuple[str, ...] = (), ours: bool = False) -> Section:
    options = {"backend" if ours else "peer": name}
    module = "device_checks.expert_products"
    return Section(f"experts/{name}", "experts", module, seconds, 40, platforms, needs=needs, options=options)


def _quantized(scheme: str) -> Section:
    module = "device_checks.engine_quantized"
    return Section(f"quantized/{scheme}", "quantized", module, 120, 100, options={"scheme": scheme})


PROBE = Section("probe", "probe", "device_checks.probe", 60, 50)
SECTIONS = (
    Section("ceilings/jax", "ceilings", "device_checks.ceilings_jax", 45, 30),
    Section("ceilings/torch", "ceilings", "device_checks.ceilings_torch", 45, 30, ("gpu",), "torch", ("torch",)),
    Section("tests", "tests", "device_checks.kernel_tests", 130, 130, needs=("pytest",)),
    _attention("mosaic_gpu", 90, "gpu"),
    _attention("triton_gpu", 50, "gpu"),
    _attention("mosaic_tpu", 120, "tpu"),
    _attention("xla", 40, "gpu", "tpu"),
    _peer("pallas_gpu", "attention_jax_peers", 25, "jax"),
    _peer("jax_cudnn", "attention_jax_peers", 30, "jax"),
    _peer("jax_xla", "attention_jax_peers", 25, "jax"),
    _peer("torch_sdpa", "attention_torch", 30, "torch"),
    _peer("torch_flex", "attention_torch", 60, "torch"),
    _product("xla", 90, "gpu", "tpu"),
    _product("mosaic_gpu", 45, "gpu"),
    _product("mosaic_tpu", 45, "tpu"),
    _product("triton_gpu", 45, "gpu"),
    Section("products/pallas_mixed", "products", "device_checks.product_peers", 40, 30, ("gpu",)),
    Section("products/torch", "products", "device_checks.product_torch", 40, 30, ("gpu",), "torch", ("torch",)),
    _experts("mosaic_gpu", 40, "gpu", ours=True),
    _experts("mosaic_tpu", 40, "tpu", ours=True),
    _experts("xla", 40, "gpu", "tpu", ours=True),
    _experts("jax_ragged_dot", 40, "gpu", "tpu"),
    _experts("pallas_megablox", 30, "tpu"),
    _experts("tokamax", 40, "gpu", "tpu", needs=("tokamax",)),
    Section("engine", "engine", "device_checks.engine", 260, 180),
    Section(
        "engine/transformers",
        "engine",
        "device_checks.engine_peer",
        150,
        80,
        ("gpu",),
        "torch",
        ("torch", "transformers"),
    ),
    *(_quantized(scheme) for scheme in ("int8", "int4", "fp8")),
)
# What the engine is left with whatever the sections before it need: the last of them are peers. Most of it compiles.
ENGINE_SECONDS = 220
