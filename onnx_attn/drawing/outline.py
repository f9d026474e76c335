"""A model from its first node to its last, as runs of nodes of one role."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from onnx_attn.counting.flow import Flow

Run = dict[str, Any]
"""`role` of so many (`count`) nodes that follow each other; `site`: the name of the softmax, of nodes that are attention."""


def outline(flow: Flow) -> list[Run]:
    """The runs of the main graph, then those of bodies."""
    runs = []
    for each in flow.every:
        names = [region.name for region in each.regions]
        for (role, site), units in groupby(each.units, key=lambda unit: (unit.role, unit.site)):
            runs.append({"role": role, "count": sum(1 for _ in units), "site": names[site] if site >= 0 else None})
    return runs
