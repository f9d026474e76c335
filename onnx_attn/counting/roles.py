"""What every operation of a flow is for: exactly one role each.

attention   between Q·Kᵀ and the result, both products included; the scale on Q or K, and a Kᵀ directly in front of the product
projection  products with weights whose result goes nowhere but into sites, and their biases; and of a site's result the
            product with weights that follows directly (with nothing but movement and casts between), and its bias
mask        what makes masks and biases of sites and nothing else, from weights, sizes or inputs
movement    Reshape, Transpose, Split, Slice, Concat, Gather by stored indices and their like, of what is computed as the
            model runs
other       everything else, such as norms, MLPs, arithmetic of sizes, constants
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx_attn.counting.flow import Flow, Op, Unit
from onnx_attn.counting.operator import REPEAT
from onnx_attn.counting.regions import Anchors, Region, regions_of

ROLES = ("attention", "projection", "mask", "movement", "other")
MOVEMENT = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Flatten Identity Split Slice Concat Gather Expand Tile DepthToSpace SpaceToDepth "
    "SplitToSequence SequenceAt ConcatFromSequence GatherND GatherElements ReverseSequence".split()
) | {REPEAT}
WEIGHTED = {"MatMul": 2, "Gemm": 2, "Einsum": 2, "Conv": 3, "MatMulInteger": 2, "ConvInteger": 3, "QLinearMatMul": 2}
"""Products with weights, and how many axes these have at least."""


def assign_roles(flow: Flow, anchors: Anchors) -> None:
    """Find the sites of a flow and of its bodies, and give each operation its role."""
    for each in flow.every:
        _assign(each, anchors)


def _assign(flow: Flow, anchors: Anchors) -> None:
    flow.regions = regions = regions_of(flow, anchors)
    operands = set[tuple[int, str]]()
    for site, region in enumerate(regions):
        operands |= region.operands
        for number in region.ops:
            flow.ops[number].role, flow.ops[number].site = "attention", site
    _upwards(flow, operands)
    for region in regions:
        _out_projection(flow, region)
    for op in flow.ops:
        op.role = op.role or ("movement" if _moves(flow, op) else "other")
    for site, region in enumerate(regions):
        for number in region.ops:
            flow.units[flow.ops[number].unit].site = site
    for op in flow.ops:
        unit = flow.units[op.unit]
        if not unit.role:
            unit.role, unit.site = op.role, op.site
        unit.site = unit.site if unit.role == "attention" else -1


def _upwards(flow: Flow, operands: set[tuple[int, str]]) -> None:
    """Masks, scales and projections, by who reads their results: from the last operation to the first."""
    feeds, helpers = set[int](), set[int]()
    for number in range(len(flow.ops) - 1, -1, -1):
        op = flow.ops[number]
        edges = [(reader, name) for name in op.outputs for reader in flow.readers.get(name, ())]
        if op.role or not edges or op.kind == "Constant":
            continue
        if flow.outputs.isdisjoint(op.outputs) and all(
            edge not in operands and flow.ops[edge[0]].role in ("attention", "mask") for edge in edges
        ):
            readers = [flow.ops[reader] for reader, _ in edges]
            scale = all(r.role == "attention" for r in readers) and (
                all(flow.elements(name) == 1 for name in op.outputs) or all(reader in helpers for reader, _ in edges)
            )
            op.role = "attention" if scale else "mask"
            if scale:
                helpers.add(number)
                op.site = readers[0].site if len({r.site for r in readers}) == 1 else -1
        elif op.varies:
            into = [edge in operands or edge[0] in feeds for edge in edges]
            if any(into) and all(i or _asks_size(flow, edge[0]) for i, edge in zip(into, edges, strict=True)):
                _feed(flow, number, feeds)


def _feed(flow: Flow, number: int, feeds: set[int]) -> None:
    """An operation whose result goes into sites alone: the end of the way up, if it is a projection."""
    op = flow.ops[number]
    if not is_weighted(flow, op):
        feeds.add(number)
        return
    op.role = "projection"
    _add_bias(flow, op)


def _asks_size(flow: Flow, reader: int) -> bool:
    return flow.ops[reader].kind in ("Shape", "Size") or not flow.ops[reader].varies


def is_weighted(flow: Flow, op: Op) -> bool:
    """Whether an operation is a product of something with weights."""
    least = WEIGHTED.get(op.kind)
    if least is None or len(op.inputs) < 2:
        return False
    pair = (op.inputs[0], op.inputs[3]) if op.kind == "QLinearMatMul" else op.inputs[:2]
    weights = [name for name in pair if name in flow.free]
    return len(weights) == 1 and len(flow.shape(weights[0]) or ()) >= least


def _add_bias(flow: Flow, product: Op) -> None:
    readers = flow.readers.get(product.outputs[0], [])
    if len(readers) == 1:
        op = flow.ops[readers[0]]
        if op.kind == "Add" and not op.role and not flow.free.isdisjoint(op.inputs):
            op.role = "projection"


def _out_projection(flow: Flow, region: Region) -> None:
    value = flow.ops[region.end].outputs[0] if region.end >= 0 else ""
    while len(readers := flow.readers.get(value, [])) == 1:
        op = flow.ops[readers[0]]
        if op.role:
            return
        if is_weighted(flow, op):
            op.role = "projection"
            _add_bias(flow, op)
            return
        if op.kind not in MOVEMENT and op.kind != "Cast":
            return
        value = op.outputs[0]


def _moves(flow: Flow, op: Op) -> bool:
    if not op.varies or not op.inputs:
        return False
    if op.kind in ("Gather", "GatherND", "GatherElements"):
        return op.inputs[1] in flow.free and op.inputs[0] not in flow.free
    return op.kind in MOVEMENT or (op.kind == "Einsum" and len(op.inputs) == 1)


def counts(counted: Iterable[Unit | Op]) -> dict[str, int]:
    """How many have each role."""
    found = dict.fromkeys(ROLES, 0)
    for each in counted:
        found[each.role] += 1
    return found
