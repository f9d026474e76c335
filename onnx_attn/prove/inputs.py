"""Inputs for a whole model: seeded, of the right types and shapes, and within the bounds that the graph sets them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnx_attn.errors import UsageError
from onnx_attn.graph.world import World
from onnx_attn.runtime import SEED

MOST_ELEMENTS = 2**31
"""Of one input: more than any model reads, and few enough to be held in float64."""
_PASSES = frozenset("Cast Reshape Unsqueeze Squeeze Flatten Identity Slice Expand Transpose Concat".split())


def model_inputs(proto: onnx.ModelProto, world: World, seed: int = SEED, padded: bool = True) -> dict[str, np.ndarray]:
    """Values for every input at the sizes of one world; another seed gives others.

    Floats are normal. Whole numbers that index a table (an embedding) stay inside it; others, and booleans, look like a
    padding mask: along the last axis a run of ones, at least one long, then zeros. The first entry of several has ones alone: who
    attends to the last keys, as behind a cache, sees nothing of a padded one. Where nothing is `padded`, all have.
    """
    rng = np.random.default_rng([seed, len(world.sizes), *world.sizes.values()])
    weights = {tensor.name for tensor in proto.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    values = {}
    for value in proto.graph.input:
        if value.name in weights:
            continue
        shape = world.shape(value.name)
        if shape is None:
            raise UsageError(f"input '{value.name}' has no shape that could be made up")
        if min(shape, default=0) < 0 or math.prod(shape) > MOST_ELEMENTS:
            raise UsageError(f"input '{value.name}' of shape {'×'.join(map(str, shape))} is none that could be made up")
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if np.dtype(dtype).kind not in "iub":
            values[value.name] = rng.standard_normal(shape).astype(dtype)
        elif (bound := _bound(value.name, readers, world)) is not None:
            values[value.name] = rng.integers(0, bound, shape).astype(dtype)
        else:
            values[value.name] = (_prefixes(rng, shape) if padded else np.ones(shape)).astype(dtype)
    return values


def flags_off(inputs: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The same values with every flag off, for models that have one: a boolean of one element, on in what is made up, chooses
    between the branches of a decoder with and without a past."""
    found = []
    for values in inputs:
        flags = {
            name: np.zeros_like(value) for name, value in values.items() if value.dtype == bool and value.size == 1
        }
        found += [{**values, **flags}] if flags else []
    return found


def _prefixes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.ones(shape)
    lengths = rng.integers(1, shape[-1] + 1, shape[:-1]) if shape[-1] else np.zeros(shape[:-1], int)
    if len(shape) > 1 and shape[0] > 1:
        lengths[0] = shape[-1]
    return np.arange(shape[-1]) < lengths[..., None]


def _bound(name: str, readers: Mapping[str, list[onnx.NodeProto]], world: World) -> int | None:
    """The size of the smallest table that the values of `name` index, following them through casts and reshapes."""
    bounds, seen, queue = [], set(), [name]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        for node in readers.get(current, ()):
            if node.op_type in ("Gather", "GatherElements") and node.input[1] == current:
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                if (shape := world.shape(node.input[0])) is not None:
                    bounds.append(shape[axis])
            elif node.op_type in _PASSES:
                queue.extend(node.output)
    return min(bounds, default=None)
