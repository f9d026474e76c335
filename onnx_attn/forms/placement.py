"""Where the parts of a site are written, which changes kernels and bytes and no number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Split = Literal["auto", "last", "heads", "leading"]
BiasAt = Literal["packed", "heads"]
ScaleAt = Literal["query", "scores", "split"]
SPLITS, BIASES, SCALES = get_args(Split), get_args(BiasAt), get_args(ScaleAt)


@dataclass(frozen=True)
class Placement:
    """The places of a site's parts.

    split: where a packed projection is taken apart: on its "last" axis, on the axis of "heads" behind a Transpose, or on a
        "leading" axis of three behind one; "auto" is what the compiler likes best of most (packed_gemm.py).
    bias: a projection's bias is added to it "packed", or to each operand once it is split into "heads".
    scale: that which is not in the weights stands on the "query", or on the "scores"; "split" has half of it on the query, a
        half on the key and 4 on the scores: exact, and nowhere larger than it is on the query alone.
    """

    split: Split = "auto"
    bias: BiasAt = "packed"
    scale: ScaleAt = "query"

    def apart(self, shared: bool, scores_scale: float) -> Placement:
        """Of a site whose Q·Kᵀ somebody else computes too, in another way than they do; and of one that was written so before.

        Measured with TensorRT for RTX 1.7.1: equal products are merged into one, wherever their constant factor stands before
        them, and where sizes vary two products of one K are computed as one of two Qs; the probabilities are shared once more
        then, and no attention kernel takes them. Factors on Q, on K and behind the product keep them apart, in as many kernels
        and bytes as without.
        """
        if self.scale == "query" and shared != (scores_scale == SPLIT):
            return replace(self, scale="split")
        return self


SPLIT = 4.0
"""What a split scale has on the scores; Q and K have its root less."""
AUTO = Placement()
