"""Sizes of the decoder's arrays on several devices: what is padded, what is repeated. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from jaxinfer.config import ConfigError, LayerConfig, ModelConfig, MoeConfig, ParallelConfig
from pallas_kernels.rounding import round_up


@dataclass(frozen=True)
class LayerShape:
    """Array sizes (in elements) of one layer on `tp` devices; 0 for what it does not have.

    K' = `kv_heads`: KV heads after repeating each one tp / num_kv_heads times (copies are neighbours), so that every
    device holds whole heads, and as many in all layers (`ModelConfig.kept_kv_heads`).
    G' = `group`: query heads per KV head of that count; query head n reads KV head n // G'.
    F' = `mlp`: the width of the MLP, rounded up to a multiple of tp, or that of each expert, to one of tp / ep; the
    padding is zeros. `shared`: the width of shared experts, rounded like an MLP's.
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
        if not _splits(config, tp):
            heads = sorted({(mixer.num_heads, mixer.num_kv_heads) for mixer in config.attentions})
            described = " or ".join(f"{query} query heads and {kv} KV heads" for query, kv in heads)
            valid = valid_tp(config)
            if not valid:
                raise ConfigError(
                    f"layers have {described}; {config.kept_kv_heads}, the least number of KV heads that all layers "
                    "can keep, must divide the query heads of each"
                )
            raise ConfigError(f"{degrees(tp, ep)}; with {described} it must be one of {valid}")
        _check_experts(config, ep)
        kept = max(config.kept_kv_heads, tp)
        layers = tuple(_layer_shape(layer, kept, tp, tp // ep) for layer in config.layers)
        return cls(tp, round_up(config.vocab_size, tp), layers, ep)

    @classmethod
    def canonical(cls, config: ModelConfig) -> ModelShape:
        """The sizes as checkpoints have them, on one device and with every layer's own KV heads: nothing runs so in
        pages where layers have different numbers of them."""
        layers = tuple(_layer_shape(layer, None, 1, 1) for layer in config.layers)
        return cls(1, config.vocab_size, layers)

    @property
    def kv_heads(self) -> int:
        """K', which is the same in all layers that have attention."""
        return max(layer.kv_heads for layer in self.layers)


def valid_tp(config: ModelConfig, limit: int = 64) -> list[int]:
    """All tensor-parallel degrees up to `limit`: divisors of the query heads that divide the KV heads or that the KV
    heads divide (each device then holds a copy of one head), in every layer."""
    fewest = min(mixer.num_heads for mixer in config.attentions)
    return [tp for tp in range(1, min(limit, fewest) + 1) if _splits(config, tp)]


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


def _layer_shape(layer: LayerConfig, kept: int | None, tp: int, of_expert: int) -> LayerShape:
    """kept: KV heads that are kept of a token; None: the layer's own. of_expert: devices that share an expert."""
    mixer, part = layer.attention, layer.feed_forward
    split = [(part.expert, of_expert), (part.shared, tp)] if isinstance(part, MoeConfig) else [(layer.mlp, tp)]
    widths = [0 if one is None else round_up(one.intermediate_size, devices) for one, devices in split]
    if mixer is None:
        return LayerShape(0, 0, *widths)
    kv_heads = mixer.num_kv_heads if kept is None else kept
    return LayerShape(kv_heads, mixer.num_heads // kv_heads, *widths)


def _splits(config: ModelConfig, tp: int) -> bool:
    if not isinstance(tp, int) or isinstance(tp, bool) or tp < 1:
        return False
    kept = max(config.kept_kv_heads, tp)
    heads = {(mixer.num_heads, mixer.num_kv_heads) for mixer in config.attentions}
    return kept % tp == 0 and all(kept % kv == 0 and query % kept == 0 for query, kv in heads)
