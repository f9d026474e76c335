"""The shapes that an engine is built for: the smallest, the usual and the largest of every input that varies.

Written `NAME:1x3x224x224`. Once for an input: that shape and no other. Twice: from the first to the second, tuned for the
second. Three times: smallest, usual, largest, as an optimization profile of TensorRT has them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

import onnx

from onnx_attn.errors import UsageError, printable
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.graph.world import input_shape, is_static, symbol

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""Smallest, usual, largest."""
Profile = Mapping[str, Range]


def read_shape(text: str) -> tuple[str, Shape]:
    """`NAME:1x3x224x224` as name and shape. Raises UsageError."""
    match = re.fullmatch(r"(.+):(\d+(?:x\d+)*)", text)
    if match is None:
        raise UsageError(f"--shapes '{printable(text)}': write NAME:1x3x224x224")
    return match[1], tuple(int(size) for size in match[2].split("x"))


def read_shapes(texts: Iterable[str]) -> dict[str, Range]:
    """Every `--shapes` of a command line as ranges by input. Raises UsageError for what is no range."""
    given: dict[str, list[Shape]] = {}
    for text in texts:
        name, shape = read_shape(text)
        given.setdefault(name, []).append(shape)
    return {name: as_range(name, shapes) for name, shapes in given.items()}


def as_range(name: str, shapes: Sequence[Sequence[int]]) -> Range:
    """One, two or three shapes as smallest, usual, largest. Raises UsageError where they are none."""
    every = [tuple(shape) if isinstance(shape, Sequence) else (None,) for shape in shapes]
    if not all(isinstance(size, int) and size >= 0 for shape in every for size in shape):
        raise UsageError(f"--shapes: a shape of input '{name}' is no list of whole numbers; give one, such as (1, 128)")
    if not 1 <= len(every) <= 3 or len({len(shape) for shape in every}) != 1:
        raise UsageError(
            f"--shapes: give input '{name}' one, two or three shapes of one rank: smallest, usual, largest"
        )
    smallest, usual, largest = every[0], every[-2] if len(every) == 3 else every[-1], every[-1]
    if not all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
        raise UsageError(
            f"--shapes: the shapes of input '{name}' do not grow; give smallest, usual, largest in this order"
        )
    return smallest, usual, largest


def fitted(model: onnx.ModelProto, profile: Profile, name: str) -> dict[str, Range]:
    """The profile for this model: checked against its inputs, and inputs that were left out filled in by the names that
    their dimensions share with others.

    Raises UsageError for an unknown input, a shape that contradicts the model, or an input that varies and has no shape.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    sizes: dict[str, Shape] = {}
    for key, ranges in profile.items():
        if key not in inputs:
            raise UsageError(f"--shapes: {name} has no input '{key}'; it has {', '.join(inputs)}")
        _check(inputs[key], ranges, sizes)
    found: dict[str, Range] = {}
    lacking: list[onnx.ValueInfoProto] = []
    for key, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        if all(map(is_static, dims)):
            continue
        every = [_size(key, axis, dim, sizes) for axis, dim in enumerate(dims)]
        if None in every:
            lacking.append(value)
        else:
            found[key] = tuple(zip(*every, strict=True))
    if lacking:
        first, dims = lacking[0].name, lacking[0].type.tensor_type.shape.dim
        raise UsageError(
            f"{name}: input '{first}' varies, its shape is {_written(dims)}; pass sizes of yours, such as "
            f"{_examples(model, lacking)}"
        )
    return found


def sizes_at(model: onnx.ModelProto, profile: Profile, place: int) -> dict[str, int]:
    """The numbers of the model's varying dimensions at one place of a profile (0: smallest, 1: usual, 2: largest)."""
    return {
        symbol(value.name, axis, dim): profile[value.name][place][axis]
        for value in model.graph.input
        if value.name in profile
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if not is_static(dim)
    }


def at_usual(profile: Profile) -> dict[str, Range]:
    """The profile narrowed to its usual shapes."""
    return {name: (usual, usual, usual) for name, (_, usual, _) in profile.items()}


def is_fixed(profile: Profile) -> bool:
    return all(smallest == largest for smallest, _, largest in profile.values())


def _check(value: onnx.ValueInfoProto, ranges: Range, sizes: dict[str, Shape]) -> None:
    """Compare a range with an input's declaration, and note the sizes of its named dimensions."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(ranges[0]):
        raise UsageError(f"--shapes: input '{value.name}' has {len(dims)} dimensions, {len(ranges[0])} were given")
    for axis, (dim, three) in enumerate(zip(dims, zip(*ranges, strict=True), strict=True)):
        if is_static(dim):
            if set(three) != {dim.dim_value}:
                raise UsageError(f"--shapes: dimension {axis} of '{value.name}' is {dim.dim_value}, not {three[0]}")
        elif sizes.setdefault(symbol(value.name, axis, dim), three) != three:
            raise UsageError(f"--shapes: dimension '{dim.dim_param}' is given two sizes; give every input the same")


def _size(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension, sizes: dict[str, Shape]) -> Shape | None:
    if is_static(dim):
        return (dim.dim_value,) * 3
    return sizes.get(symbol(name, axis, dim))


def _written(dims: Iterable[onnx.TensorShapeProto.Dimension]) -> str:
    return "×".join(str(dim.dim_value) if is_static(dim) else dim.dim_param or "?" for dim in dims)


def _examples(model: onnx.ModelProto, values: Sequence[onnx.ValueInfoProto]) -> str:
    """Shapes that the model runs at, to be pasted: `--shapes x:2x5 --shapes mask:2x5`."""
    shapes = [(value.name, input_shape(value, worlds_of(model)[0].sizes) or ()) for value in values]
    return " ".join(f"--shapes {shlex.quote(name + ':' + 'x'.join(map(str, shape)))}" for name, shape in shapes)
