"""Keep what reads only the shape of a value that the rewriting removes.

Exporters ask a projection's result for its sizes (`Shape → Gather → Concat → Reshape`). Left alone, such a reader would
keep the old projection computing beside the packed one; the sizes are known from the source as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import Dim, base_dims, layout_dims, write_shape_vector
from onnx_attn.graph.edit import Names, Splice, Writer
from onnx_attn.graph.view import GraphView, label
from onnx_attn.site import AttentionSite
from onnx_attn.views.linear import Linear, rows
from onnx_attn.views.movement import layout_of
from onnx_attn.views.trace import Trace


def redirect_shapes(view: GraphView, names: Names, site: AttentionSite) -> tuple[list[Splice], Writer]:
    """For every Shape node on Q's, K's or V's way down from a projection that is packed anew: the same sizes, computed
    from the projection's source."""
    assert site.projection is not None
    writer = Writer(names, site.name)
    splices: list[Splice] = []
    done: set[int] = set()
    for layer, operand in zip(site.projection.layers, (site.query, site.key, site.value), strict=True):
        for tensor, steps in _on_the_way(view, operand.trace):
            for reader in view.readers(tensor):
                if reader.op == "Shape" and id(reader) not in done and view.in_main_graph(reader):
                    done.add(id(reader))
                    dims = _dims(view, operand.trace, layer, steps)
                    if dims is not None:
                        splices.append(_splice(view, writer, reader, layer.source.name, dims))
    return splices, writer


def _on_the_way(view: GraphView, trace: Trace) -> Iterator[tuple[gs.Tensor, int]]:
    """The tensors from the projection's result to the operand, with the number of steps behind them; and the product
    before its bias."""
    yield trace.source, 0
    for number, step in enumerate(trace.steps, 1):
        yield step.output, number
    node = view.producer(trace.source)
    if node is not None and node.op == "Add":
        for tensor in node.inputs:
            if (producer := view.producer(tensor)) is not None and producer.op == "MatMul":
                yield tensor, 0


def _dims(view: GraphView, trace: Trace, layer: Linear, steps: int) -> list[Dim] | None:
    shapes = rows(view, layer)
    layout = layout_of(view, shapes, trace.steps[:steps], layer.moves)
    return layout_dims(layout, base_dims(shapes)) if layout is not None else None


def _splice(view: GraphView, writer: Writer, node: gs.Node, base: str, dims: list[Dim]) -> Splice:
    dims = dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    output = node.outputs[0].name
    part = Writer(writer.names, label(node), initializers=writer.initializers)
    write_shape_vector(part, base, dims, output)
    return Splice(view.position(node), tuple(part.nodes), (output,))
