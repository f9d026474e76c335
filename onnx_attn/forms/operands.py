"""Write Q, K and V in the canonical `(…, S, H)`, from the tensor that they read, without their projection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import digit_dim, layout_dims, tensor_dims
from onnx_attn.forms.moves import written
from onnx_attn.forms.packing import ROLES, Packing
from onnx_attn.forms.turn import Turn, plan_turn, write_turn
from onnx_attn.forms.way import PLAIN
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.operands import head_copies
from onnx_attn.site import AttentionSite, Operand
from onnx_attn.views.arrange import Dim, unarranged
from onnx_attn.views.layout import REPEAT, Digit, Layout
from onnx_attn.views.movement import layout_of, permutation
from onnx_attn.views.trace import scalar_factor


def write_operands(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    form: str,
    packed: Mapping[int, str],
    shared: bool,
    split: bool = False,
) -> tuple[tuple[str, str, str], float]:
    """The names of Q, K and V and the scale that is left to apply; `packed` has those that are written already, by role. shared:
    K and V are given without the copies of their heads (`shares_heads`).

    An operand that is read as it stands keeps its tensor, or that in front of its last factors, so that the scale is applied
    once. One that the graph has in other axes, and a Q or K with factors farther up, are written anew from their source; where
    that cannot be said in ONNX (two dynamic sizes in one Reshape), those factors stay where they are. In the form `primitives`
    a K that carries half of the scale afterwards is always written anew: writing a site twice must say the same.
    """
    carry = ("key",) if form == "primitives" and split else ()
    scale, names = site.scores_scale, []
    ready = {**(_shared(writer, view, site, packed) if shared else {}), **packed}
    for role, (hint, operand) in enumerate(zip(ROLES, site.operands, strict=True)):
        if role in ready:
            scale *= operand.trace.factor
            names.append(ready[role])
            continue
        tensor, factor = operand.tensor, 1.0
        if hint != "value" and operand.tensor is operand.read:
            tensor, factor = _before_its_last_factors(view, operand)
        # V's factor is no part of the scale.
        stands = operand.tensor is operand.read and (hint == "value" or factor == operand.trace.factor)
        if stands and hint not in carry:
            names.append(written(writer, view, tensor, hint))
            scale *= factor
            continue
        scaled = _has_factors(view, operand)
        turned = not scaled and hint not in carry and _before_its_transpose(view, operand) is not None
        stays = (scaled and hint == "value") or turned
        name = None if stays else _written_anew(writer, view, operand, hint, form)
        if name is not None:
            scale *= operand.trace.factor
        elif factor != 1.0:
            name, scale = written(writer, view, tensor, hint), scale * factor
        names.append(name or _as_it_stands(writer, view, operand, hint))
    return (names[0], names[1], names[2]), scale


def _has_factors(view: GraphView, operand: Operand) -> bool:
    """Whether something multiplies it on the way, be it by 1."""
    return any(scalar_factor(view, step.node) is not None for step in operand.trace.steps)


def _as_it_stands(writer: Writer, view: GraphView, operand: Operand, role: str) -> str:
    """The operand from what the product reads; of a K that was transposed for it, what was transposed."""
    return _before_its_transpose(view, operand) or written(writer, view, operand.tensor, role)


def _before_its_last_factors(view: GraphView, operand: Operand) -> tuple[gs.Tensor, float]:
    """What stands in front of the factors that are applied last, and their product."""
    tensor, product = operand.read, 1.0
    while (node := view.producer(tensor)) is not None and (found := scalar_factor(view, node)) is not None:
        tensor, factor = found
        product *= factor
    return tensor, product


def _before_its_transpose(view: GraphView, operand: Operand) -> str | None:
    """The name of the operand itself, where the graph has it and transposes it for the product, as K mostly is."""
    _, moves = unarranged(view, operand.tensor)
    producer = view.producer(operand.read)
    if len(moves) == 1 and moves[0].op == "Transpose" and producer is not None:
        perm = permutation(producer)
        if perm is not None and [perm[axis] for axis in moves[0].attrs["perm"]] == sorted(perm):
            return producer.inputs[0].name
    return None


def shares_heads(view: GraphView, site: AttentionSite, packing: Packing | None) -> bool:
    """Whether K and V can both be given with the fewer heads that they have, which the Attention operator repeats itself."""
    members = packing.members if packing is not None else {}
    counts: set[int | None] = set()
    for role, operand in ((1, site.key), (2, site.value)):
        if role in members:
            counts.add(members[role][1].heads.count)
        elif (layout := _own_heads(view, operand)) is None:
            counts.add(view.static(operand.tensor, -3))
        elif _plan(view, layout, operand.whole.source) is None or (role == 2 and operand.whole.factor != 1.0):
            return False  # V's factor is no part of the scale, and would be lost.
        else:
            heads = view.static(operand.tensor, -3)
            counts.add(heads // head_copies(view, operand) if heads is not None else None)
    return len(counts) == 1 and None not in counts


def _shared(writer: Writer, view: GraphView, site: AttentionSite, packed: Collection[int]) -> dict[int, str]:
    """K and V, by role, without the copies of their heads."""
    found: dict[int, str] = {}
    for role in {1, 2}.difference(packed):
        layout = _own_heads(view, site.operands[role])
        name = _rewrite(writer, view, layout, site.operands[role].whole.source, ROLES[role]) if layout else None
        if name is not None:
            found[role] = name
    return found


def _own_heads(view: GraphView, operand: Operand) -> Layout | None:
    """The layout of K or V without the copies of its heads; None if there are none, or a factor or a quantisation step stands
    among them."""
    if operand.rounded:
        return None
    shapes = view.shapes(operand.whole.source)
    layout = layout_of(view, shapes, operand.whole.steps) if shapes is not None else None
    if layout is None or len(layout.axes) != 4 or not any(digit.axis == REPEAT for digit in layout.axes[1]):
        return None
    copies = [digit.axis == REPEAT for digit in layout.axes[1]]
    if operand.whole.factor != operand.trace.factor or copies != sorted(copies):
        return None  # The operator repeats each head by itself, and not all of them one after the other.
    heads = tuple(digit for digit in layout.axes[1] if digit.axis != REPEAT)
    return Layout((layout.axes[0], heads, *layout.axes[2:]), layout.offsets)


def _written_anew(writer: Writer, view: GraphView, operand: Operand, role: str, form: str) -> str | None:
    found, layout, source = None, operand.layout, operand.trace.source
    if layout is not None and role == "key" and form in PLAIN:
        found = _rewrite_key(writer, view, layout, source)
    elif layout is not None:
        found = _rewrite(writer, view, layout, source, role)
    if found is not None or role == "value" or not _has_factors(view, operand):
        return found
    return _in_front_of_its_factor(writer, view, operand, role)


def _in_front_of_its_factor(writer: Writer, view: GraphView, operand: Operand, role: str) -> str | None:
    """From a value on the way that holds all of Q or K and nothing else, the one with the least left to do: where a layer makes
    all three, and what comes of K is cached, that is the present."""
    found: list[tuple[int, gs.Tensor, Turn]] = []
    for place, step in enumerate(operand.trace.steps):
        if step.branches or scalar_factor(view, step.node) is not None:
            break
        shapes = view.shapes(step.output)
        layout = layout_of(view, shapes, operand.trace.steps[place + 1 :]) if shapes is not None else None
        plan = _plan(view, layout, step.output) if layout is not None else None
        found += [(plan.nodes, step.output, plan)] if plan is not None else []
    if not found:
        return None
    _, source, plan = min(found, key=lambda each: each[0])
    return write_turn(writer, source.name, plan, role)


def _rewrite(writer: Writer, view: GraphView, layout: Layout, source: gs.Tensor, role: str) -> str | None:
    """source → Reshape → Transpose → Reshape, as far as each is needed; None if this cannot be said."""
    plan = _plan(view, layout, source)
    return write_turn(writer, source.name, plan, role) if plan is not None else None


def _rewrite_key(writer: Writer, view: GraphView, layout: Layout, source: gs.Tensor) -> str | None:
    """The same for a K that the site turns, before the last Reshape where there is one: turned with fewer axes, and back.

    Source: measured with TensorRT for RTX 1.7.1, fp16: behind a Reshape that takes B·N apart K is turned by a kernel of its own;
    before it, the attention kernel reads it where it lies (cross-attention with K and V of other widths: 6 kernels, 7).
    """
    plan = _plan(view, layout, source)
    if plan is not None and plan.turns and plan.merged is not None:
        *others, tokens, channels = range(len(layout.axes))
        swap = [*others, channels, tokens]
        swapped = Layout(tuple(layout.axes[axis] for axis in swap), layout.offsets)
        turned = _plan(view, swapped, source, layout.axes[channels])
        if turned is not None:
            return writer.add("Transpose", [write_turn(writer, source.name, turned, "key_turned")], "key", perm=swap)
    return write_turn(writer, source.name, plan, "key") if plan is not None else None


def _plan(view: GraphView, layout: Layout, source: gs.Tensor, alone: Sequence[Digit] = ()) -> Turn | None:
    """alone: of an axis that is not moved as one with its neighbours."""
    base = tensor_dims(view, source)
    if base is None or not _reads_everything(layout, base):
        return None
    if (perm := _whole_axes(layout, base)) is not None:
        return Turn(None, perm, None)
    atoms = _atoms(layout, len(base))
    split: list[Dim] = [digit_dim(digit, base) for digit in atoms]
    order, kept = [atoms.index(digit) for digit in layout.digits], atoms.index(alone[0]) if alone else None
    return plan_turn(base, split, order, layout_dims(layout, base), kept)


def _whole_axes(layout: Layout, base: list[Dim]) -> list[int] | None:
    """The order of the source's axes in which the operand has them, where it takes none of them apart; axes of size 1 fill the
    places that are left."""
    if len(layout.axes) != len(base) or any(
        len(axis) > 1 or any(d.size is not None for d in axis) for axis in layout.axes
    ):
        return None
    taken = {digit.axis for digit in layout.digits}
    ones = iter([axis for axis in range(len(base)) if axis not in taken])
    return [axis[0].axis if axis else next(ones) for axis in layout.axes]


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
