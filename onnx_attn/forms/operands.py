"""Write Q, K and V in the canonical `(…, S, H)`, from the tensor that they read, without their projection."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import digit_dim, layout_dims, tensor_dims, write_reshape
from onnx_attn.forms.moves import written
from onnx_attn.forms.packing import ROLES
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Operand
from onnx_attn.views.arrange import Dim, reshape_target
from onnx_attn.views.layout import REPEAT, Digit, Layout
from onnx_attn.views.movement import layout_of, permutation


def write_operands(
    writer: Writer, view: GraphView, site: AttentionSite, form: str, packed: Mapping[int, str]
) -> tuple[tuple[str, str, str], float]:
    """The names of Q, K and V and the scale that is left to apply; `packed` has those that are written already, by role.

    An operand that is read as it stands keeps its tensor. One that the graph has in other axes, and a Q or K that carries part
    of the scale, are written anew from their source, so that the scale is applied once; where that cannot be said in ONNX (two
    dynamic sizes in one Reshape), the factor stays where it is. In the form `primitives`, where Q carries the scale
    afterwards, Q is always written anew: writing a site twice must say the same.
    """
    scale, names = site.scores_scale, []
    for role, (hint, operand) in enumerate(zip(ROLES, site.operands, strict=True)):
        if role in packed:
            scale *= operand.trace.factor
            names.append(packed[role])
            continue
        if form == "attention" and (own := _own_heads(view, operand)) is not None:
            name = _rewrite(writer, view, own, operand.whole.source, hint)
            if name is not None:
                scale *= operand.trace.factor
                names.append(name)
                continue
        scaled = operand.trace.factor != 1.0
        stands = operand.tensor is operand.read and (not scaled or hint == "value")
        if stands and not (hint == "query" and form == "primitives"):
            names.append(operand.tensor.name)
            continue
        # V's factor is no part of the scale.
        name = None if scaled and hint == "value" else _written_anew(writer, view, operand, hint)
        if name is not None:
            scale *= operand.trace.factor
        names.append(name or _as_it_stands(writer, view, operand, hint))
    return (names[0], names[1], names[2]), scale


def _as_it_stands(writer: Writer, view: GraphView, operand: Operand, role: str) -> str:
    """The operand from what the product reads; of a K that was transposed for it, what was transposed."""
    moves = [view.arranged[name] for name in _arranged(view, operand)]
    producer = view.producer(operand.read)
    if len(moves) == 1 and moves[0].op == "Transpose" and producer is not None:
        perm = permutation(producer)
        if perm is not None and [perm[axis] for axis in moves[0].attrs["perm"]] == sorted(perm):
            return producer.inputs[0].name
    return written(writer, view, operand.tensor, role)


def _arranged(view: GraphView, operand: Operand) -> list[str]:
    """The names of the tensors between what the product reads and the operand."""
    names: list[str] = []
    tensor = operand.tensor
    while tensor.name in view.arranged:
        names.insert(0, tensor.name)
        tensor = view.arranged[tensor.name].inputs[0]
    return names


def _own_heads(view: GraphView, operand: Operand) -> Layout | None:
    """The layout of K or V without the copies of its heads, which the operator makes itself; None if there are none, or V is
    scaled between."""
    shapes, factor = view.shapes(operand.whole.source), operand.whole.factor
    layout = layout_of(view, shapes, operand.whole.steps) if shapes is not None else None
    if layout is None or len(layout.axes) != 4 or not any(digit.axis == REPEAT for digit in layout.axes[1]):
        return None
    if factor != operand.trace.factor or factor != 1.0 or layout.axes[1][-1].axis != REPEAT:
        return None
    heads = tuple(digit for digit in layout.axes[1] if digit.axis != REPEAT)
    return Layout((layout.axes[0], heads, *layout.axes[2:]), layout.offsets)


def _written_anew(writer: Writer, view: GraphView, operand: Operand, role: str) -> str | None:
    return _rewrite(writer, view, operand.layout, operand.trace.source, role) if operand.layout is not None else None


def _rewrite(writer: Writer, view: GraphView, layout: Layout, source: gs.Tensor, role: str) -> str | None:
    """source → Reshape → Transpose → Reshape, as far as each is needed; None if this cannot be said."""
    base = tensor_dims(view, source)
    if base is None or not _reads_everything(layout, base):
        return None
    atoms = _atoms(layout, len(base))
    split: list[Dim] = [digit_dim(digit, base) for digit in atoms]
    order = [atoms.index(digit) for digit in layout.digits]
    moved = [split[position] for position in order]
    final = layout_dims(layout, base)
    first, last = reshape_target(base, split), reshape_target(moved, final)
    if first is None or last is None:
        return None
    tensor = source.name
    if split != base:
        tensor = write_reshape(writer, tensor, first, f"{role}_split")
    if order != sorted(order):
        tensor = writer.add("Transpose", [tensor], role, perm=order)
    return write_reshape(writer, tensor, last, f"{role}_merged") if moved != final else tensor


def _atoms(layout: Layout, rank: int) -> list[Digit]:
    """The digits in the order in which they lie in the source."""
    return [
        digit
        for axis in range(rank)
        for digit in sorted((d for d in layout.digits if d.axis == axis), key=lambda d: -d.step)
    ]


def _reads_everything(layout: Layout, base: list[Dim]) -> bool:
    """True if the layout is a bijection: no offset, and every axis of the source is walked in full by its digits, once."""
    if any(layout.offsets) or any(digit.axis == REPEAT for digit in layout.digits):
        return False
    for axis, dim in enumerate(base):
        digits = sorted((d for d in layout.digits if d.axis == axis), key=lambda d: d.step)
        if not digits:
            if dim != 1:
                return False
            continue
        if digits[0].size is None:
            if len(digits) != 1:
                return False
            continue
        step = 1
        for digit in digits:
            if digit.step != step or digit.size is None:
                return False
            step *= digit.size
        if dim != step:
            return False
    return True
