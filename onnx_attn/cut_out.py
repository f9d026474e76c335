"""One site with its projections as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.errors import InputError
from onnx_attn.given import Model, loaded_from
from onnx_attn.graph.load import check
from onnx_attn.graph.save import check_data, check_output, commit, staged, write
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.weights import bring_in
from onnx_attn.progress import stage
from onnx_attn.prove.cut import Cutter
from onnx_attn.reading import find_sites, open_site, site_of
from onnx_attn.site import AttentionSite, Verdict
from onnx_attn.targets.editions import parse_target
from onnx_attn.views.arrange import real
from onnx_attn.views.linear import weight_tensor
from onnx_attn.views.movement import REARRANGE


def extract(model: Model, site: str, output: str | PathLike[str]) -> dict[str, Any]:
    """Write the site of this id (of `inspect`) into `output`: from the projections' sources to the out-projection, masks that are
    no constants as inputs. Returns a report with the names of inputs and outputs.

    Raises InputError, OutputError; UsageError for an id that the model does not have.
    """
    loaded = loaded_from(model)
    target = parse_target("onnx")
    with stage("recognize"):
        view, candidate = open_site(loaded, site_of(site, find_sites(loaded, target)).address, target)
    if isinstance(candidate, Verdict) and candidate.recomputable is not None:
        candidate = candidate.recomputable
    if not isinstance(candidate, AttentionSite):
        reason = candidate.reason if isinstance(candidate, Verdict) else "it is written as an operator of a runtime"
        raise InputError(f"{loaded.name}: {site} cannot be cut out: {reason}; `onnx-attn inspect` shows which can")
    made = _cut(view, candidate)
    bring_in(made.graph.initializer)
    check(made, f"{loaded.name}, {site}")
    path = Path(output)
    check_output(path, Path(model) if isinstance(model, str | PathLike) else None)
    check_data(path, loaded.data_files)
    with stage("save"), staged(path) as draft:
        write(made, draft, loaded.external)
        commit(draft, path)
    names = {kind: [value.name for value in getattr(made.graph, kind)] for kind in ("input", "output")}
    return {
        "model": loaded.name,
        "site": site,
        "softmax": candidate.name,
        "inputs": names["input"],
        "outputs": names["output"],
        "nodes": len(made.graph.node),
    }


def _cut(view: GraphView, site: AttentionSite) -> onnx.ModelProto:
    start = {tensor.name for tensor in _sources(view, site)}
    masks = [real(view, term.mask) for term in site.masks if term.mask is not None]
    start |= {mask.name for mask in masks if view.producer(mask) is not None and view.constant(mask) is None}
    outputs, cutter = [_end(view, site).name], Cutter(view)
    while True:
        cut = cutter.cut(outputs, start, kinds="")
        made = {name for node in cut.model.graph.node for name in node.output}
        # Who asks for a size of what lies above the site is not to bring all of that along.
        sized = {node.input[0] for node in cut.model.graph.node if node.op_type in ("Shape", "Size")} & made
        above = {name for name in sized if not _depends(cut.model, name, start)}
        if not above:
            break
        start |= above
    _name_dims(view, (*cut.model.graph.input, *cut.model.graph.output))
    return cut.model


def _name_dims(view: GraphView, values: Sequence[onnx.ValueInfoProto]) -> None:
    """Sizes that do not vary, and one name for all that vary alike: the model's own, where a dimension of its inputs does."""
    own = view.worlds[0].sizes
    names = {tuple(world.sizes[name] for world in view.worlds): name for name in own}
    for value in values:
        shapes = [world.shape(value.name) for world in view.worlds]
        known = [shape for shape in shapes if shape is not None]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim if len(known) == len(shapes) else ()):
            sizes = tuple(shape[axis] for shape in known)
            if len(set(sizes)) == 1:
                dim.dim_value = sizes[0]
            else:
                dim.dim_param = names.setdefault(sizes, f"size_{len(names)}")


def _depends(model: onnx.ModelProto, name: str, start: set[str]) -> bool:
    """Whether a value is made from what the site starts with."""
    producers = {made: node for node in model.graph.node for made in node.output}
    queue, seen = [name], {name}
    while queue:
        current = queue.pop()
        if current in start:
            return True
        node = producers.get(current)
        fresh = [each for each in (node.input if node is not None else ()) if each and each not in seen]
        seen.update(fresh)
        queue.extend(fresh)
    return False


MOST_NODES = 64
"""Between a projection's source and an operand with more in it, as keys that stand behind a past."""


def _sources(view: GraphView, site: AttentionSite) -> list[gs.Tensor]:
    """What the projections read, and the operands that are made from none of that."""
    projected = site.projection.operands if site.projection is not None else (None, None, None)
    own = [layer.layer.source for layer in projected if layer is not None]
    names = {tensor.name for tensor in own}
    others = [o.whole.source for layer, o in zip(projected, site.operands, strict=True) if layer is None]
    return own + [tensor for tensor in others if not _made_from(view, tensor, names)]


def _made_from(view: GraphView, tensor: gs.Tensor, names: set[str]) -> bool:
    queue, seen = [tensor], {tensor.name}
    while queue and len(seen) <= MOST_NODES:
        current = queue.pop(0)
        if current.name in names:
            return True
        node = view.producer(current)
        fresh = [each for each in (node.inputs if node is not None else ()) if each.name and each.name not in seen]
        seen.update(each.name for each in fresh)
        queue.extend(fresh)
    return False


def _end(view: GraphView, site: AttentionSite) -> gs.Tensor:
    """The result of the layer that follows directly, or of the movement before another thing does."""
    tensor, layer = site.output, False
    while True:
        readers = view.readers(tensor)
        if len(readers) != 1 or view.is_output(tensor) or not view.in_main_graph(readers[0]):
            return tensor
        node = readers[0]
        weights = sum(weight_tensor(view, each) is not None or view.is_weight(each) for each in node.inputs[1:2])
        if not layer and node.op in REARRANGE and node.inputs[0] is tensor:
            tensor = node.outputs[0]
        elif not layer and node.op in ("MatMul", "Gemm") and node.inputs[0] is tensor and weights:
            tensor, layer = node.outputs[0], True
            if node.op == "Gemm":
                return tensor
        elif layer and node.op == "Add" and any(view.is_weight(each) for each in node.inputs):
            return node.outputs[0]
        else:
            return tensor
