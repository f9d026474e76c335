"""A cut-out piece of a model as something to draw: nodes with what they hold, the values between them, sizes on each."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper

from onnx_attn.counting.flatten import fixed_role
from onnx_attn.counting.roles import MOVEMENT, WEIGHTED
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.view import called
from onnx_attn.graph.world import Known, Shape, World, stored_value
from onnx_attn.recognize.candidates import SOFTMAXES

Drawing = dict[str, Any]
"""`nodes`: dicts of `op`, `name`, `kind` (input, output, attention, projection, movement, other), `holds` (what is stored in
it or said by its attributes), `gives` (its results, as text) and `body` (what a function of ours does, operator by operator).
`edges`: pairs of places in `nodes`. `drawn`: whether that is few enough to be drawn."""

MOST_NODES = 120
"""In one drawing: more cannot be taken in, and a piece that is larger is told and not drawn."""
_NAMED = 6
"""Elements of a stored constant that are written out."""


def draw(
    model: onnx.ModelProto, worlds: Sequence[World], labels: Mapping[str, str], told_of: Mapping[str, str] = {}
) -> Drawing:
    """A piece whose inputs are values of `worlds`; sizes that differ between these are given by name. labels: what users call
    nodes that were renamed. told_of: what is to be said of inputs, by name.

    Whole numbers that sizes decide are left out, inputs and nodes: the arithmetic of shapes is not what is looked at.
    """
    found = [_inferred(model, world) for world in worlds]
    told, sized = _told(found, worlds), {name for name, known in found[0].items() if _is_size(known)}
    weights = {tensor.name: tensor for tensor in model.graph.initializer} | _constants(model)
    nodes: list[Drawing] = []
    edges: list[tuple[int, int]] = []
    maker: dict[str, int] = {}
    for value in model.graph.input:
        if value.name not in sized:
            maker[value.name] = len(nodes)
            nodes.append(_end("input", value.name, told))
            nodes[-1]["holds"] += [told_of[value.name]] if value.name in told_of else []
    for node in model.graph.node:
        if all(name in sized or name in weights for name in node.output):
            continue
        place = len(nodes)
        nodes.append(_node(model, node, weights, told))
        nodes[-1]["name"] = labels.get(nodes[-1]["name"], nodes[-1]["name"])
        edges += [(maker[name], place) for name in dict.fromkeys(node.input) if name in maker]
        maker |= dict.fromkeys((name for name in node.output if name), place)
    for value in model.graph.output:
        if value.name in maker:
            edges.append((maker[value.name], len(nodes)))
            nodes.append(_end("output", value.name, told))
    return {"nodes": nodes, "edges": edges, "drawn": len(nodes) <= MOST_NODES}


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """What Constant nodes hold is told of those that read it."""
    nodes = [node for node in model.graph.node if node.op_type == "Constant"]
    return {node.output[0]: each.t for node in nodes for each in node.attribute if each.name == "value"}


def _is_size(known: Known) -> bool:
    return known.value is not None and known.value.dtype.kind in "iu"


def _end(kind: str, name: str, told: Mapping[str, str]) -> Drawing:
    return {"op": name, "name": "", "kind": kind, "holds": [], "gives": told.get(name, ""), "body": []}


def _node(
    model: onnx.ModelProto, node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], told: Mapping[str, str]
) -> Drawing:
    ours = [each for each in model.functions if (each.domain, each.name) == (node.domain, node.op_type)]
    return {
        "op": node.op_type,
        "name": called(node),
        "kind": _kind(node, weights),
        "holds": [_stored(weights[name]) for name in node.input if name in weights] + _attributes(node),
        "gives": _gives([told[name] for name in node.output if name in told]),
        "body": [inner.op_type for inner in ours[0].node] if ours else [],
    }


def _gives(results: list[str]) -> str:
    """Of equal results one: `3 × 1×12×197×64 float16`."""
    counts = Counter(results)
    return ", ".join(f"{count} × {text}" if count > 1 else text for text, count in counts.items())


def _kind(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> str:
    if role := fixed_role(node):
        return role
    if node.op_type in WEIGHTED:
        wide = [name for name in node.input if name in weights and len(weights[name].dims) >= WEIGHTED[node.op_type]]
        return "projection" if wide else "attention"
    return "attention" if node.op_type in SOFTMAXES else "movement" if node.op_type in MOVEMENT else "other"


def _stored(tensor: onnx.TensorProto) -> str:
    """A weight by its sizes, a constant of few elements by its numbers."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL and math.prod(tensor.dims) <= _NAMED:
        numbers = onnx.numpy_helper.to_array(tensor)
        if numbers.dtype.kind in "biuf" or tensor.data_type in _SMALL_FLOATS:
            return ", ".join(_number(each) for each in np.asarray(numbers, object).reshape(-1)) or "nothing"
    return f"{_type(tensor.data_type)} {sizes_text(list(tensor.dims))}"


