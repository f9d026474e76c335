"""Rows that come out of windows only to go into the same windows again stay there: two blocks without a shift between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx

from onnx_attn.graph.edit import SiteEdit, Splice
from onnx_attn.row_order.partition import Partition


@dataclass(frozen=True)
class Trip:
    """A movement that was written: `source` into windows (`back` False), or out of them, as `output`. nodes: the values that its
    nodes make, `output` among them."""

    partition: Partition
    back: bool
    source: str
    output: str
    nodes: frozenset[str]


def without_round_trips(edits: Mapping[str, SiteEdit], trips: Iterable[Trip]) -> dict[str, SiteEdit]:
    """The edits, with what reads a map's rows in windows reading them where they lay in those windows before. The way back goes
    by itself where nobody else reads the map."""
    written = {name for edit in edits.values() for node in edit.nodes for name in node.output}
    made = [trip for trip in trips if trip.output in written]
    home = {trip.output: trip for trip in made if trip.back}
    same = {
        trip.output: home[trip.source].source for trip in made if not trip.back and _undoes(trip, home.get(trip.source))
    }
    gone = {name for trip in made if trip.output in same for name in trip.nodes}
    return {key: _renamed(edit, same, gone) for key, edit in edits.items()} if same else dict(edits)


def _undoes(trip: Trip, before: Trip | None) -> bool:
    """Not with padding: what came out of the windows left its rows behind, and zeros go in."""
    return before is not None and before.partition == trip.partition and not any(trip.partition.padding)


def _renamed(edit: SiteEdit, same: Mapping[str, str], gone: set[str]) -> SiteEdit:
    splices = []
    for splice in edit.splices:
        nodes = []
        for node in splice.nodes:
            if gone.issuperset(node.output):
                continue
            fresh = onnx.NodeProto()
            fresh.CopyFrom(node)
            fresh.input[:] = [same.get(name, name) for name in node.input]
            nodes.append(fresh)
        splices.append(Splice(splice.position, tuple(nodes), splice.outputs))
    return replace(edit, splices=tuple(splices))
