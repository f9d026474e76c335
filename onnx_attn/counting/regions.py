"""Where attention lies in a flow: everything on a way from Q·Kᵀ to the result, and the scale and Kᵀ in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from onnx_attn.counting.flow import Flow, Op
from onnx_attn.counting.operator import REPEAT
from onnx_attn.site import AttentionSite, Candidate, Verdict
from onnx_attn.views.movement import REARRANGE

PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
SOFTMAXES = ("Softmax", "Div", "Mul", "Exp")
"""What a softmax ends with, in one node or in many."""
Anchors = Mapping[str, AttentionSite | None]
"""Attention by the softmax's label, and as it was read where it was."""
Edge = tuple[int, str]
"""An operation and a value that it reads."""


@dataclass
class Region:
    """One site in a flow. between: the operations from Q·Kᵀ to the result, in order. ops: these, scale and Kᵀ.

    operands: by which edges Q, K and V come in. product, end: the operations of Q·Kᵀ and of the result, −1 where they were not
    found. softmax: the operation that it was found by.
    """

    name: str
    softmax: int
    between: list[int]
    ops: set[int]
    operands: set[Edge]
    product: int = -1
    end: int = -1


def anchors_of(candidates: Iterable[Candidate]) -> dict[str, AttentionSite | None]:
    """What is attention among the candidates, refused or not, in bodies too."""
    found: dict[str, AttentionSite | None] = {}
    for candidate in candidates:
        if isinstance(candidate, Verdict):
            if candidate.attention:
                found[candidate.name] = candidate.recomputable
        else:
            found[candidate.name] = candidate if isinstance(candidate, AttentionSite) else None
    return found


def regions_of(flow: Flow, anchors: Anchors) -> list[Region]:
    """The sites of a flow in the order of their softmaxes; the inside of a node that is attention is one by itself."""
    found = []
    for number, op in enumerate(flow.ops):
        unit = flow.units[op.unit]
        if unit.role == "attention":
            if unit.kind == op.kind:  # Not said in primitives.
                operands = {(number, value) for value in op.inputs[:3]}
                found.append(Region(unit.label, number, [number], {number}, operands, end=number))
            elif op.kind == "Softmax":
                found.append(_region(flow, number, unit.label, None))
        elif op.kind in SOFTMAXES and op.label in anchors:
            found.append(_region(flow, number, op.label, anchors[op.label]))
    return found


def _region(flow: Flow, softmax: int, name: str, site: AttentionSite | None) -> Region:
    ends = _as_read(flow, softmax, site) if site is not None else None
    product, end = ends or (_product_above(flow, softmax), _product_below(flow, softmax))
    if product is None or end is None:
        return Region(name, softmax, [softmax], {softmax}, set())
    end = _cleared(flow, end)
    between = _between(flow, product, end)
    region = Region(name, softmax, between, {*between}, set(), product, end)
    inner = {value for number in between for value in flow.ops[number].outputs}
    for value in flow.ops[product].inputs[:2]:
        region.operands.add(_through_scale(flow, region, product, value))
    last = flow.makers[site.value_product.outputs[0].name] if ends and site and site.value_product else end
    last = last if flow.ops[last].kind in PRODUCTS else _last_product(flow, between)
    region.operands.update((last, value) for value in flow.ops[last].inputs[:2] if value not in inner)
    return region


def _as_read(flow: Flow, softmax: int, site: AttentionSite) -> tuple[int, int] | None:
    """Q·Kᵀ and the result, where the graph still has them under their names, and the softmax is the site's own."""
    if site.product is site.node or site.node.outputs[0].name not in flow.ops[softmax].outputs:
        return None
    product = flow.makers.get(site.product.outputs[0].name)
    end = flow.makers.get(site.output.name)
    return None if product is None or end is None or product >= end else (product, end)


def _last_product(flow: Flow, between: list[int]) -> int:
    return next((number for number in reversed(between) if flow.ops[number].kind in PRODUCTS), between[-1])


