"""Labels behind a pooling over tokens: where it joins the blocks of a map, what it makes is a smaller map."""

from __future__ import annotations

import math

import numpy as np

from onnx_attn.graph.world import Shape
from onnx_attn.recognize.partition import Sizes, each_once, read_blocks
from onnx_attn.views.tokens import MixesTokens, bare


def pooled(index: np.ndarray, axes: tuple[int, ...], sizes: Sizes, shape: Shape) -> tuple[np.ndarray, Sizes]:
    """The labels, of this shape, of what is pooled over some axes of labels on a map of these sizes, and the smaller map's sizes.

    MixesTokens where what is joined are no blocks that lie side by side and are of one batch entry each.
    """
    last = tuple(axis % index.ndim for axis in axes)
    thin = np.moveaxis(bare(index), last, range(-len(last), 0))
    groups = thin.reshape(math.prod(thin.shape[: -len(last)]), -1)
    places = math.prod(sizes)
    entry = groups[:, :1] // places
    if (groups // places != entry).any() or not each_once(groups, int(entry.max() + 1) * places):
        raise MixesTokens
    blocks = read_blocks(groups % places, sizes)
    if blocks is None:
        raise MixesTokens
    size, numbers = blocks
    smaller = tuple(total // each for total, each in zip(sizes, size, strict=True))
    labels = (entry[:, 0] * math.prod(smaller) + numbers).astype(index.dtype)
    kept = [1 if axis in last else length for axis, length in enumerate(bare(index).shape)]
    whole = labels.reshape(kept)
    return np.broadcast_to(whole if whole.ndim == len(shape) else whole.squeeze(last), shape), smaller
