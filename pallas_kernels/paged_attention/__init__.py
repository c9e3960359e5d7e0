"""Ragged attention over paged K and V: the op, the batch it reads, and the layout of the pages."""

from pallas_kernels.paged_attention.api import RaggedBatch, paged_attention
from pallas_kernels.paged_attention.layout import KVLayout, kv_layout
from pallas_kernels.paged_attention.options import AttentionOptions

__all__ = ["AttentionOptions", "KVLayout", "RaggedBatch", "kv_layout", "paged_attention"]
