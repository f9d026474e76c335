"""Write Q, K and V in the canonical `(…, S, H)`, from the tensor that they read, without their projection."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_attn.forms.dims import Dim, digit_dim, layout_dims, reshape_target, tensor_dims, write_reshape
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Operand
from onnx_attn.views.layout import Digit, Layout


def write_operands(
    writer: Writer, view: GraphView, site: AttentionSite, form: str, packed: Mapping[int, str]
) -> tuple[tuple[str, str, str], float]:
    """The names of Q, K and V and the scale that is left to apply; `packed` has those that are written already, by role.

    An operand that is read as it stands keeps its tensor. A K that is transposed, and a Q or K that carries part of the
    scale, are written anew from their source, so that the scale is applied once; where that cannot be said in ONNX (two
    dynamic sizes in one Reshape), the factor stays where it is. In the form `primitives`, where Q carries the scale
    afterwards, Q is always written anew: writing a site twice must say the same.
    """
    scale, names = site.scores_scale, []
    for role, (hint, operand) in enumerate((("query", site.query), ("key", site.key))):
        if role in packed:
            scale *= operand.trace.factor
            names.append(packed[role])
            continue
        stands = not operand.transposed and operand.trace.factor == 1.0
        if stands and not (hint == "query" and form == "primitives"):
            names.append(operand.tensor.name)
            continue
        name = _rewrite(writer, view, operand, hint)
        if name is not None:
            scale *= operand.trace.factor
        names.append(name or _as_it_stands(writer, view, operand, hint))
    return (names[0], names[1], packed.get(2, site.value.tensor.name)), scale


def _as_it_stands(writer: Writer, view: GraphView, operand: Operand, role: str) -> str:
    """The operand's own tensor; of a transposed K what was transposed, or the tensor transposed back."""
    if not operand.transposed:
        return operand.tensor.name
    rank = view.rank(operand.tensor)
    assert rank is not None
    perm = [*range(rank - 2), rank - 1, rank - 2]
    producer = view.producer(operand.tensor)
    if producer is not None and producer.op == "Transpose" and list(producer.attrs.get("perm") or ()) == perm:
        return producer.inputs[0].name
    return writer.add("Transpose", [operand.tensor.name], role, perm=perm)


def _rewrite(writer: Writer, view: GraphView, operand: Operand, role: str) -> str | None:
    """source → Reshape → Transpose → Reshape, as far as each is needed; None if this cannot be said."""
    layout, base = operand.layout, tensor_dims(view, operand.trace.source)
    if layout is None or base is None or not _reads_everything(layout, base):
        return None
    atoms = _atoms(layout, len(base))
    split: list[Dim] = [digit_dim(digit, base) for digit in atoms]
    order = [atoms.index(digit) for digit in layout.digits]
    moved = [split[position] for position in order]
    final = layout_dims(layout, base)
    first, last = reshape_target(base, split), reshape_target(moved, final)
    if first is None or last is None:
        return None
    tensor = operand.trace.source.name
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
    """True if the layout is a bijection: no offset, and every axis of the source is walked in full by its digits."""
    if any(layout.offsets):
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
