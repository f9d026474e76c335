"""Movement nodes: which they are, and what they do to an index tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.remember import remembered
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.graph.world import Shape, World
from onnx_attn.views.layout import Layout, common, decode
from onnx_attn.views.uniform import uniform

SAME_ORDER = frozenset(
    "Reshape Squeeze Unsqueeze Flatten Identity Cast Mul Div Neg Dropout Pad Add Sub QuantizeLinear DequantizeLinear".split()
)
"""Nodes of a trace that leave the elements in their order: their result is the input, reshaped."""

MOST_POSITIONS = 2**29
"""How many elements a tensor may have that is moved to see where each goes: their positions take 4 bytes each."""


@dataclass(frozen=True)
class Step:
    """One node of a trace and the tensor that the walk came through.

    branches: of a Concat, the ways to its inputs, all from one tensor.
    """

    node: gs.Node
    output: gs.Tensor
    branches: tuple[tuple[Step, ...], ...] = ()

    @property
    def whole(self) -> Iterator[Step]:
        """The step and those of its branches."""
        yield self
        for branch in self.branches:
            for step in branch:
                yield from step.whole


@remembered
def moves(view: GraphView, node: gs.Node, output: gs.Tensor) -> bool:
    """True if `output` of this node holds elements of the node's first input and nothing else, each at most once."""
    if node.domain not in STANDARD or not node.inputs:
        return False
    if view.shapes(output) is None or view.shapes(node.inputs[0]) is None:
        return False
    if node.op == "Split" or rearranges(view, node):
        return True
    if node.op == "Slice":
        return all(view.constant(tensor) is not None for tensor in node.inputs[1:] if tensor.name)
    if node.op == "Gather":
        taken = view.constant(node.inputs[1])
        once = taken is not None and np.unique(taken).size == taken.size
        return once and not view.is_weight(node.inputs[0])
    return is_identity(view, node) and output is node.outputs[0]


REARRANGE = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


def rearranges(view: GraphView, node: gs.Node) -> bool:
    """True if a node's one result holds each element of its first input once, in other axes."""
    if node.domain not in STANDARD or not (node.op in REARRANGE or permutation(node) is not None):
        return False
    return view.shapes(node.outputs[0]) is not None and view.shapes(node.inputs[0]) is not None


def permutation(node: gs.Node) -> list[int] | None:
    """The order of axes that a Transpose, or an Einsum of one operand, puts its input in; None for other nodes.

    Source: onnx operator specification: without perm, Transpose reverses the axes.
    """
    if node.op == "Transpose":
        given = node.attrs.get("perm")
        return list(given) if given is not None else None
    if node.op != "Einsum" or len(node.inputs) != 1:
        return None
    before, arrow, after = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    if not arrow or "." in before or sorted(before) != sorted(after) or len(set(before)) != len(before):
        return None
    return [before.index(letter) for letter in after]


def repeats(view: GraphView, node: gs.Node) -> bool:
    """True if a node holds the elements of its first input several times over and nothing else."""
    if node.domain not in STANDARD or node.op not in ("Expand", "Tile", "Gather"):
        return False
    if view.shapes(node.outputs[0]) is None or view.shapes(node.inputs[0]) is None:
        return False
    if node.op == "Gather" and view.is_weight(node.inputs[0]):
        return False
    return node.op == "Expand" or view.constant(node.inputs[1]) is not None


def is_noop_cast(view: GraphView, node: gs.Node) -> bool:
    return node.op == "Cast" and view.elem_type(node.inputs[0]) == node.attrs["to"] != 0


def is_empty_pad(view: GraphView, node: gs.Node) -> bool:
    """A Pad that adds nothing, at whatever size: windows pad their map up to a multiple of their own size."""
    if node.op != "Pad":
        return False
    pads = view.constant(node.inputs[1]) if len(node.inputs) > 1 else np.asarray(node.attrs.get("pads", 1))
    return pads is not None and not pads.any()


def is_identity(view: GraphView, node: gs.Node) -> bool:
    """Identity, a Cast to the type that is there already, a Pad by nothing, a sum with zeros, a product with ones, or Dropout
    that does nothing at inference."""
    if node.domain not in STANDARD:
        return False
    if node.op in _NEUTRAL:
        return neutral_operand(view, node) is not None
    if node.op == "Identity" or is_noop_cast(view, node) or is_empty_pad(view, node):
        return True
    return node.op == "Dropout" and dropout_is_inference(view, node)


def neutral_operand(view: GraphView, node: gs.Node) -> int | None:
    """The place of the operand that a sum with zeros, or a product with ones, leaves as it is."""
    shape, nothing = view.shapes(node.outputs[0]), _NEUTRAL[node.op]
    for place in (0, 1) if node.op in ("Add", "Mul") else (0,):
        if shape is None or view.shapes(node.inputs[place]) != shape:
            continue
        if uniform(view, node.inputs[1 - place]) == nothing:
            return place
    return None


_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
"""What leaves the other operand as it is: of Sub and Div, the first one."""


def handed_on(view: GraphView, node: gs.Node) -> gs.Tensor:
    """What an identity hands on."""
    return node.inputs[neutral_operand(view, node) or 0] if node.op in ("Add", "Mul") else node.inputs[0]


