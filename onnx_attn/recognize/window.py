"""The window of a site: which part of a map the rows that attend to each other are.

Every place of the map is given a number, the numbers are moved as the model moves its rows, and what arrives at Q, K and V is
looked at. Roll, padding and partition are thus read together, however many nodes of whatever kind spell them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Shape, World
from onnx_attn.recognize.bases import Base, bases, bases_before
from onnx_attn.recognize.partition import Kind, Partition, Sizes, read_partition
from onnx_attn.recognize.pooling import pooled
from onnx_attn.recognize.window_masks import masks_agree
from onnx_attn.site import AttentionSite, Window, Written
from onnx_attn.views.arrange import moved, real, unarranged
from onnx_attn.views.movement import MOST_POSITIONS
from onnx_attn.views.tokens import MixesTokens, carried, one_along, reduced_axes


@dataclass(frozen=True)
class Groups:
    """By world, the tokens `(…, S)` that attend to each other, over the site's batch axes; none if Q, K and V differ in them.

    sizes: of the map that they are tokens of.
    """

    rows: list[np.ndarray]
    sizes: Sizes


def read_window(view: GraphView, site: AttentionSite | Written) -> Window | None:
    """The window of a site; None where it has none, none that the graph shows, or one that its masks do not agree with."""
    if isinstance(site, Written) and site.form != "function":
        return None
    found = site.node.inputs[:3] if isinstance(site, Written) else [operand.tensor for operand in site.operands]
    key = tuple(real(view, tensor).name for tensor in found)
    if key not in view.windows:
        window = _read(view, found)
        view.windows[key] = window if window is not None and masks_agree(view, site, window) else None
    known: Window | None = view.windows[key]
    return known


def _read(view: GraphView, operands: Sequence[gs.Tensor]) -> Window | None:
    shapes = view.shapes(operands[0])
    if shapes is None or len(shapes[0]) < 3:
        return None
    tensors = [unarranged(view, operand)[0] for operand in operands]
    if any(view.shapes(tensor) is None for tensor in tensors):
        return None
    near = bases(view, tensors)
    if not near:
        return None
    found = _among(view, operands, near)
    if found is not None:
        return found
    apart = [math.prod(shape[:-3]) for shape in shapes] != [
        math.prod(shape[:1]) for shape in view.shapes(near[-1].tensor) or ()
    ]
    return _among(view, operands, bases_before(view, near[-1])) if apart else None


def _among(view: GraphView, operands: Sequence[gs.Tensor], found: Sequence[Base]) -> Window | None:
    """The window on the farthest of these tensors that can be the map; None where it shows none, or none can be the map."""
    for base in reversed(found):
        shapes = view.shapes(base.tensor)
        if shapes is None or len(shapes[0]) not in (4, 5) or len({shape[1:] for shape in shapes}) > 1:
            continue
        for channels_first in (False, True):
            if 1 in _map_sizes(shapes[0], channels_first):
                continue
            groups = _groups(view, operands, base, channels_first)
            if groups is not None:
                return _window(view, base, groups)
    return None


def _map_sizes(shape: Shape, channels_first: bool) -> Shape:
    return shape[2:] if channels_first else shape[1:-1]


def _groups(view: GraphView, operands: Sequence[gs.Tensor], base: Base, channels_first: bool) -> Groups | None:
    """The tokens of Q, K and V; None where some row is of more than one token."""
    shapes = view.shapes(base.tensor)
    assert shapes is not None
    by_world: list[np.ndarray] = []
    sizes: Sizes = ()
    for number, (world, shape) in enumerate(zip(view.worlds, shapes, strict=True)):
        try:
            labels, sizes = _run(world, base, shape, channels_first)
            rows = [_rows(view, operand, labels, number) for operand in operands]
        except (ValueError, LookupError):
            return None
        by_world.append(rows[0] if all(np.array_equal(rows[0], each) for each in rows[1:]) else rows[0][:0])
    return Groups(by_world, sizes)


def _run(world: World, base: Base, shape: Shape, channels_first: bool) -> tuple[dict[str, np.ndarray], Sizes]:
    """The labels of all that comes after the base, and the sizes of the map that they are of. Behind a pooling there are those of
    the smaller map alone, and what reads the larger one still joins tokens."""
    sizes = _map_sizes(shape, channels_first)
    labels = {base.tensor.name: _labels(shape, channels_first)}
    larger: set[str] = set()
    for step in base.steps:
        if not larger.isdisjoint(tensor.name for tensor in step.node.inputs):
            raise MixesTokens
        try:
            labels[step.output.name] = carried(world, step, labels)
        except MixesTokens:
            axes, result = reduced_axes(world, step.node), world.shape(step.output.name)
            if not axes or result is None:
                raise
            found, sizes = pooled(labels[step.node.inputs[0].name], axes, sizes, result)
            larger |= labels.keys()
            labels = {step.output.name: found}
    return labels, sizes


def _labels(shape: Shape, channels_first: bool) -> np.ndarray:
    """Each element's place, counted through all batch entries. Raises ValueError where there are too many to hold."""
    if math.prod(shape) > MOST_POSITIONS:
        raise ValueError(shape)
    channels = 1 if channels_first else len(shape) - 1
    places = [1 if axis == channels else size for axis, size in enumerate(shape)]
    return np.broadcast_to(np.arange(math.prod(places), dtype=np.int32).reshape(places), shape)


