"""The proof of a piece of a graph that is written in another way, as a block in another order of its rows, or a rotary embedding
as one operator: run before and after, in the model's own type."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.cases import between_of, cases
from onnx_attn.prove.compare import RTOL
from onnx_attn.prove.cut import Cutter
from onnx_attn.prove.flips import compare
from onnx_attn.prove.judge import run_pair, type_name, typed_case, union_of
from onnx_attn.runtime import CannotRun, Session
from onnx_attn.site import AttentionSite


def prove_piece(view: GraphView, cutter: Cutter, edit: SiteEdit, site: AttentionSite | None = None) -> str | None:
    """Why what an edit makes is not what it was; None if it is. site: the one that lies within, whose masks are tried.

    Values are computed by the nodes that computed them before, or as an operator is defined, so the model's own type tells: an
    order that is wrong is off by as much as the values are large. (There is no RotaryEmbedding of float64 to run.)
    """
    start, outputs = set(edit.sources), list(edit.outputs)
    cuts = (cutter.cut(outputs, start), cutter.cut(outputs, start, edit))
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(view.worlds[0].elem_type(outputs[0])))
    rtol = RTOL[type_name(view, site) if site is not None else dtype.name]
    try:
        sessions = [Session(cut.model, edit.site) for cut in cuts]
        between = between_of(view, site, start, outputs) if site is not None else None
        for case in cases(view, between, union_of(*cuts)):
            if site is not None and not case.own:
                continue
            found = compare(*run_pair(sessions, cuts, typed_case(view, case)))
            if not found.within(rtol):
                return f"{case.name}: {found.told(rtol)}"
    except (CannotRun, ValueError, MemoryError) as error:
        return f"it cannot be proved: {error}"
    return None
