"""The settings of quantized checkpoints: every key is read, checked against what it may say, harmless, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jaxinfer.config import ConfigError, UnsupportedModelError

Names = tuple[str, ...]  # of one module: in the file, then what settings may call it besides

GROUPS = (32, 64, 128)
# How AutoRound (to 0.8) and GPTQModel (to 5) searched for the numbers and what the search cost, in any format that they
# write; the numbers themselves are read as the other keys say.
_SEARCH = """
    autoround_version provider amp iters lr minmax_lr lr_scheduler momentum sampler nsamples seqlen batch_size
    train_bs gradient_accumulate_steps enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input
    enable_torch_compile enable_alg_ext enable_deterministic_algorithms low_gpu_mem_usage low_cpu_mem_usage
    not_use_best_mse dynamic_max_gap scale_dtype to_quant_block_names supported_types device_map act_dynamic
    act_group_size act_sym act_data_type damp_percent damp_auto_increment true_sequential static_groups mse
    act_group_aware meta quantizer uri version gc_mode wait_for_submodule_finalizers vram_strategy
    dense_vram_strategy dense_vram_strategy_devices moe_vram_strategy moe_vram_strategy_devices hessian
    offload_to_disk offload_to_disk_path pack_impl compute_device_filter auto_forward_data_parallel parallel_packing
"""
SEARCH = frozenset(_SEARCH.split())
# What they say of activations and of single layers, with the values that say nothing.
SEARCH_ONLY: Mapping[str, tuple[Any, ...]] = {
    "act_bits": (16, 32),
    "data_type": ("int",),
    "extra_config": (),
    "layer_config": (),
    "quant_lm_head": (),
}
OFF: tuple[Any, ...] = (None, False, "", [], {})


def check_keys(
    settings: Mapping[str, Any],
    where: str,
    *,
    read: Collection[str],
    harmless: Collection[str] = (),
    only: Mapping[str, tuple[Any, ...]] | None = None,
) -> None:
    """Refuse what is not known. A key that is not known is passed over if it is off: null, false or empty.

    where: what the settings are called in messages. only: {key: values that it may have}, beside being off.
    """
    only = only or {}
    for key, value in settings.items():
        if any(value is off or (value == off and type(value) is type(off)) for off in OFF):
            continue
        if key in only:
            if value not in only[key]:
                allowed = [*only[key], None]
                raise UnsupportedModelError(f"{where}.{key} is {value!r:.200}; it must be one of {allowed}")
        elif key not in read and key not in harmless:
            raise UnsupportedModelError(
                f"{where} has {key} = {value!r:.200}, which is not known; a key that is not understood may change the "
                f"results. Known keys: {sorted({*read, *only, *harmless})}"
            )


def one_of(settings: Mapping[str, Any], where: str, key: str, allowed: Collection[Any], default: Any = None) -> Any:
    """The value of a key, one of `allowed` by value and type; null and absent are `default`."""
    value = settings.get(key)
    value = default if value is None else value
    if not any(value == one and type(value) is type(one) for one in allowed):
        raise UnsupportedModelError(f"{where}.{key} is {value!r:.200}; it must be one of {list(allowed)}")
    return value


def group_size(settings: Mapping[str, Any], where: str) -> int | None:
    """`group_size`: inputs that share a scale; -1 means all of them, here None."""
    size = one_of(settings, where, "group_size", (*GROUPS, -1))
    return None if size == -1 else size


def names(settings: Mapping[str, Any], where: str, key: str) -> tuple[str, ...]:
    """A list of names, empty where the key is null or absent."""
    listed = settings.get(key)
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"{where}.{key} is {listed!r:.200}; it must be a list of names")
    return tuple(listed)


def mentions(listed: Collection[str], module: Names) -> bool:
    """True if one of the names is one of the module's, or a run of its dotted parts, as "mlp" and "layers.0" are.

    By whole parts, because "mlp.gate" (a router) must not name "mlp.gate_proj". A part "*" stands for any one part.
    """
    own = [module.split(".") for module in module]

    def runs(name: str) -> bool:
        wanted = name.strip(".").split(".")
        return any(
            all(w in ("*", part) for w, part in zip(wanted, parts[at:], strict=False))
            for parts in own
            for at in range(len(parts) - len(wanted) + 1)
        )

    return any(map(runs, listed))
