"""Sizes of the decoder's arrays on a tensor-parallel mesh: what is padded, what is repeated. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from jaxinfer.config import ConfigError, ModelConfig
from pallas_kernels.rounding import round_up


@dataclass(frozen=True)
class ModelShape:
    """Array sizes (in elements) of one model on `tp` devices.

    K' = `kv_heads`: KV heads after repeating each one tp / num_kv_heads times (copies are neighbours), so that every
    device holds whole heads. G' = `group`: query heads per KV head of that count; query head n reads KV head n // G'.
    V' = `vocab` and F' = `mlp`: rounded up to multiples of tp; the padding is zeros.
    """

    tp: int
    kv_heads: int
    group: int
    vocab: int
    mlp: int

    @classmethod
    def of(cls, config: ModelConfig, tp: int = 1) -> ModelShape:
        """The sizes for `tp` devices. Raises ConfigError, listing the valid degrees, if heads cannot be split so."""
        if not _splits(config, tp):
            raise ConfigError(
                f"tensor_parallel_size is {tp!r}; with {config.num_heads} query heads and {config.num_kv_heads} KV "
                f"heads it must be one of {valid_tp(config)}"
            )
        kv_heads = max(config.num_kv_heads, tp)
        return cls(
            tp=tp,
            kv_heads=kv_heads,
            group=config.num_heads // kv_heads,
            vocab=round_up(config.vocab_size, tp),
            mlp=round_up(config.intermediate_size, tp),
        )

    @property
    def heads(self) -> int:
        """Query heads, K' * G'; padding never adds one."""
        return self.kv_heads * self.group


def valid_tp(config: ModelConfig, limit: int = 64) -> list[int]:
    """All tensor-parallel degrees up to `limit`: divisors of the query heads that divide the KV heads or that the KV
    heads divide (each device then holds a copy of one head)."""
    return [tp for tp in range(1, min(limit, config.num_heads) + 1) if _splits(config, tp)]


def _splits(config: ModelConfig, tp: int) -> bool:
    if not isinstance(tp, int) or isinstance(tp, bool) or tp < 1 or config.num_heads % tp:
        return False
    return config.num_kv_heads % tp == 0 or tp % config.num_kv_heads == 0
