"""Put a journal of edits into the original model: the one place where a model is changed.

Chosen against graphsurgeon's exporter, which rebuilds every node and drops what its data model does not hold (doc
strings, metadata, quantization annotations, overloads, …): here every part that no edit touches stays the very message
that was loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set

import onnx
from onnx import helper

from onnx_attn.domain import DOMAIN, VERSION
from onnx_attn.graph.edit import SiteEdit, named_outside, reads
from onnx_attn.graph.world import overridable

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
    uses = used_before.copy()
    outputs = {value.name for value in graph.output} | named_outside(model) | overridable(model)
    kept = _without_dead(_spliced(graph, edits, uses), _may_go(edits, used_before), uses, outputs)
    gone = {name for node in graph.node for name in node.output} - {name for node in kept for name in node.output}
    del graph.node[:]
    graph.node.extend(kept)
    gone |= _replace_initializers(graph, edits, used_before, uses, outputs)
    _drop_annotations(graph, gone)
    _add_functions(model, edits)
    return model


def _spliced(graph: onnx.GraphProto, edits: Sequence[SiteEdit], uses: Counter[str]) -> list[onnx.NodeProto]:
    """The node list with each splice before the node whose values it takes over, and without that node."""
    replaced = {name for edit in edits for name in edit.outputs}
    by_position: dict[int, list[onnx.NodeProto]] = {}
    for edit in edits:
        for splice in edit.splices:
            by_position.setdefault(splice.position, []).extend(splice.nodes)
    nodes: list[onnx.NodeProto] = []
    for position, node in enumerate(graph.node):
        for fresh in by_position.get(position, ()):
            uses.update(reads(fresh))
            nodes.append(fresh)
        if any(name in replaced for name in node.output):
            uses.subtract(reads(node))
        else:
            nodes.append(node)
    return nodes


def _may_go(edits: Sequence[SiteEdit], used_before: Counter[str]) -> Set[str]:
    """Values whose node may be removed when nobody reads them: those that were read before, and new ones."""
    return used_before.keys() | {name for edit in edits for node in edit.nodes for name in node.output}


def _without_dead(
    nodes: list[onnx.NodeProto], may_go: Set[str], uses: Counter[str], outputs: set[str]
) -> list[onnx.NodeProto]:
    """Remove nodes whose every output lost its last reader through the edits, and so on upwards."""
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if any(uses[name] or name in outputs for name in node.output) or may_go.isdisjoint(node.output):
            kept.append(node)
        else:
            uses.subtract(reads(node))
    return kept[::-1]


def _replace_initializers(
    graph: onnx.GraphProto,
    edits: Sequence[SiteEdit],
    used_before: Counter[str],
    uses: Counter[str],
    outputs: set[str],
) -> set[str]:
    """Drop weights that lost their last reader, add the edits' own; returns the names that are gone."""
    dropped = [
        position
        for position, tensor in enumerate(graph.initializer)
        if used_before[tensor.name] and not uses[tensor.name] and tensor.name not in outputs
    ]
    gone = {graph.initializer[position].name for position in dropped}
    for position in reversed(dropped):
        del graph.initializer[position]
    # IR 3 and below list all initializers among the inputs; later ones that stand there are pinned.
    for position in reversed([i for i, value in enumerate(graph.input) if value.name in gone]):
        del graph.input[position]
    fresh = {tensor.name: tensor for edit in edits for tensor in edit.initializers if uses[tensor.name]}
    graph.initializer.extend(fresh.values())
    return gone


def _drop_annotations(graph: onnx.GraphProto, gone: set[str]) -> None:
    """Types and quantization notes of values that are gone; annotations of everything else stay."""
    for field in (graph.value_info, graph.quantization_annotation):
        positions = [
            i
            for i, entry in enumerate(field)
            if getattr(entry, "name", None) in gone or getattr(entry, "tensor_name", None) in gone
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
