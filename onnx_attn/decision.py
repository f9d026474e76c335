"""What is asked for a site, and what will be done to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx_attn.algebra.choose import IDENTITIES
from onnx_attn.forms.adaptation import Heads
from onnx_attn.forms.placement import AUTO, Placement
from onnx_attn.forms.way import Way
from onnx_attn.site import AttentionSite

ATTENTION_OPSET = 23
"""The first that has the Attention operator."""


RECOMPUTED = "recomputed-probabilities"
"""What plans and reports call the change by which a site has probabilities of its own, beside those that somebody else reads."""


ADDITIVE = "additive-mask"
"""What they call it that the boolean mask of an `Attention` node is written as the numbers that it adds."""


TOKENS_FIRST = "tokens-first"
"""What they call it that the block around a site is computed with tokens first, its windows last (row_order/order.py)."""


ROTARY = "rotary-embedding"
"""What they call it that the rotary embeddings of its Q and K are the standard operator (rotary/rewrite.py)."""


@dataclass(frozen=True, kw_only=True)
class Decision(Way):
    """A site and the way in which it will be written. `unpacked` says why the projection is left as it is, where it is.

    stays: it is the `Attention` node that it was, in the form "attention".
    ordered: the block around it is computed tokens first. embedded: its rotary embeddings are written as the operator.
    """

    site: AttentionSite
    unpacked: str | None
    stays: bool = False
    ordered: bool = False
    embedded: bool = False

    @property
    def key(self) -> str:
        """What tells this site from every other: the value that it makes. Node names may be missing or equal."""
        return self.site.output.name

    @property
    def changes(self) -> tuple[str, ...]:
        """What is changed about the site, as plans and reports call it."""
        done = {
            RECOMPUTED: self.site.shared,
            ADDITIVE: self.additive,
            TOKENS_FIRST: self.ordered,
            ROTARY: self.embedded,
        }
        return self.adaptation.names + tuple(name for name, is_done in done.items() if is_done)


@dataclass(frozen=True)
class Choice:
    """What is asked for a site: its form, whether to pack, which identities are allowed, or to leave it alone; the precision
    of the island around a site of float32 ("keep" for none), whether its heads may be padded, whether probabilities are to be
    rounded where Q, K and V are, where its parts go, whether probabilities that somebody else reads may be computed once
    more, whether the block around it may be computed tokens first, and its rotary embeddings be operators
    (None: where the target gains by that), and whether Q, K and V are projected each by itself."""

    form: str = "auto"
    pack: bool = True
    algebra: Collection[str] = IDENTITIES
    apply: bool = True
    precision: str = "keep"
    heads: Heads = "needed"
    quantize_probabilities: bool = False
    placement: Placement = AUTO
    recompute: bool = False
    tokens_first: bool = True
    rotary: bool | None = None
    split: bool = False


BY_DEFAULT = Choice()
"""What nobody asked for."""
