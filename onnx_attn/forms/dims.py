"""Sizes that are written into Reshape: numbers where static, tokens where not.

A token stands for the dynamic size of one axis of a base tensor; a tuple of tokens and numbers for their product. A
Reshape can say at most one unknown product (−1), and any size that stays in its place (0).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Shape
from onnx_attn.views.arrange import Dim
from onnx_attn.views.layout import Digit, Layout


def base_dims(shapes: Sequence[Shape]) -> list[Dim]:
    """The axes of a base tensor with these shapes, world by world."""
    return [
        sizes[0] if len(set(sizes)) == 1 else (f"axis{axis}",) for axis, sizes in enumerate(zip(*shapes, strict=True))
    ]


def layout_dims(layout: Layout, base: Sequence[Dim]) -> list[Dim]:
    """The sizes of a tensor with this layout over the base tensor."""
    return [product([digit_dim(digit, base) for digit in digits]) for digits in layout.axes]


def digit_dim(digit: Digit, base: Sequence[Dim]) -> Dim:
    return base[digit.axis] if digit.size is None else digit.size


def product(dims: Sequence[Dim]) -> Dim:
    number = 1
    tokens: list[str] = []
    for dim in dims:
        if isinstance(dim, int):
            number *= dim
        else:
            number *= next((part for part in dim if isinstance(part, int)), 1)
            tokens.extend(part for part in dim if isinstance(part, str))
    if not tokens:
        return number
    return (*([number] if number != 1 else []), *sorted(tokens))


def write_reshape(writer: Writer, tensor: str, target: list[int], hint: str, output: str | None = None) -> str:
    return writer.add("Reshape", [tensor, writer.shape(*target)], hint, output=output)


def write_shape_vector(writer: Writer, base: str, dims: Sequence[Dim], output: str) -> None:
    """Write the vector of `dims` as `output`, from numbers and the shape of the base tensor."""
    if all(isinstance(dim, int) for dim in dims):
        writer.add("Identity", [writer.shape(*dims)], "shape", output=output)  # type: ignore[arg-type]
        return
    shape = writer.add("Shape", [base], "source_shape")
    parts = []
    for dim in dims:
        factors = [dim] if isinstance(dim, int) else dim
        names = [
            writer.shape(factor)
            if isinstance(factor, int)
            else writer.add("Gather", [shape, writer.shape(int(factor.removeprefix("axis")))], "size", axis=0)
            for factor in factors
        ]
        while len(names) > 1:
            names[:2] = [writer.add("Mul", names[:2], "size_product")]
        parts.append(names[0])
    writer.add("Concat", parts, "shape", output=output, axis=0)


def tensor_dims(view: GraphView, tensor: gs.Tensor) -> list[Dim] | None:
    shapes = view.shapes(tensor)
    return base_dims(shapes) if shapes else None
