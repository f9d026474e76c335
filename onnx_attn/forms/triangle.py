"""Causality as a stored mask, where lengths are known: nobody has to compute it at every run, and all sites share it."""

from __future__ import annotations

import math

import numpy as np

from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite

MOST_ELEMENTS = 2**22
"""Of a mask that is stored: that of 2048 queries and keys."""


def stored_triangle(writer: Writer, view: GraphView, site: AttentionSite) -> str:
    """The causal mask `(Sq, Sk)` as it is, true where key ≤ query; "" where lengths vary, or are too large, and for a site
    that is not causal by position."""
    lengths = [view.static(tensor, -2) for tensor in (site.query.tensor, site.key.tensor)] if site.causal else []
    known = [length for length in lengths if length is not None]
    if len(known) != 2 or math.prod(known) > MOST_ELEMENTS:
        return ""
    return writer.constant(np.tri(*known, dtype=bool), "causal_mask")
