"""One way to write a site: all that is chosen about it, and nothing about the site itself."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_attn.algebra.choose import NOTHING, Algebra
from onnx_attn.forms.adaptation import AS_IT_STANDS, Adaptation
from onnx_attn.forms.beside import Beside
from onnx_attn.forms.packing import Packing
from onnx_attn.forms.placement import AUTO, Placement

PLAIN = ("function", "primitives")
"""The forms that say a site's products as MatMul."""


@dataclass(frozen=True)
class Way:
    """form: `function`, `primitives`, `attention`, `contrib`. packing: of the in-projection, if it is packed. algebra: what
    is changed about its numbers. adaptation: what is changed for the target. beside: layers that are put side by side as
    they are. broadcast: K or V of one head for all of Q's stays so, for MatMul to broadcast. additive: the operator's boolean
    mask is written as the numbers that it adds."""

    form: str
    packing: Packing | None = None
    algebra: Algebra = NOTHING
    adaptation: Adaptation = AS_IT_STANDS
    placement: Placement = AUTO
    beside: Beside | None = None
    broadcast: bool = False
    additive: bool = False

    @property
    def packed(self) -> bool:
        """Whether Q, K and V, or two of them, come from one product."""
        return self.packing is not None or self.beside is not None
