"""Sizes of the decoder's arrays on a tensor-parallel mesh: what is padded, what is repeated. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from jaxinfer.config import ConfigError, LayerConfig, ModelConfig, MoeConfig
from pallas_kernels.rounding import round_up


@dataclass(frozen=True)
class LayerShape:
    """Array sizes (in elements) of one layer on `tp` devices; 0 for what it does not have.

    K' = `kv_heads`: KV heads after repeating each one tp / num_kv_heads times (copies are neighbours), so that every
    device holds whole heads, and as many in all layers (`ModelConfig.kept_kv_heads`).
    G' = `group`: query heads per KV head of that count; query head n reads KV head n // G'.
    F' = `mlp`: the width of the MLP, or of each expert, rounded up to a multiple of tp; the padding is zeros. `shared`:
    the same of shared experts.
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
    """Array sizes of one model on `tp` devices. V' = `vocab`: rounded up to a multiple of tp; the padding is zeros."""

    tp: int
    vocab: int
    layers: tuple[LayerShape, ...]

    @classmethod
    def of(cls, config: ModelConfig, tp: int = 1) -> ModelShape:
        """The sizes for `tp` devices. Raises ConfigError, listing the valid degrees, if heads cannot be split so."""
        if not _splits(config, tp):
            heads = sorted({(mixer.num_heads, mixer.num_kv_heads) for mixer in config.attentions})
            described = " or ".join(f"{query} query heads and {kv} KV heads" for query, kv in heads)
            valid = valid_tp(config)
            if not valid:
                raise ConfigError(
                    f"layers have {described}; {config.kept_kv_heads}, the least number of KV heads that all layers "
                    "can keep, must divide the query heads of each"
                )
            raise ConfigError(f"tensor_parallel_size is {tp!r}; with {described} it must be one of {valid}")
        kept = max(config.kept_kv_heads, tp)
        layers = tuple(_layer_shape(layer, kept, tp) for layer in config.layers)
        return cls(tp, round_up(config.vocab_size, tp), layers)

    @classmethod
    def canonical(cls, config: ModelConfig) -> ModelShape:
        """The sizes as checkpoints have them, on one device and with every layer's own KV heads: nothing runs so in
        pages where layers have different numbers of them."""
        layers = tuple(_layer_shape(layer, None, 1) for layer in config.layers)
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


def _layer_shape(layer: LayerConfig, kept: int | None, tp: int) -> LayerShape:
    """kept: KV heads that are kept of a token; None: the layer's own."""
    mixer, part = layer.attention, layer.feed_forward
    mlp, shared = (part.expert, part.shared) if isinstance(part, MoeConfig) else (layer.mlp, None)
    widths = [0 if one is None else round_up(one.intermediate_size, tp) for one in (mlp, shared)]
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
