"""A packed projection that serves somebody else too: Q and K of a site whose probabilities are read elsewhere.

The product on packed weights is split on its last axis, and the parts take over what the single layers made: who reads those
reads on, and no weight is stored twice. Measured with TensorRT for RTX 1.7.1, two layers of BERT that return their attention
weights, half precision: 22 kernels, 28 as exported, 26 with the three layers left, 23 split by heads for the site.
"""

from __future__ import annotations

from onnx_attn.forms.in_proj import InProj
from onnx_attn.forms.owning import is_own
from onnx_attn.forms.packed_gemm import write_projection
from onnx_attn.forms.packing import Group
from onnx_attn.graph.edit import Splice, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite


def write_served(writer: Writer, view: GraphView, group: Group, in_proj: InProj) -> tuple[Splice, str]:
    """What makes the results of the group's layers, at the first of them, and the packed result's name."""
    ahead = Writer(writer.names, writer.prefix, initializers=writer.initializers, exact=writer.exact)
    layers = [member.layer for member in group.members]
    projected = write_projection(ahead, group, in_proj, group.source.name, bias=True)
    sizes = ahead.shape(*(layer.channels for layer in layers))
    parts = ahead.add("Split", [projected, sizes], "in_proj_split", outputs=len(layers), axis=-1)
    outputs = [layer.output.name for layer in layers]
    ahead.nodes[-1].output[:] = outputs
    assert len(parts) == len(outputs)
    producers = [view.producer(layer.output) for layer in layers]
    first = min(view.position(producer) for producer in producers if producer is not None)
    return Splice(first, tuple(ahead.nodes), tuple(outputs)), projected


def serves(view: GraphView, site: AttentionSite, group: Group) -> bool:
    """Whether the projection stands and others read it: as where it was packed for them too."""
    layers = [(member.role, member.layer) for member in group.members]
    return group.reuses_output and len(layers) > 1 and not is_own(view, site, layers)