def dropout_is_inference(view: GraphView, node: gs.Node) -> bool:
    """From opset 12 on, training_mode is an input that defaults to false; below, Dropout is the identity at inference."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return not bool(node.attrs.get("is_test", 1) == 0)
    mode = view.constant(node.inputs[2])
    return mode is not None and not bool(mode.reshape(-1)[0])


def layout_of(
    view: GraphView, base: tuple[Shape, ...], steps: Sequence[Step], row_steps: Sequence[Step] = ()
) -> Layout | None:
    """The layout, over a base of these shapes (one a world), of what `steps` make of it.

    row_steps: come first and move rows only, as nodes in front of a linear layer do; they are run on rows of the base's
        own width, whatever the width was that the nodes were written for.

    Equal movements of equal bases, as in the layers of one model, are run once.
    """
    key = (base, tuple(step_key(view, step) for step in row_steps), tuple(step_key(view, step) for step in steps))
    if key not in view.layouts:
        view.layouts[key] = _run_all(view, base, steps, row_steps)
    return view.layouts[key]


def _run_all(
    view: GraphView, base: tuple[Shape, ...], steps: Sequence[Step], row_steps: Sequence[Step]
) -> Layout | None:
    layouts: list[Layout | None] = []
    for world, shape in zip(view.worlds, base, strict=True):
        if math.prod(shape) > MOST_POSITIONS:
            return None
        positions = np.arange(math.prod(shape), dtype=np.int32)
        index = index_map(world, positions.reshape(shape), steps, row_steps)
        if index is None:
            return None
        layouts.append(decode(index, shape, positions))
    return common(layouts)


def index_map(
    world: World, base: Shape | np.ndarray, steps: Sequence[Step], row_steps: Sequence[Step] = ()
) -> np.ndarray | None:
    """What `steps` make of the positions of a base of this shape, or of these numbers, at one world's sizes; None where a
    node cannot run at them, as the exporter froze a size, or there are too many positions to hold."""
    start = base.shape if isinstance(base, np.ndarray) else base
    shapes = [world.shape(step.output.name) or () for step in (*row_steps, *steps)]
    if any(math.prod(shape) > MOST_POSITIONS for shape in (start, *shapes)):
        return None
    try:
        index = base if isinstance(base, np.ndarray) else np.arange(math.prod(base), dtype=np.int32).reshape(base)
        for step in row_steps:
            index = run(step, index, world, width=index.shape[-1])
        for step in steps:
            index = run(step, index, world)
    except (ValueError, IndexError):
        return None
    return index


def step_key(view: GraphView, step: Step) -> tuple[object, ...]:
    """All that decides what a step does."""
    node = step.node
    if step.branches:
        return (
            "Concat",
            node.attrs["axis"],
            *(tuple(step_key(view, each) for each in branch) for branch in step.branches),
        )
    if node.op in SAME_ORDER:
        return (view.shapes(step.output),)
    details: list[object] = [node.op, view.shapes(step.output)]
    if node.op in ("Transpose", "Einsum"):
        details[0] = "Transpose"
        details.append(tuple(permutation(node) or ()))
    elif node.op == "Split":
        before = next(i for i, output in enumerate(node.outputs) if output is step.output)
        details += [node.attrs.get("axis", 0), *(view.shapes(output) for output in node.outputs[:before])]
    else:
        values = [view.constant(tensor) for tensor in node.inputs[1:]]
        details += [node.attrs.get("axis", 0), *(None if value is None else value.tobytes() for value in values)]
    return tuple(details)


def run(step: Step, index: np.ndarray, world: World, width: int | None = None) -> np.ndarray:
    """Apply one step to an index tensor, at the sizes of one world; `width` replaces the last axis's size."""
    node, shape = step.node, world.shape(step.output.name)
    assert shape is not None
    if step.branches:
        return np.concatenate([_along(branch, index, world) for branch in step.branches], axis=node.attrs["axis"])
    if node.op in SAME_ORDER:
        return index.reshape(shape if width is None else (*shape[:-1], width))
    if node.op in ("Transpose", "Einsum"):
        return index.transpose(permutation(node) or list(range(index.ndim))[::-1])
    if node.op == "Split":
        return _split(step, index, world)
    if node.op == "Expand":
        return np.broadcast_to(index, shape if width is None else (*shape[:-1], width))
    if node.op == "Tile":
        repeats = world.value(node.inputs[1].name)
        assert repeats is not None
        return np.tile(index, repeats)
    if node.op == "Gather":
        value = world.value(node.inputs[1].name)
        assert value is not None
        axis = node.attrs.get("axis", 0) % index.ndim
        # One of an axis is cut out without a copy.
        return np.take(index, value, axis) if value.ndim else index[_at(axis, int(value))]
    return _slice(node, index, world)


def _along(steps: Sequence[Step], index: np.ndarray, world: World) -> np.ndarray:
    for step in steps:
        index = run(step, index, world)
    return index


def _split(step: Step, index: np.ndarray, world: World) -> np.ndarray:
    axis = step.node.attrs.get("axis", 0)
    start = 0
    for output in step.node.outputs:
        shape = world.shape(output.name)
        assert shape is not None
        if output is step.output:
            return index[_at(axis % index.ndim, slice(start, start + shape[axis]))]
        start += shape[axis]
    raise AssertionError("a trace came through an output that the node does not have")


def _at(axis: int, part: int | slice) -> tuple[int | slice, ...]:
    """The subscript that takes a part of one axis."""
    return (*[slice(None)] * axis, part)


def _slice(node: gs.Node, index: np.ndarray, world: World) -> np.ndarray:
    """ONNX Slice (opset 10 on): starts, ends, axes, steps as inputs; the semantics of numpy's slices."""
    given = [world.value(tensor.name) if tensor.name else None for tensor in node.inputs[1:]]
    given += [None] * (4 - len(given))
    starts, ends, axes, steps = given
    assert starts is not None and ends is not None
    count = starts.size
    axes = np.arange(count) if axes is None else axes
    steps = np.ones(count, np.int64) if steps is None else steps
    cut = [slice(None)] * index.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end <= -index.shape[axis] - 1 else int(end)
        cut[int(axis)] = slice(int(start), stop, int(step))
    return index[tuple(cut)]
