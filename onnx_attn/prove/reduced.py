"""Sites whose scores are too large to be run as they are: the same cuts with a shorter sequence.

In a model of one size a length is baked into whole numbers (targets of Reshape, bounds of Slice) and into weights (stored
masks, tables of biases). Everything that is a multiple of the length becomes the same multiple of a shorter one, weights are
cropped; before and after alike. Where a size is by chance a multiple of the length, as a width may be, the reduced cut does not
run, and nothing is proved by it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from onnx_attn.graph.load import copied
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.weights import to_array
from onnx_attn.graph.world import Known, World
from onnx_attn.prove.cut import Cut
from onnx_attn.site import AttentionSite

MOST_BYTES = 2**31
"""Of the scores of a site in float64, and of what stands beside them: a site that needs more is proved at reduced sizes."""
COPIES = 3
"""Arrays as large as the scores that are alive at a time: product, mask, softmax."""
FEW = 64
LONGEST = 2**40
"""From here on a number is an end that is out of sight, and no size."""


@dataclass(frozen=True)
class Reduction:
    """lengths: each length with the one that it becomes."""

    lengths: dict[int, int]

    def size(self, number: int) -> int:
        if 0 < number < LONGEST:
            for length, shorter in self.lengths.items():
                if number % length == 0:
                    return number // length * shorter
        return number

    def values(self, array: np.ndarray) -> np.ndarray:
        """As many as the shorter lengths leave; of a few whole numbers, as those of a shape are, the numbers themselves too."""
        array = np.asarray(array[tuple(slice(self.size(size)) for size in array.shape)])
        if array.dtype.kind != "i" or array.size > FEW:
            return array
        return np.asarray([self.size(int(number)) for number in array.reshape(-1)], array.dtype).reshape(array.shape)

    def cut(self, cut: Cut) -> Cut:
        model = copied(cut.model)
        self._weights(model.graph.initializer)
        for node in model.graph.node:
            self._weights(each.t for each in node.attribute if node.op_type == "Constant" and each.name == "value")
        return replace(cut, model=model)

    def _weights(self, tensors: Iterable[onnx.TensorProto]) -> None:
        for tensor in tensors:
            array = to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(self.values(array), order="C"), tensor.name))

    def view(self, view: GraphView) -> GraphView:
        """The same graph in shorter worlds."""
        return view.in_worlds(map(self._world, view.worlds))

    def _world(self, world: World) -> World:
        known = {
            name: Known(
                entry.elem_type,
                tuple(map(self.size, entry.shape)) if entry.shape is not None else None,
                self.values(entry.value) if entry.value is not None else None,
            )
            for name, entry in world.known.items()
        }
        return replace(world, known=known)


def reduction_of(view: GraphView, site: AttentionSite) -> Reduction | None:
    """None for a site that can be run as it is."""
    lengths = {length for tensor in (site.query.tensor, site.key.tensor) for length in _lengths(view, tensor)}
    needed = scores_bytes(view, site)
    if needed <= MOST_BYTES or not lengths:
        return None
    # Lengths that differ stay different: what is turned round must not fit by chance.
    shorter = math.isqrt(int(max(lengths) ** 2 * MOST_BYTES / needed / 16))
    ordered = sorted((length for length in lengths if length > shorter), reverse=True)
    return Reduction({length: max(shorter - place, 2) for place, length in enumerate(ordered)})


def scores_bytes(view: GraphView, site: AttentionSite) -> int:
    """What the scores of a site take in float64 in its largest world, with what stands beside them."""
    query, key = view.shapes(site.query.tensor), view.shapes(site.key.tensor)
    if query is None or key is None:
        return 0
    return max(8 * COPIES * math.prod(q[:-1]) * k[-2] for q, k in zip(query, key, strict=True))


def free_bytes() -> int:
    """The memory that is free now; 0 where nobody can tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # No such name there, or no such function.
        return 0


def _lengths(view: GraphView, tensor: gs.Tensor) -> set[int]:
    length = view.static(tensor, -2)
    return {length} if length is not None else set()
