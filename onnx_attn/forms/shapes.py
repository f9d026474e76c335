"""Keep what reads only the shape of a value that the rewriting removes.

Exporters ask a projection's result for its sizes (`Shape → Gather → Concat → Reshape`). Left alone, such a reader would
keep the old projection computing beside the packed one; the sizes are known from the source as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import Dim, base_dims, layout_dims, write_shape_vector
from onnx_attn.forms.owning import asks_shape, reads_shape
from onnx_attn.forms.packing import Packing
from onnx_attn.graph.edit import Splice, Writer
from onnx_attn.graph.view import GraphView, label
from onnx_attn.site import AttentionSite
from onnx_attn.views.linear import Linear, rows
from onnx_attn.views.movement import Step, layout_of


def redirect_shapes(
    view: GraphView, writer: Writer, site: AttentionSite, packing: Packing, sources: Mapping[int, str]
) -> list[Splice]:
    """For every Shape node on Q's, K's or V's way down from a projection that is packed anew: the same sizes, computed
    from the projection's source, which `sources` names by role."""
    splices: list[Splice] = []
    done: set[int] = set()
    for role, (_, member) in packing.members.items():
        for tensor, steps in _on_the_way(view, member.layer, site.operands[role].whole.steps):
            for reader in view.readers(tensor):
                if id(reader) not in done and reads_shape(view, reader):
                    done.add(id(reader))
                    dims = _dims(view, member.layer, steps)
                    if dims is not None:
                        splices.append(_splice(view, writer, reader, sources[role], dims))
    return splices


def _on_the_way(view: GraphView, layer: Linear, steps: Sequence[Step]) -> Iterator[tuple[gs.Tensor, tuple[Step, ...]]]:
    """The tensors from the projection's result to the operand, with the steps behind them, and what is moved aside from
    these to be asked for its shape; and the product before its bias."""
    way = [(layer.output, ()), *((step.output, tuple(steps[:number])) for number, step in enumerate(steps, 1))]
    for tensor, behind in way:
        yield tensor, behind
        for reader in view.readers(tensor):
            if not reads_shape(view, reader) and asks_shape(view, reader):
                yield reader.outputs[0], (*behind, Step(reader, reader.outputs[0]))
    if layer.product.outputs[0] is not layer.output:
        yield layer.product.outputs[0], ()


def _dims(view: GraphView, layer: Linear, steps: Sequence[Step]) -> list[Dim] | None:
    shapes = rows(view, layer)
    layout = layout_of(view, shapes, steps, layer.moves)
    return layout_dims(layout, base_dims(shapes)) if layout is not None else None


def _splice(view: GraphView, writer: Writer, node: gs.Node, base: str, dims: list[Dim]) -> Splice:
    dims = dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    output = node.outputs[0].name
    part = Writer(writer.names, label(node), initializers=writer.initializers)
    write_shape_vector(part, base, dims, output)
    return Splice(view.position(node), tuple(part.nodes), (output,))
