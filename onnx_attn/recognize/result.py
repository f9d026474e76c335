"""How a recogniser says that it stopped: where, and under which code."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import label
from onnx_attn.site import Verdict

CONTRADICTION = "the shapes contradict each other"
"""The detail of a Stop where what the model says of its shapes cannot all be true."""


@dataclass(frozen=True)
class Stop:
    """Recognition ended at `node` for the reason `code`."""

    code: str
    node: gs.Node
    detail: str = ""

    def verdict(self, name: str, scope: str = "", anchor: str = "") -> Verdict:
        return Verdict(name, self.code, label(self.node), self.detail, scope, anchor)
