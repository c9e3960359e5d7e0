"""Sizes of the decoder's arrays on several devices: what is padded, what is repeated. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from jaxinfer.config import (
    AttentionConfig,
    ConfigError,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    ParallelConfig,
)
from pallas_kernels.rounding import round_up


@dataclass(frozen=True)
class LayerShape:
    """Array sizes (in elements) of one layer on `tp` devices.

    K' = `kv_heads`: KV heads after repeating each one tp / num_kv_heads times (copies are neighbours), so that every
    device holds whole heads. G' = `group`: query heads per KV head of that count; query head n reads KV head n // G'.
    F' = `mlp`: the width of the MLP, rounded up to a multiple of tp, or that of each expert, to one of tp / ep; the
    padding is zeros. `shared`: the width of shared experts, rounded like an MLP's; 0 where there are none.
    """

    kv_heads: int
    group: int
    mlp: int
    shared: int = 0

    @property
    def heads(self) -> int:
        """Query heads, K' * G'; padding never adds one."""
        return self.kv_heads * self.group


@dataclass(frozen=True)
class ModelShape:
    """Array sizes of one model on `tp` devices, to which experts are dealt in `ep` parts: tp / ep devices share an
    expert's width. V' = `vocab`: rounded up to a multiple of tp; the padding is zeros."""

    tp: int
    vocab: int
    layers: tuple[LayerShape, ...]
    ep: int = 1

    @classmethod
    def of(cls, config: ModelConfig, tp: int = 1, ep: int = 1) -> ModelShape:
        """The sizes for `tp` devices, which `ep` divides.

        Raises ConfigError, listing the valid degrees, if heads or experts cannot be split so.
        """
        for layer in config.layers:
            if not _splits(layer.mixer, tp):
                raise ConfigError(
                    f"{degrees(tp, ep)}; with {layer.mixer.num_heads} query heads and "
                    f"{layer.mixer.num_kv_heads} KV heads it must be one of {valid_tp(config)}"
                )
        _check_experts(config, ep)
        layers = tuple(_layer_shape(layer, tp, ep) for layer in config.layers)
        return cls(tp, round_up(config.vocab_size, tp), layers, ep)

    @property
    def kv_heads(self) -> int:
        """K', which is the same in all layers."""
        return self.layers[0].kv_heads


def valid_tp(config: ModelConfig, limit: int = 64) -> list[int]:
    """All tensor-parallel degrees up to `limit`: divisors of the query heads that divide the KV heads or that the KV
    heads divide (each device then holds a copy of one head), in every layer."""
    mixers = {layer.mixer for layer in config.layers}
    fewest = min(mixer.num_heads for mixer in mixers)
    return [tp for tp in range(1, min(limit, fewest) + 1) if all(_splits(mixer, tp) for mixer in mixers)]


def valid_ep(config: ModelConfig) -> list[int]:
    """All numbers of parts that every layer's experts can be dealt in; 1 alone for a model without experts."""
    counts = [layer.feed_forward.num_experts for layer in config.layers if isinstance(layer.feed_forward, MoeConfig)]
    return [ep for ep in range(1, max(counts, default=1) + 1) if all(count % ep == 0 for count in counts)]


def degrees(tp: int, ep: int) -> str:
    """How `tp` devices in `ep` parts were asked for, to begin an error with."""
    return f"tensor_parallel_size is {tp!r}" if ep == 1 else ParallelConfig(tensor=tp // ep, expert=ep).said()


def _check_experts(config: ModelConfig, ep: int) -> None:
    valid = valid_ep(config)
    if ep in valid:
        return
    counts = {layer.feed_forward.num_experts for layer in config.layers if isinstance(layer.feed_forward, MoeConfig)}
    if not counts:
        raise ConfigError(f"expert_parallel_size is {ep}; the model has no experts, so that it must be 1")
    experts = " and ".join(map(str, sorted(counts)))
    raise ConfigError(f"expert_parallel_size is {ep}; with {experts} experts it must be one of {valid}")


def _layer_shape(layer: LayerConfig, tp: int, ep: int) -> LayerShape:
    kv_heads = max(layer.mixer.num_kv_heads, tp)
    group = layer.mixer.num_heads // kv_heads
    part = layer.feed_forward
    if isinstance(part, MlpConfig):
        return LayerShape(kv_heads, group, round_up(part.intermediate_size, tp))
    shared = 0 if part.shared is None else round_up(part.shared.intermediate_size, tp)
    return LayerShape(kv_heads, group, round_up(part.expert.intermediate_size, tp // ep), shared)


def _splits(mixer: AttentionConfig, tp: int) -> bool:
    if not isinstance(tp, int) or isinstance(tp, bool) or tp < 1 or mixer.num_heads % tp:
        return False
    return mixer.num_kv_heads % tp == 0 or tp % mixer.num_kv_heads == 0
