"""Which axes of the two products are batch, heads, queries, keys and features, wherever they stand.

The labels of the products say what is shared; the softmax says which side the keys are on; where the channels of Q's layer
went says which axis is that of heads. Nothing else: no position has a meaning of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.channels import Run, runs_in, runs_of
from onnx_attn.recognize.normaliser import Normaliser
from onnx_attn.recognize.origin import Origin, read_origin
from onnx_attn.recognize.probabilities import Product
from onnx_attn.recognize.result import CONTRADICTION, Stop
from onnx_attn.recognize.scores import Scores
from onnx_attn.site import ScoreTerm
from onnx_attn.views.axes import Atom, Axis, Frame, frame_of, leaves, reshaped, settled
from onnx_attn.views.contraction import Contraction, Labels
from onnx_attn.views.movement import Step, index_map, permutation
from onnx_attn.views.trace import trace

ByLabel = dict[Hashable, Axis]


@dataclass(frozen=True)
class SiteAxes:
    """The axes of a site's scores, and how its tensors hold them.

    product: with Q on the left. values: P·V with P on the left.
    scores: the scores' axes by the labels of `product`. probabilities: the same by the labels of `values`.
    batch: in the order in which the site is written, heads last. heads: how many of these, from the last, are heads; None where
        nothing tells. terms: masks and the like with the axes of the scores that they meet. cleared: the mask behind the softmax,
        alike.
    """

    product: Contraction
    values: Contraction
    scores: ByLabel
    probabilities: ByLabel
    batch: Frame
    heads: int | None
    rows: Axis
    keys: Axis
    terms: tuple[tuple[ScoreTerm, Frame], ...]
    cleared: tuple[ScoreTerm, Frame] | None = None


def read_axes(view: GraphView, softmax: Normaliser, scores: Scores, below: Product) -> SiteAxes | Stop:
    """Read the axes of a softmax between two products; Stop where they are no attention's."""
    assert below.product is not None
    shapes = view.shapes(scores.product.result)
    if shapes is None or len(shapes[0]) != len(scores.product.result_axes):
        return Stop("shape-unknown", scores.product.node, CONTRADICTION)
    frame = frame_of(shapes)
    by_label: ByLabel = dict(zip(scores.product.result_axes, frame, strict=True))
    above = _up_to_softmax(view, scores, frame)
    if isinstance(above, Stop):
        return above
    over, terms = above
    under = _down_to_values(view, below, over)
    if isinstance(under, Stop):
        return under
    frame, before_clearing = under
    if len(over) != view.rank(softmax.scores) or len(frame) != len(below.product.left_axes):
        return Stop("shape-unknown", below.node, CONTRADICTION)
    masks = [*terms, (below.cleared[0], before_clearing)] if below.cleared is not None else terms
    if any(term.mask is not None and (view.rank(term.mask) or 0) > len(at) for term, at in masks):
        return Stop("mask-shape", softmax.node, CONTRADICTION)
    probabilities: ByLabel = dict(zip(below.product.left_axes, frame, strict=True))
    keys = leaves(atom for axis in softmax.axes for atom in over[axis])
    moves = any(isinstance(item, Step) for item in scores.items)
    sided = _sided(scores.product, by_label, keys, None if moves else softmax.axes)
    if sided is None:
        return Stop("softmax-axis", softmax.node)
    product, key_labels = sided
    summed = leaves(atom for name in below.product.summed for atom in probabilities[name])
    if {*summed} != {*keys}:
        return Stop("operand-order" if below.swapped else "softmax-axis", below.node if below.swapped else softmax.node)
    found = _roles(view, product, below.product, by_label, probabilities, key_labels)
    if isinstance(found, Stop):
        return found
    batch, heads, rows = found
    read = SiteAxes(
        product,
        below.product,
        _settled(by_label),
        _settled(probabilities),
        settled(batch),
        heads,
        leaves(rows),
        leaves(keys),
        tuple((term, settled(at)) for term, at in terms),
        (below.cleared[0], settled(before_clearing)) if below.cleared is not None else None,
    )
    return _grouped(view, read)


