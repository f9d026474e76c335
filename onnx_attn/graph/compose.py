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
INITIALIZERS_ALONE_IR = 4


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
    nodes, gone = _spliced(graph, edits, uses)
    kept, dead = _without_dead(nodes, _may_go(edits, used_before), uses, outputs)
    gone = gone.difference(*(edit.outputs for edit in edits)) | dead
    del graph.node[:]
    graph.node.extend(kept)
    gone |= _replace_initializers(graph, edits, used_before, uses, outputs)
    _list_among_inputs(model, edits)
    _drop_annotations(graph, gone)
    _add_functions(model, edits)
    _add_domains(model, edits)
    return model


def _spliced(
    graph: onnx.GraphProto, edits: Sequence[SiteEdit], uses: Counter[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The node list with each splice before the node whose values it takes over, and without that node; and the values
    that such nodes made."""
    gone: set[str] = set()
    replaced = {name for edit in edits for name in edit.outputs}
    by_position: dict[int, list[onnx.NodeProto]] = {}
    made_anew: set[str] = set()
    for edit in edits:
        for splice in edit.splices:
            # Sites that share a value may each bring what makes it; once is enough.
            if not splice.outputs or not made_anew.issuperset(splice.outputs):
                made_anew.update(splice.outputs)
                by_position.setdefault(splice.position, []).extend(splice.nodes)
    nodes: list[onnx.NodeProto] = []
    for position, node in enumerate(graph.node):
        for fresh in by_position.get(position, ()):
            uses.update(reads(fresh))
            nodes.append(fresh)
        if not replaced.isdisjoint(made := list(node.output)):
            uses.subtract(reads(node))
            gone.update(made)
        else:
            nodes.append(node)
    return nodes, gone


def _may_go(edits: Sequence[SiteEdit], used_before: Counter[str]) -> Set[str]:
    """Values whose node may be removed when nobody reads them: those that were read before, and new ones."""
    return used_before.keys() | {name for edit in edits for node in edit.nodes for name in node.output}


def _without_dead(
    nodes: list[onnx.NodeProto], may_go: Set[str], uses: Counter[str], outputs: set[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Remove nodes whose every output lost its last reader through the edits, and so on upwards; and the values that
    went with them."""
    kept: list[onnx.NodeProto] = []
    dead: set[str] = set()
    for node in reversed(nodes):
        made = list(node.output)
        if any(uses.get(name, 0) or name in outputs for name in made) or may_go.isdisjoint(made):
            kept.append(node)
        else:
            for name in reads(node):
                uses[name] -= 1
            dead.update(made)
    return kept[::-1], dead


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
    for first, last in _runs(dropped):
        del graph.initializer[first : last + 1]
    # IR 3 and below list all initializers among the inputs; later ones that stand there are pinned.
    for position in reversed([i for i, value in enumerate(graph.input) if value.name in gone]):
        del graph.input[position]
    fresh = {tensor.name: tensor for edit in edits for tensor in edit.initializers if uses[tensor.name]}
    graph.initializer.extend(fresh.values())
    return gone


def _list_among_inputs(model: onnx.ModelProto, edits: Sequence[SiteEdit]) -> None:
    """Before IR 4 every initializer has to stand among the inputs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    fresh = {tensor.name: tensor for edit in edits for tensor in edit.initializers if tensor.name in stored}
    if model.ir_version < INITIALIZERS_ALONE_IR and not any(edit.functions for edit in edits):
        model.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in fresh.values()
        )


def _runs(positions: list[int]) -> list[tuple[int, int]]:
    """Neighbouring positions as (first, last), the last run first: deleting one by one would move the rest each time."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position - 1:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    return runs[::-1]


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


def _add_domains(model: onnx.ModelProto, edits: Sequence[SiteEdit]) -> None:
    """Operators of a runtime's own domain want it imported."""
    imported = {entry.domain for entry in model.opset_import} | {"", DOMAIN}
    for domain in sorted({node.domain for edit in edits for node in edit.nodes} - imported):
        model.opset_import.append(helper.make_opsetid(domain, VERSION))


def _uses(nodes: Iterable[onnx.NodeProto]) -> Counter[str]:
    return Counter(name for node in nodes for name in reads(node))
