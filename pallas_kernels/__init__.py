"""Device ops, each a folder: api.py (contract), reference.py (oracle), and backends chosen by dispatch.py.

The ops are imported from their own folders, `from pallas_kernels.paged_attention import paged_attention`, as an op and
its folder share a name and this package would have to hide one of them.
"""

from pallas_kernels.dispatch import DeviceTarget, Unsupported

__all__ = ["DeviceTarget", "Unsupported"]