def _up_to_softmax(view: GraphView, scores: Scores, frame: Frame) -> tuple[Frame, list[tuple[ScoreTerm, Frame]]] | Stop:
    """The axes that the softmax reads, and those of the scores at each term on the way there."""
    terms: list[tuple[ScoreTerm, Frame]] = []
    for item in scores.items:
        if isinstance(item, ScoreTerm):
            terms.append((item, frame))
            continue
        moved = _through(view, item, frame)
        if moved is None:
            return Stop("scores-changed", item.node, f"{item.node.op} '{label(item.node)}'")
        frame = moved
    return frame, terms


def _down_to_values(view: GraphView, below: Product, frame: Frame) -> tuple[Frame, Frame] | Stop:
    """The axes of the probabilities at the product with the values, and where they are cleared."""
    before_clearing = frame
    for count, step in enumerate(below.steps, 1):
        moved = _through(view, step, frame)
        if moved is None:
            return Stop("probabilities-changed", step.node, f"{step.node.op} '{label(step.node)}'")
        frame = moved
        if below.cleared is not None and count == below.cleared[1]:
            before_clearing = frame
    return frame, before_clearing


def _settled(axes: Mapping[Hashable, Axis]) -> ByLabel:
    return {name: leaves(axis) for name, axis in axes.items()}


def _through(view: GraphView, step: Step, frame: Frame) -> Frame | None:
    node = step.node
    if node.op in ("Transpose", "Einsum"):
        order = permutation(node) or range(len(frame))[::-1]
        return tuple(frame[axis] for axis in order) if sorted(order) == [*range(len(frame))] else None
    shapes = view.shapes(step.output)
    return reshaped(frame, shapes) if shapes is not None else None


def _sided(
    product: Contraction, axes: ByLabel, keys: Axis, positions: tuple[int, ...] | None
) -> tuple[Contraction, Labels] | None:
    """The product with K on the right: the softmax runs over all of its own axes that are no heads, and over nothing else.

    positions: the softmax's axes in the product's result, where nothing moves between; they tell where there is one key only.
    """
    wanted = {*keys}
    for turned in (product, product.turned):
        own = [name for name in turned.right_axes if name not in turned.left_axes]
        found = [name for name in own if {*leaves(axes[name])} <= wanted]
        if wanted and {atom for name in found for atom in leaves(axes[name])} == wanted:
            return turned, tuple(name for name in found if axes[name])
        if not wanted and positions is not None and any(product.result_axes[at] in own for at in positions):
            return turned, tuple(product.result_axes[at] for at in positions if product.result_axes[at] in own)
    return None


def _roles(
    view: GraphView,
    product: Contraction,
    values: Contraction,
    axes: ByLabel,
    probabilities: ByLabel,
    key_labels: Labels,
) -> tuple[Frame, int | None, Axis] | Stop:
    """Batch axes in order (heads last), how many are heads, and the axis of queries."""
    shared = {atom for name in values.right_axes if name in probabilities for atom in leaves(probabilities[name])}
    own = [name for name in product.result_axes if name not in product.right_axes]
    channels = _channels(view, product.left, product.left_axes, axes)
    if channels is None:
        channels = _channels(view, product.right, product.right_axes, axes)
    heads = {*leaves(channels or ())}
    rows = [name for name in own if not {*leaves(axes[name])} & shared]
    if len(rows) > 1:
        # Without a layer that tells, axes of Q alone are heads that share one of K and V; only the last is of queries.
        rows = rows[-1:] if channels is None else [name for name in rows if not _within(axes[name], heads)]
    if not rows:
        return Stop("no-value-product", values.node, "the values differ from query to query")
    taken = {*rows, *key_labels}
    batch = [axis for name in product.result_axes if name not in taken for axis in _pieces(axes[name])]
    queries = leaves(atom for name in rows for atom in axes[name])
    if channels is None:
        return tuple(batch), None, queries
    last = [axis for axis in batch if _within(axis, heads)]
    others = [axis for axis in batch if not _within(axis, heads)]
    if not last:
        last = [()]  # One head: its axis has to stand where heads do.
        if () in others:
            others.remove(())
    return (*(others or [()]), *last), len(last), queries


