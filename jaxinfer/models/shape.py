"""Sizes of the decoder's arrays on a tensor-parallel mesh: what is padded, what is repeated. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from jaxinfer.config import AttentionConfig, ConfigError, LayerConfig, MlpConfig, ModelConfig
from pallas_kernels.rounding import round_up


@dataclass(frozen=True)
class LayerShape:
    """Array sizes (in elements) of one layer on `tp` devices.

    K' = `kv_heads`: KV heads after repeating each one tp / num_kv_heads times (copies are neighbours), so that every
    device holds whole heads. G' = `group`: query heads per KV head of that count; query head n reads KV head n // G'.
    F' = `mlp`: the width of the MLP, or of each expert, rounded up to a multiple of tp; the padding is zeros. `shared`:
    the same of shared experts, 0 where there are none.
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
        for layer in config.layers:
            if not _splits(layer.mixer, tp):
                raise ConfigError(
                    f"tensor_parallel_size is {tp!r}; with {layer.mixer.num_heads} query heads and "
                    f"{layer.mixer.num_kv_heads} KV heads it must be one of {valid_tp(config)}"
                )
        return cls(tp, round_up(config.vocab_size, tp), tuple(_layer_shape(layer, tp) for layer in config.layers))

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


def _layer_shape(layer: LayerConfig, tp: int) -> LayerShape:
    kv_heads = max(layer.mixer.num_kv_heads, tp)
    group = layer.mixer.num_heads // kv_heads
    part = layer.feed_forward
    if isinstance(part, MlpConfig):
        return LayerShape(kv_heads, group, round_up(part.intermediate_size, tp))
    shared = 0 if part.shared is None else round_up(part.shared.intermediate_size, tp)
    return LayerShape(kv_heads, group, round_up(part.expert.intermediate_size, tp), shared)


def _splits(mixer: AttentionConfig, tp: int) -> bool:
    if not isinstance(tp, int) or isinstance(tp, bool) or tp < 1 or mixer.num_heads % tp:
        return False
    return mixer.num_kv_heads % tp == 0 or tp % mixer.num_kv_heads == 0
