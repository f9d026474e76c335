"""Sites that are alike: the same operators on values of the same types and shapes, before and after, whatever their weights."""

from __future__ import annotations

from onnx_attn.graph.alike import digest
from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.cut import Cut, Cutter, boundary
from onnx_attn.site import AttentionSite


def signature(view: GraphView, cutter: Cutter, site: AttentionSite, edit: SiteEdit) -> tuple[object, ...]:
    """Equal for sites whose proof would run the same nodes at the same sizes."""
    start, outputs = boundary(view, site, edit).difference(edit.folded), list(edit.outputs)
    cuts = (cutter.cut(outputs, start), cutter.cut(outputs, start, edit))
    return (edit.algebra, edit.island, edit.scale and edit.scale.exact, *(structure(view, cut) for cut in cuts))


def structure(view: GraphView, cut: Cut) -> str:
    """Of one piece. In every world: the shapes of what is given, and the values of what sizes decide."""
    told = {name: [world.shape(name) for world in view.worlds] for name in cut.inputs}
    return digest(cut.model, told | {name: [str(world.value(name)) for world in view.worlds] for name in cut.known})