def _within(axis: Axis, heads: set[Atom]) -> bool:
    pieces = leaves(axis)
    return bool(pieces) and {*pieces} <= heads


def _pieces(axis: Axis) -> list[Axis]:
    return [(piece,) for piece in leaves(axis)] or [()]


def _channels(view: GraphView, operand: gs.Tensor, labels: Labels, axes: ByLabel) -> Axis | None:
    """The pieces of the batch axes that run over channels of the operand's layer: its heads. Axes that join heads with
    something else are cut between them. None where no layer tells, or no plain movement leads from it."""
    origin = read_origin(view, operand) or _last_axis(view, operand)
    runs = _channel_runs(view, origin) if origin is not None else None
    if origin is None or runs is None:
        return None
    pieces: list[Atom] = []
    for place, name in enumerate(labels):
        if name not in axes:
            continue
        cut = reshaped((axes[name],), [tuple(run.size for run in world[place]) for world in runs])
        if cut is not None:
            pieces.extend(atom for run, axis in zip(runs[0][place], cut, strict=True) if run.head for atom in axis)
    if origin.layer is None:
        # Of a map of pixels the last axis is width, which is part of the rows.
        own = [name for name in labels if name in axes]
        return tuple(pieces) if pieces and not {*pieces} & {*leaves(axes[own[-1]])} else None
    return tuple(pieces)


def _channel_runs(view: GraphView, origin: Origin) -> list[list[list[Run]]] | None:
    """By world and axis of an operand: its runs over channels of the layer, and over other things. None where nothing tells."""
    layout = origin.layout(view)
    if layout is not None:
        return [[runs_of(digits, origin.channels, shape) for digits in layout.axes] for shape in origin.base]
    found = [
        runs_in(index, shape, origin.channels)
        for world, shape in zip(view.worlds, origin.base, strict=True)
        if (index := index_map(world, shape, origin.steps, origin.rows)) is not None
    ]
    alike = {tuple(tuple(run.head for run in axis) for axis in world) for world in found if world is not None}
    if len(found) != len(view.worlds) or None in found or len(alike) != 1:
        return None
    return [world for world in found if world is not None]


def _last_axis(view: GraphView, operand: gs.Tensor) -> Origin | None:
    """What an operand is moved from, where no layer stands behind it: heads may be part of its last axis."""
    found = trace(view, operand)
    base = view.shapes(found.source)
    if base is None or not found.steps:
        return None
    return Origin(None, frozenset({len(base[0]) - 1}), found.steps, base)


def present(view: GraphView, tensor: gs.Tensor, axes: Frame) -> set[Atom]:
    """The pieces of these axes, the last of them the tensor's last, that the tensor has and does not broadcast; as far as anybody
    knows all of them, where its shape is not known."""
    shapes = view.shapes(tensor)
    if shapes is None:
        return {atom for axis in axes for atom in leaves(axis)}
    found: set[Atom] = set()
    for axis, sizes in zip(axes[len(axes) - len(shapes[0]) :], zip(*shapes, strict=True), strict=True):
        if any(size != 1 for size in sizes):
            found |= {*leaves(axis)}
    return found


def _grouped(view: GraphView, found: SiteAxes) -> SiteAxes:
    """Two head axes of Q, over the inner of which K and V have one head only, are one: groups that share a head."""
    if (found.heads or 0) < 2:
        return found
    *others, outer, inner = found.batch
    key = present(view, found.product.right, tuple(found.scores.get(name, ()) for name in found.product.right_axes))
    value = present(view, found.values.right, tuple(found.probabilities.get(n, ()) for n in found.values.right_axes))
    terms = (*found.terms, found.cleared) if found.cleared is not None else found.terms
    masks = [present(view, term.mask, at) for term, at in terms if term.mask is not None]
    if {*inner} & (key | value) or any(len({*outer, *inner} & mask) == 1 for mask in masks):
        return found
    assert found.heads is not None
    return replace(found, batch=(*others, (*outer, *inner)), heads=found.heads - 1)
