"""Does a site's mask keep queries from later keys? Read off the mask's numbers, with nothing padded away.

Exporters write causality as a stored triangle, as a comparison of two ranges, as Trilu of ones, joined with the padding by And,
by Where or by a sum. What a caller gives is set to one throughout and to zero (one of them pads nothing), the mask is computed at
the sizes of one world, and looked at: a key that is blocked both times is blocked by its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnx_attn.graph.view import GraphView
from onnx_attn.runtime import CannotRun, Session
from onnx_attn.site import ScoreTerm
from onnx_attn.views.arrange import real, rearranged
from onnx_attn.views.movement import MOST_POSITIONS

BLOCKED = -9999.0
"""From here on downwards a number that is added blocks: exporters write -1e4, the lowest number, or minus infinity."""
MOST_NODES = 256
_COMPUTES = frozenset({"MatMul", "Gemm", "Conv", "Einsum", "Attention", "Softmax", "If", "Loop", "Scan"})
"""What makes biases from activations rather than masks from sizes."""


def blocks_later_keys(view: GraphView, masks: Sequence[ScoreTerm]) -> bool:
    """Whether no query attends to a later key, by these masks together; False where they cannot be computed by themselves."""
    attended: np.ndarray | None = None
    for term in masks:
        assert term.mask is not None
        shapes = view.shapes(term.mask)
        if shapes is None or len(shapes[0]) < 2 or min(shapes[0][-2:]) < 2:
            continue
        if term.kind == "where" and view.elem_type(term.mask) != onnx.TensorProto.BOOL:
            continue  # Of an operator that lays it over the scores in a way of its own.
        allowed = _ever_attended(view, term)
        if allowed is None:
            continue
        attended = allowed if attended is None else attended & allowed
    return attended is not None and _is_causal(attended)


def _ever_attended(view: GraphView, term: ScoreTerm) -> np.ndarray | None:
    """Where the mask lets a query attend for some padding: none at all, or, where a mask names what it blocks, the other way."""
    assert term.mask is not None
    allowed = [_attended(term, value) for value in numbers_of(view, term.mask)]
    return np.logical_or.reduce(allowed) if allowed else None


def _attended(term: ScoreTerm, value: np.ndarray) -> np.ndarray:
    if term.kind == "where":
        return value.astype(bool) == term.keep_when
    return (-value if term.kind == "subtract" else value) > BLOCKED


def _is_causal(attended: np.ndarray) -> bool:
    """Nothing above the diagonal, and everything on it; of unequal lengths the first or the last positions agree."""
    queries, keys = attended.shape[-2:]
    for offset in {0, keys - queries}:
        later = np.triu(np.ones((queries, keys), bool), offset + 1)
        on = np.eye(queries, keys, offset, dtype=bool)
        if not attended[..., later].any() and attended[..., on].all():
            return True
    return False


def numbers_of(view: GraphView, mask: gs.Tensor) -> list[np.ndarray]:
    """A mask's numbers at the first world's sizes, over the axes of the site, for each number that a caller may give."""
    tensor = real(view, mask)
    if tensor.name not in view.computed:
        known = _known(view, tensor)
        view.computed[tensor.name] = _run(view, tensor) if known is None else [known]
    return [rearranged(view, value, mask) for value in view.computed[tensor.name]]


def _known(view: GraphView, tensor: gs.Tensor) -> np.ndarray | None:
    """The numbers of a mask that need not be computed: sizes decide it, or it is folded already, or stored."""
    if math.prod(view.worlds[0].shape(tensor.name) or ()) > MOST_POSITIONS:
        return None
    if (folded := view.folds.get(tensor.name)) is not None:
        return numpy_helper.to_array(folded)
    stored = isinstance(tensor, gs.Constant) and view.is_weight(tensor)
    return view.numbers(tensor.name) if stored else view.worlds[0].value(tensor.name)


def _run(view: GraphView, tensor: gs.Tensor) -> list[np.ndarray]:
    """The numbers with ones from every caller and with zeros, the same once where there is none; none that cannot be computed."""
    found = _ancestors(view, tensor)
    if found is None:
        return []
    positions, inputs, weights, numbers = found
    world = view.worlds[0]
    shape = world.shape(tensor.name)
    if any(math.prod(world.shape(name) or ()) > MOST_POSITIONS for name in (tensor.name, *inputs)):
        return []
    nodes = [view.proto.graph.node[position] for position in sorted(positions)]
    types = {name: helper.make_tensor_value_info(name, world.elem_type(name), world.shape(name)) for name in inputs}
    output = helper.make_tensor_value_info(tensor.name, world.elem_type(tensor.name), shape)
    stored = [view.initializer(name) for name in weights]
    stored += [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "mask", list(types.values()), [output], stored)
    model = onnx.ModelProto(graph=graph, ir_version=view.proto.ir_version)
    model.opset_import.extend(view.proto.opset_import)
    try:
        session = Session(model, tensor.name)
    except (CannotRun, ValueError):
        return []
    values = []
    for number in (1, 0) if inputs else (1,):
        try:
            values.append(session.run({name: _given(view, name, number) for name in inputs})[0])
        except (CannotRun, ValueError):
            continue
    return values


def _given(view: GraphView, name: str, number: int) -> np.ndarray:
    world = view.worlds[0]
    shape, dtype = world.shape(name), helper.tensor_dtype_to_np_dtype(world.elem_type(name))
    assert shape is not None  # What brings numbers is a tensor, and every world has sizes for it.
    return np.full(shape, number, dtype)


Origins = tuple[set[int], set[str], set[str], dict[str, np.ndarray]]


def _ancestors(view: GraphView, tensor: gs.Tensor) -> Origins | None:
    """Positions of the nodes that make a tensor, the inputs and the weights that they start from, and the numbers, which sizes
    decide: a range up to the number of keys is made from no key. None if it is made from activations, or by too many nodes."""
    positions: set[int] = set()
    inputs: set[str] = set()
    weights: set[str] = set()
    numbers: dict[str, np.ndarray] = {}
    queue = [tensor]
    while queue:
        tensor = queue.pop()
        node = view.producer(tensor)
        if node is None:
            if tensor.name:
                (weights if view.is_weight(tensor) else inputs).add(tensor.name)
            continue
        if (value := view.worlds[0].value(tensor.name)) is not None:
            numbers[tensor.name] = value
            continue
        if node.op in _COMPUTES or len(positions) > MOST_NODES:
            return None
        if view.position(node) not in positions:
            positions.add(view.position(node))
            queue.extend(node.inputs)
    return positions, inputs, weights, numbers
