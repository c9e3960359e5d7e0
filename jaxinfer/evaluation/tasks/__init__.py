"""The kinds of task by name. Items are made from a seed; held-out ones never occur in the demo's training."""

from __future__ import annotations

from jaxinfer.evaluation.item import Kind
from jaxinfer.evaluation.tasks import arithmetic, calling, chinese, lists, measures, reading, records

KINDS: dict[str, Kind] = {
    kind.name: kind
    for module in (arithmetic, lists, measures, records, reading, chinese, calling)
    for kind in module.KINDS
}
