"""Put a journal of edits into the original model: the one place where a model is changed.

Chosen against graphsurgeon's exporter, which rebuilds every node and drops what its data model does not hold (doc
strings, metadata, quantization annotations, overloads, …): here every part that no edit touches stays the very message
that was loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import onnx
from onnx import helper

from onnx_attn.domain import DOMAIN, VERSION
from onnx_attn.graph.edit import SiteEdit, reads

FUNCTIONS_NEED_IR = 8


def compose(model: onnx.ModelProto, edits: Sequence[SiteEdit]) -> onnx.ModelProto:
    """Apply the edits to `model` in place and return it.

    Nodes that only fed what was replaced are removed, and so are initializers and annotations that nothing else uses;
    what was unused before stays. Cost: one pass over nodes and names.
    """
    if not edits:
        return model
    graph = model.graph
    used_before = _uses(graph.node)
    nodes = _spliced(graph, edits)
    nodes = _without_dead(nodes, graph, used_before)
    values_before = {name for node in graph.node for name in node.output}
    del graph.node[:]
    graph.node.extend(nodes)
    _replace_initializers(graph, edits, used_before)
    _drop_annotations(graph, values_before)
    _add_functions(model, edits)
    return model


def _spliced(graph: onnx.GraphProto, edits: Sequence[SiteEdit]) -> list[onnx.NodeProto]:
    """The node list with each splice before the node whose values it takes over; that node's outputs become free."""
    replaced = {name for edit in edits for name in edit.outputs}
    by_position: dict[int, list[onnx.NodeProto]] = {}
    for edit in edits:
        for splice in edit.splices:
            by_position.setdefault(splice.position, []).extend(splice.nodes)
    nodes: list[onnx.NodeProto] = []
    for position, node in enumerate(graph.node):
        nodes.extend(by_position.get(position, ()))
        if not any(name in replaced for name in node.output):
            nodes.append(node)
    return nodes


def _without_dead(
    nodes: list[onnx.NodeProto], graph: onnx.GraphProto, used_before: Counter[str]
) -> list[onnx.NodeProto]:
    """Remove nodes whose every output lost its last reader through the edits, and so on upwards."""
    uses = _uses(nodes)
    outputs = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        was_used = any(used_before[name] or name in outputs for name in node.output)
        is_used = any(uses[name] or name in outputs for name in node.output)
        if was_used and not is_used:
            for name in reads(node):
                uses[name] -= 1
        else:
            kept.append(node)
    return kept[::-1]


def _replace_initializers(graph: onnx.GraphProto, edits: Sequence[SiteEdit], used_before: Counter[str]) -> None:
    uses = _uses(graph.node)
    outputs = {value.name for value in graph.output}
    dropped = [
        position
        for position, tensor in enumerate(graph.initializer)
        if used_before[tensor.name] and not uses[tensor.name] and tensor.name not in outputs
    ]
    gone = {graph.initializer[position].name for position in dropped}
    for position in reversed(dropped):
        del graph.initializer[position]
    # IR 3 and below list initializers among the inputs.
    for position in reversed([i for i, value in enumerate(graph.input) if value.name in gone]):
        del graph.input[position]
    fresh = {tensor.name: tensor for edit in edits for tensor in edit.initializers if uses[tensor.name]}
    graph.initializer.extend(fresh.values())


def _drop_annotations(graph: onnx.GraphProto, values_before: set[str]) -> None:
    """Types and quantization notes of values that are gone; annotations of everything else stay."""
    gone = values_before - {name for node in graph.node for name in node.output}
    for field in (graph.value_info, graph.quantization_annotation):
        positions = [
            i for i, entry in enumerate(field) if getattr(entry, "name", None) in gone or getattr(entry, "tensor_name", None) in gone
        ]
        for position in reversed(positions):
            del field[position]


def _add_functions(model: onnx.ModelProto, edits: Sequence[SiteEdit]) -> None:
    present = {(f.domain, f.name) for f in model.functions}
    functions = {(f.domain, f.name): f for edit in edits for f in edit.functions}
    model.functions.extend(function for key, function in functions.items() if key not in present)
    if functions:
        model.ir_version = max(model.ir_version, FUNCTIONS_NEED_IR)
        if not any(entry.domain == DOMAIN for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _uses(nodes: Iterable[onnx.NodeProto]) -> Counter[str]:
    uses: Counter[str] = Counter()
    for node in nodes:
        uses.update(reads(node))
    return uses