def _is_product(flow: Flow, op: Op) -> bool:
    """Of two values that are computed when the model runs."""
    return op.kind in PRODUCTS and len(op.inputs) > 1 and flow.free.isdisjoint(op.inputs[:2])


def _product_above(flow: Flow, softmax: int) -> int | None:
    """The nearest one: what it multiplies comes in through masks, casts and movement."""

    def makers(op: Op) -> Iterator[int]:
        return (flow.makers[value] for value in op.inputs if value in flow.makers and value not in flow.free)

    return max(_products_near(flow, softmax, makers), default=None)


def _product_below(flow: Flow, softmax: int) -> int | None:
    def readers(op: Op) -> Iterator[int]:
        return (number for value in op.outputs for number in flow.readers.get(value, ()))

    return min(_products_near(flow, softmax, readers), default=None)


def _products_near(flow: Flow, softmax: int, beside: Callable[[Op], Iterator[int]]) -> list[int]:
    """The first products on every way from a softmax, not farther than FARTHEST operations."""
    queue, seen, found = [softmax], {softmax}, list[int]()
    while queue:
        for number in beside(flow.ops[queue.pop()]):
            if number in seen:
                continue
            seen.add(number)
            if _is_product(flow, flow.ops[number]):
                found.append(number)
            elif abs(number - softmax) < FARTHEST:
                queue.append(number)
    return found


def _cleared(flow: Flow, product: int) -> int:
    """Where rows that are masked throughout become 0 behind P·V, that choice is the result."""
    if flow.ops[product].kind not in PRODUCTS:
        return product
    readers = flow.busy_readers(flow.ops[product].outputs[0])
    if len(readers) != 1 or flow.ops[readers[0]].kind != "Where":
        return product
    return readers[0] if any(flow.elements(name) == 1 for name in flow.ops[readers[0]].inputs[1:]) else product


FARTHEST = 256
"""Operations between a softmax and its products."""


def _between(flow: Flow, first: int, last: int) -> list[int]:
    """All operations on a way from the first to the last."""
    reached, queue = {first}, [first]
    while queue:
        for value in flow.ops[queue.pop()].outputs:
            for number in flow.readers.get(value, ()):
                if number <= last and number not in reached:
                    reached.add(number)
                    queue.append(number)
    kept, queue = {last}, [last]
    while queue:
        for value in flow.ops[queue.pop()].inputs:
            number = flow.makers.get(value, -1)
            if number in reached and number not in kept:
                kept.add(number)
                queue.append(number)
    return sorted(kept | {first})


def _through_scale(flow: Flow, region: Region, reader: int, value: str) -> Edge:
    """Take the scale on an operand, and Kᵀ right before the product, into the region; the edge on which the operand enters."""
    edge, turned, moved = (reader, value), value != flow.ops[reader].inputs[1], False
    while (number := flow.makers.get(value)) is not None:
        op = flow.ops[number]
        source = _scaled(flow, op)
        if source is None and not turned and not moved and _swaps_last_two(op):
            source, turned = op.inputs[0], True
        if source is not None:
            region.ops.add(number)
            value = source
            edge = (number, value)
        elif op.kind in REARRANGE or op.kind == REPEAT:
            value, moved = op.inputs[0], True
        else:
            break
    return edge


def _scaled(flow: Flow, op: Op) -> str | None:
    """What an operation multiplies by one number, or divides."""
    if op.kind not in ("Mul", "Div") or len(op.inputs) != 2:
        return None
    left, right = op.inputs
    if flow.elements(right) == 1 and right in flow.free and left not in flow.free:
        return left
    if op.kind == "Mul" and flow.elements(left) == 1 and left in flow.free and right not in flow.free:
        return right
    return None


def _swaps_last_two(op: Op) -> bool:
    if op.kind != "Transpose":
        return False
    perm = next((list(each.ints) for each in op.node.attribute if each.name == "perm"), [1, 0])
    rank = len(perm)
    return rank > 1 and perm == [*range(rank - 2), rank - 1, rank - 2]
