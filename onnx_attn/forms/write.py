"""One decision of the plan becomes one record in the journal of edits."""

from __future__ import annotations

from collections.abc import Set

from onnx_attn.forms.function import write_function_call
from onnx_attn.forms.masks import fold_masks
from onnx_attn.forms.operands import write_operands
from onnx_attn.forms.packed_gemm import write_merged, write_packed
from onnx_attn.forms.packing import Packing
from onnx_attn.forms.primitives import write_primitives
from onnx_attn.forms.shapes import redirect_shapes
from onnx_attn.graph.edit import Names, SiteEdit, Splice, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite


def write_site(
    view: GraphView,
    names: Names,
    site: AttentionSite,
    form: str,
    packing: Packing | None,
    reserved: Set[str] = frozenset(),
) -> SiteEdit:
    """Write `site` in `form` (`function` or `primitives`), with a packed in-projection if `packing` is given.

    reserved: the values that are made anew by this and the other sites.
    """
    writer = Writer(names, site.name)
    output = site.output.name
    if packing is not None:
        operands, scale, rank = write_packed(writer, view, packing), site.scale, packing.rank
        reshaped = packing.merged is not None
    else:
        operands, scale = write_operands(writer, view, site, form)
        rank, reshaped = view.rank(site.query.tensor) or 0, False
    attention = names.value(f"{site.name}/attention_heads") if reshaped else output
    functions, rounding = [], 0.0
    if form == "function":
        functions.append(write_function_call(writer, site, operands, scale, rank, attention, view))
    else:
        rounding = write_primitives(writer, view, site, operands, scale, rank, attention)
    if packing is not None and reshaped:
        write_merged(writer, packing, attention, output)
    producer = view.producer(site.output)
    assert producer is not None
    main = Splice(view.position(producer), tuple(writer.nodes), (output,))
    folds = fold_masks(view, writer, site, reserved)
    initializers, splices = writer.initializers, [main]
    if packing is not None:
        shapes, shape_writer = redirect_shapes(view, names, site)
        initializers, splices = initializers | shape_writer.initializers, [*shapes, main]
    weights, folded = tuple(initializers.values()), tuple(name for fold in folds for name in fold.outputs)
    return SiteEdit(site.name, (*folds, *splices), weights, tuple(functions), packing is not None, rounding, folded)
