"""The proof of one block that is computed in another order of its rows."""

from __future__ import annotations

from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.cases import cases
from onnx_attn.prove.compare import RTOL
from onnx_attn.prove.cut import Cutter
from onnx_attn.prove.flips import compare
from onnx_attn.prove.site import run_pair, type_name, typed_case, union_of
from onnx_attn.runtime import CannotRun, Session
from onnx_attn.site import AttentionSite


def prove_order(view: GraphView, cutter: Cutter, site: AttentionSite, edit: SiteEdit) -> str | None:
    """Why the block around a site is not what it was; None if it is.

    Every row is computed by the nodes that computed it before, so the model's own type tells: an order that is wrong is off by
    as much as the values are large.
    """
    start, outputs = set(edit.sources), list(edit.outputs)
    cuts = (cutter.cut(outputs, start), cutter.cut(outputs, start, edit))
    rtol = RTOL[type_name(view, site)]
    try:
        sessions = [Session(cut.model, site.name) for cut in cuts]
        for case in cases(view, site, union_of(*cuts)):
            if case.own:
                found = compare(*run_pair(sessions, cuts, typed_case(view, case)))
                if not found.within(rtol):
                    return f"{case.name}: max_rel {found.max_rel:.1e}, allowed {rtol:.0e}"
    except (CannotRun, ValueError) as error:
        return f"it cannot be proved: {error}"
    return None
