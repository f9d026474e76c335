"""Statistics as a dict: what `onnx-attn stats` writes, and the short form that stands in every report of `fuse`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from onnx_attn.counting.flow import Flow
from onnx_attn.counting.measure import (
    Flops,
    MemoryFound,
    SiteFlops,
    SitesFlops,
    UnknownSizeError,
    count_flops,
    measure_memory,
    scores_of,
)
from onnx_attn.counting.memory import interior, lives, tensor_bytes
from onnx_attn.counting.operator import REPEAT
from onnx_attn.counting.polynomial import total
from onnx_attn.counting.regions import SOFTMAXES
from onnx_attn.counting.roles import ROLES, counts
from onnx_attn.counting.symbolic import SymbolicShapes, numeric_shapes

Document = dict[str, Any]
PRIMITIVES = "primitives"
"""How a site is written that is no node of its own."""
GIVE_SHAPES = "the peak depends on the sizes of dimensions that vary; pass --shapes"


def nodes_document(flow: Flow) -> Document:
    """Nodes as they stand, by role, and by operator and role; and how many operations they are in primitives."""
    units = [unit for each in flow.every for unit in each.units]
    operators: dict[str, Counter[str]] = {}
    for unit in units:
        operators.setdefault(unit.kind, Counter())[unit.role] += 1
    inside = [op for each in flow.every for op in each.ops if op.kind != REPEAT]
    return {
        "total": len(units),
        "by_role": counts(units),
        "by_operator": {kind: dict(found) for kind, found in sorted(operators.items())},
        "in_primitives": {"total": len(inside), "by_role": counts(inside)},
    }


def exposed(flow: Flow) -> list[int]:
    """Of each site, how many nodes it is as it stands."""
    found = []
    for each in flow.every:
        of_sites = Counter(unit.site for unit in each.units if unit.role == "attention")
        found += [of_sites[number] for number in range(len(each.regions))]
    return found


def numeric_document(flow: Flow) -> Document:
    """FLOPs and memory at the sizes of the flow."""
    found, sites = _flops(flow, numeric_shapes(flow))
    unknown = flow.unknown
    memory = None if unknown else measure_memory(flow)
    return {
        "flops": found,
        "memory": _memory(flow, memory) if memory is not None else {"reason": f"the size of '{unknown}' is not known"},
        "per_site": _sites(flow, sites, memory),
    }


def symbolic_document(flow: Flow, shapes: SymbolicShapes) -> Document:
    """The same as polynomials; peaks are null, since which of several sums is the largest depends on the sizes."""
    found, sites = _flops(flow, shapes)
    plain = [name for each in flow.every for name in lives(each)]
    inside = [(each, region, interior(each, region), lives(each)) for each in flow.every for region in each.regions]
    gone = set().union(*(names for _, _, names, _ in inside))
    try:
        ways = {
            "materialised": _sum(shapes, plain),
            "fused": _sum(shapes, [name for name in plain if name not in gone]),
        }
        scores = [_sum(shapes, scores_of(*each)) for each in inside]
        reason = GIVE_SHAPES
    except UnknownSizeError as error:
        ways, scores, reason = dict.fromkeys(("materialised", "fused")), [None] * len(inside), str(error)
    memory = {
        way: {"peak": None, "peak_at": None, "attention_peak": None, "intermediates": said(found)}
        for way, found in ways.items()
    }
    every = said(total(scores)) if None not in scores else None
    return {
        "flops": found,
        "memory": {**memory, "scores": every, "inputs": _inputs(flow, shapes), "reason": reason},
        "per_site": [
            {**entry, "memory": {"peak": None, "intermediates": None, "scores": said(own)}}
            for entry, own in zip(_sites(flow, sites, None), scores, strict=True)
        ],
    }


def _sum(shapes: SymbolicShapes, names: list[str]) -> Any:
    return total([shapes.bytes(name) for name in names])


def said(value: Any) -> int | str | None:
    """A number, or a polynomial as text."""
    if value is None or isinstance(value, int):
        return value
    text = str(value)
    return int(text) if text.lstrip("-").isdecimal() else text


def _flops(flow: Flow, shapes: Any) -> tuple[Document, SitesFlops]:
    sites: SitesFlops = {}
    try:
        found = count_flops(flow, shapes, sites)
    except UnknownSizeError as error:
        nothing = dict.fromkeys(("products", "elementwise", "total", "from_weights"))
        return {**nothing, "by_role": dict.fromkeys(ROLES), "uncounted": {}, "reason": str(error)}, {}
    return {
        **_figures(found),
        "from_weights": said(found.from_weights),
        "by_role": {role: said(found.by_role.get(role, 0)) for role in ROLES},
        "uncounted": dict(found.uncounted),
        "reason": None,
    }, sites


def _figures(found: Flops | SiteFlops) -> Document:
    figures = {
        "products": found.products,
        "elementwise": found.elementwise,
        "total": found.products + found.elementwise,
    }
    return {name: said(value) for name, value in figures.items()}


def _memory(flow: Flow, found: MemoryFound) -> Document:
    ways = {
        way: {
            "peak": each.peak.bytes,
            "peak_at": each.peak.node,
            "attention_peak": each.attention,
            "intermediates": each.intermediates,
        }
        for way, each in (("materialised", found.materialised), ("fused", found.fused))
    }
    inputs = sum(tensor_bytes(flow.known.get(name)) for name in flow.given)
    return {**ways, "scores": sum(site.scores for site in found.every_site), "inputs": inputs, "reason": None}


def _inputs(flow: Flow, shapes: SymbolicShapes) -> int | str | None:
    try:
        return said(_sum(shapes, sorted(flow.given)))
    except UnknownSizeError:
        return None


def _sites(flow: Flow, flops: SitesFlops, memory: MemoryFound | None) -> list[Document]:
    found: list[Document] = []
    measured = iter(memory.every_site) if memory is not None else None
    numbers = exposed(flow)
    for each in flow.every:
        inside = Counter(op.site for op in each.ops if op.role == "attention")
        for number, region in enumerate(each.regions):
            own = flops.get((id(each), number))
            site = next(measured) if measured is not None else None
            kind = each.units[each.ops[region.softmax].unit].kind
            found.append(
                {
                    "id": f"site-{len(found)}",
                    "softmax": region.name,
                    "written_as": kind if kind not in SOFTMAXES else PRIMITIVES,
                    "operations": numbers[len(found)],
                    "operations_in_primitives": inside[number],
                    "flops": _figures(own or SiteFlops())
                    if flops
                    else dict.fromkeys(("products", "elementwise", "total")),
                    "memory": site and {"peak": site.peak, "intermediates": site.intermediates, "scores": site.scores},
                }
            )
    return found
