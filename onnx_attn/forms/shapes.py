"""Keep what reads only the shape of a value that the rewriting removes.

Exporters ask a projection's result for its sizes (`Shape → Gather → Concat → Reshape`). Left alone, such a reader would
keep the old projection computing beside the packed one; the sizes are known from the source as well.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import Dim, base_dims, layout_dims, write_shape_vector
from onnx_attn.graph.edit import Names, Splice, Writer
from onnx_attn.graph.view import GraphView, label
from onnx_attn.graph.world import Shape
from onnx_attn.site import AttentionSite
from onnx_attn.views.linear import row_index, rows
from onnx_attn.views.trace import Trace, layout_of


def redirect_shapes(view: GraphView, names: Names, site: AttentionSite, packed: bool) -> tuple[list[Splice], Writer]:
    """For every Shape node on Q's, K's or V's way down from its base (the projection's source, or the trace's): the
    same sizes, computed from the base."""
    writer = Writer(names, site.name)
    splices: list[Splice] = []
    done: set[int] = set()
    for position, operand in enumerate((site.query, site.key, site.value)):
        layer = site.projection.layers[position] if packed and site.projection else None
        base = layer.source if layer else operand.trace.source
        shapes = rows(view, layer) if layer else view.shapes(base)
        if shapes is None:
            continue
        start = row_index(view, layer) if layer else None
        for tensor in _on_the_way(view, operand.trace, base, layer is not None):
            for reader in view.readers(tensor):
                if reader.op == "Shape" and id(reader) not in done and view.in_main_graph(reader):
                    done.add(id(reader))
                    dims = _dims(view, operand.trace, shapes, start, tensor)
                    if dims is not None:
                        splices.append(_splice(view, writer, reader, base.name, dims))
    return splices, writer


def _on_the_way(view: GraphView, trace: Trace, base: gs.Tensor, projected: bool) -> list[gs.Tensor]:
    """The tensors between the base and the operand; of a projection also the product before its bias."""
    tensors = [step.output for step in trace.steps]
    if projected:
        tensors.append(trace.source)
        node = view.producer(trace.source)
        if node is not None and node.op == "Add":
            tensors.extend(t for t in node.inputs if (p := view.producer(t)) is not None and p.op == "MatMul")
    return tensors


def _dims(
    view: GraphView, trace: Trace, shapes: tuple[Shape, ...], start: list[np.ndarray] | None, tensor: gs.Tensor
) -> list[Dim] | None:
    base = base_dims(shapes)
    on_trace = any(step.output is tensor for step in trace.steps)
    layout = layout_of(view, trace, shapes, start, upto=tensor if on_trace else trace.source)
    return layout_dims(layout, base) if layout is not None else None


def _splice(view: GraphView, writer: Writer, node: gs.Node, base: str, dims: list[Dim]) -> Splice:
    dims = dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    output = node.outputs[0].name
    part = Writer(writer.names, label(node), initializers=writer.initializers)
    write_shape_vector(part, base, dims, output)
    return Splice(view.position(node), tuple(part.nodes), (output,))
