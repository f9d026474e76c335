"""Where the parts of a site are written, which changes kernels and bytes and no number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["auto", "last", "heads", "leading"]
BiasAt = Literal["packed", "heads"]
ScaleAt = Literal["query", "scores"]
SPLITS, BIASES, SCALES = get_args(Split), get_args(BiasAt), get_args(ScaleAt)


@dataclass(frozen=True)
class Placement:
    """The places of a site's parts.

    split: where a packed projection is taken apart: on its "last" axis, on the axis of "heads" behind a Transpose, or on a
        "leading" axis of three behind one; "auto" is what the compiler likes best of most (packed_gemm.py).
    bias: a projection's bias is added to it "packed", or to each operand once it is split into "heads".
    scale: that which is not in the weights stands on the "query", or on the "scores".
    """

    split: Split = "auto"
    bias: BiasAt = "packed"
    scale: ScaleAt = "query"


AUTO = Placement()