def _rows(view: GraphView, operand: gs.Tensor, labels: dict[str, np.ndarray], world: int) -> np.ndarray:
    """`(…, S)` of an operand `(…, N, S, H)` whose heads and channels are of one token each row."""
    tensor, moves = unarranged(view, operand)
    return one_along(moved(labels[tensor.name], moves, world), (-3, -1))[..., 0, :, 0]


def _window(view: GraphView, base: Base, groups: Groups) -> Window | None:
    shapes = view.shapes(base.tensor)
    assert shapes is not None
    sizes = groups.sizes
    found: set[Partition | None] = set()
    for shape, rows in zip(shapes, groups.rows, strict=True):
        entry = _one_entry(rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1]), shape[0], math.prod(sizes))
        found.add(read_partition(entry, sizes) if entry is not None else None)
    read = found.pop()
    if found or read is None:
        return None
    kind = read.kind if math.prod(read.grid) > 1 else _cut_whole(view, base, read.size)
    if kind is None:
        return None
    return Window(
        size=read.size,
        shift=tuple(line.shift for line in read.lines),
        grid=read.grid,
        kind=kind,
        padding=tuple(line.padding for line in read.lines),
        rolled_first=tuple(line.rolled_first for line in read.lines),
    )


def _one_entry(rows: np.ndarray, batch: int, places: int) -> np.ndarray | None:
    """What all batch entries have alike, `(n, S)`, whether they stand one after the other or group by group; None where they
    differ, or a group is of more than one."""
    if not rows.size:
        return None
    entry = np.where(rows >= 0, rows // places, -1)
    owner = entry.max(axis=1)
    if ((entry >= 0) & (entry != owner[:, None])).any():
        return None
    count = len(rows) // batch
    orders = (np.repeat(np.arange(batch), count), np.tile(np.arange(batch), count))
    if not any(np.array_equal(owner, order) for order in orders):
        return None
    stacked = np.where(rows >= 0, rows % places, -1)[np.argsort(owner, kind="stable")].reshape(batch, count, -1)
    return stacked[0] if (stacked == stacked[0]).all() else None


def _cut_whole(view: GraphView, base: Base, sizes: Sizes) -> Kind | None:
    """How a map that is one window is cut all the same, where some node's result has an axis of one window beside each of its
    own: that moves nothing, and an attention over all tokens has no such node."""
    for step in base.steps:
        shapes = view.shapes(step.output) or ()
        cut = {shape[1:-1] for shape in shapes}, {shape[2:] for shape in shapes}
        ways: dict[Kind, Sizes] = {"window": tuple(n for size in sizes for n in (1, size))}
        ways["grid"] = tuple(n for size in sizes for n in (size, 1))
        for kind, wanted in ways.items():
            if {wanted} in cut:
                return kind
    return None
