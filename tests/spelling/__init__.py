"""Random legal attention, spelled as an ONNX graph on every axis of freedom, with its truth; and what only looks like it.

Every choice is drawn: layouts, where the scale stands, masks, projections, types, opsets, casts, who else reads. A value under
construction knows its axes as einops would write them: `(b n) s h` is `(("b", "n"), ("s",), ("h",))`. Every product is drawn
with its operands and its result in any order of axes, so that no position of an axis means anything.

    values.py     values with named axes, movement, and what changes nothing
    operands.py   Q, K and V: from inputs or layers, apart or packed, in any axes
    between.py    scale, masks, softmax, casts
    site.py       all of it together, and the near misses
"""

from spelling.site import NEAR_MISSES, legal, near_misses
from spelling.values import Spelling

__all__ = ["NEAR_MISSES", "Spelling", "legal", "near_misses"]
