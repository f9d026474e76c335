"""K's bias adds the same number to every score of a row, and softmax does not see it.

    Q·(K + 1·bᵀ)ᵀ = Q·Kᵀ + (Q·b)·1ᵀ,   softmax(s + c·1ᵀ) = softmax(s)

It holds where every key has the bias (no keys of another origin), nothing but layout lies between the projection and the
product, scores only have terms added or are replaced by a value whose probability is 0, and nobody else reads K.
Measured where it does not: an error of 0.82 with foreign keys, 0.07 with a softcap, 0.81 with `Where(m, s, 0)`.
"""

from __future__ import annotations

import math

from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite
from onnx_attn.views.trace import lowest


def key_bias_stays(view: GraphView, site: AttentionSite) -> str | None:
    """Why K's bias may not be dropped, or None. That K is this site's alone and comes from its layer by layout alone is what
    packing has settled."""
    dtype, added = view.elem_type(site.query.tensor), any(term.kind in ("add", "subtract") for term in site.terms)
    for place, term in enumerate(site.terms):
        if term.kind == "factor" and (term.mask is None or view.static(term.mask, -1) != 1):
            return "the scores are multiplied by what differs from key to key"
        if term.kind in ("softcap", "floor"):
            return f"the scores have a {term.kind}, which changes by what is added to them"
        if term.kind == "cast":
            dtype = term.dtype
        least = lowest(dtype)
        if term.kind != "where":
            continue
        # Beside a mask that is added, which may block the other keys of a row, the lowest number has a probability too, and so
        # it has in front of a factor, which may make it as small as the others.
        shrunk = any(later.kind in ("scale", "factor") for later in site.terms[place:])
        if least is None or term.fill > (-math.inf if added or shrunk else least):
            return f"masked scores are replaced by {term.fill:g}, which may have a probability"
    return None