_SMALL_FLOATS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def _number(value: Any) -> str:
    return str(value) if isinstance(value, bool | int) else f"{float(value):.6g}"


def _attributes(node: onnx.NodeProto) -> list[str]:
    found = []
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS, onnx.AttributeProto.TENSOR):
            continue
        value = helper.get_attribute_value(attribute)
        if _is_default(node, attribute):
            continue
        if attribute.name == "to" and node.op_type == "Cast":
            found.append(f"to {_type(value)}")
        elif isinstance(value, list | tuple):
            found.append(f"{attribute.name} {' '.join(map(_shown, value[: 2 * _NAMED]))}")
        else:
            found.append(f"{attribute.name} {_shown(value)}")
    return found


def _is_default(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    """Whether an attribute says what holds without it, in the newest version of the operator."""
    if not defs.has(node.op_type, node.domain):
        return False
    known = defs.get_schema(node.op_type, node.domain).attributes
    default = known[attribute.name].default_value if attribute.name in known else None
    return default is not None and default.type == attribute.type and default == attribute


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else _number(value)


def _told(found: Sequence[Mapping[str, Known]], worlds: Sequence[World]) -> dict[str, str]:
    """The type and sizes of every value of the piece, as text."""
    names = {tuple(world.sizes[name] for world in worlds): name for name in worlds[0].sizes}
    told = {}
    for name, first in found[0].items():
        shapes = [each[name].shape if name in each else None for each in found]
        told[name] = f"{sizes_text(_sizes(shapes, names))} {_type(first.elem_type)}"
    return told


def _inferred(model: onnx.ModelProto, world: World) -> dict[str, Known]:
    """What follows from the inputs of a piece."""
    piece = onnx.ModelProto()
    piece.opset_import.extend(model.opset_import)
    piece.functions.extend(model.functions)
    piece.ir_version = model.ir_version
    inference = Inference(piece)
    inside = World({})
    inside.known = {value.name: world.known[value.name] for value in model.graph.input if value.name in world.known}
    for tensor in model.graph.initializer:
        inside.known[tensor.name] = stored_value(tensor)
    for node in model.graph.node:
        inputs = [inside.known.get(name) if name else None for name in node.input]
        for name, known in zip(node.output, inference.outputs(node, inputs, inside), strict=False):
            if known is not None:
                inside.known[name] = known
    return inside.known


def _sizes(shapes: Sequence[Shape | None], names: Mapping[tuple[int, ...], str]) -> list[int | str] | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len({len(shape) for shape in known}) != 1:
        return None
    return [sizes[0] if len(set(sizes)) == 1 else _varying(sizes, names) for sizes in zip(*known, strict=True)]


def _varying(sizes: tuple[int, ...], names: Mapping[tuple[int, ...], str]) -> str:
    """A size that differs from world to world: a dimension's name, or the one multiple, product or sum of dimensions that fits
    (`4·batch`); "?" where none does, or several do by chance."""
    if sizes in names:
        return names[sizes]
    known = {each: name for each, name in names.items() if 0 not in each}
    products = {tuple(map(operator.mul, a, b)): f"{known[a]}·{known[b]}" for a in known for b in known}
    found = []
    for parts, text in (known | products).items():
        times = {size / part for size, part in zip(sizes, parts, strict=True)}
        if len(times) == 1 and (count := times.pop()) == int(count):
            found.append(text if count == 1 else f"{int(count)}·{text}")
    for parts, text in known.items():
        more = {size - part for size, part in zip(sizes, parts, strict=True)}
        if len(more) == 1 and (count := more.pop()) > 0:
            found.append(f"{text}+{count}")
    return found[0] if len(found) == 1 else "?"


def sizes_text(sizes: Sequence[int | str] | None) -> str:
    return "?" if sizes is None else "×".join(map(str, sizes)) or "scalar"


def _type(elem_type: int) -> str:
    name = onnx.TensorProto.DataType.Name(elem_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
