"""A decision of the plan becomes an edit: as it was decided, as far as numbers allow."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from onnx_attn.algebra.choose import NOTHING
from onnx_attn.decision import Decision
from onnx_attn.forms.write import write_site
from onnx_attn.graph.edit import Names, SiteEdit
from onnx_attn.graph.rounding import RoundsBadlyError
from onnx_attn.graph.view import GraphView


def write_decided(
    view: GraphView, names: Names, decision: Decision, reserved: Set[str]
) -> tuple[Decision, dict[str, str], SiteEdit]:
    """The edit of one site: without algebra where its numbers do not fit their type; without packing where weights cannot be
    computed beforehand. With what was decided in the end, and the identities that were left out, each with its reason."""
    left: dict[str, str] = {}
    while True:
        claims = names.claims
        try:
            return decision, left, write_site(view, names, decision.site, decision, reserved)
        except RoundsBadlyError as error:
            names.unclaim(since=claims)
            dropped, plainer = decision.algebra.names, replace(decision, algebra=NOTHING)
            left |= dict.fromkeys(dropped, str(error))
            decision = plainer if dropped else replace(plainer, packing=None, unpacked=str(error))
