"""A rotary embedding as plain nodes.

Source: operator specification, RotaryEmbedding-23. Channels are rotated by pairs, `(a, b)` by an angle of its position:
`a·cos − b·sin` and `a·sin + b·cos`. Of the first `dim` channels of a head, a pair is channel i and i + dim/2, or with
`interleaved` channel 2i and 2i + 1; those behind `dim` stay.
"""

from __future__ import annotations

from onnx_attn.graph.edit import Writer


def spell_rotary(
    writer: Writer,
    x: str,
    cos: str,
    sin: str,
    *,
    interleaved: bool,
    dim: int,
    head_dim: int,
    heads_axis: int = 1,
    output: str | None = None,
) -> str:
    """x `(B, N, S, H)`, rotated, or with heads_axis 2 `(B, S, N, H)`; `head_dim`: H. cos and sin: `(B or 1, S, dim/2)`, of x's
    type. `output`: the name to take over. (Opset 13 and later.)"""
    add, half = writer.add, dim // 2
    angles = [add("Unsqueeze", [table, writer.shape(heads_axis)], hint) for table, hint in ((cos, "cos"), (sin, "sin"))]
    if interleaved:
        first, second, rest = _interleaved(writer, x, dim, head_dim)
    else:
        sizes = (half, half, *([head_dim - dim] if dim < head_dim else []))
        first, second, *rest = add("Split", [x, writer.shape(*sizes)], "rotary_halves", outputs=len(sizes), axis=-1)
    turned = _turned(writer, first, second, *angles)
    if not interleaved:
        return str(add("Concat", [*turned, *rest], "rotated", output=output, axis=-1))
    pairs = [add("Unsqueeze", [each, writer.shape(-1)], "rotary_pair") for each in turned]
    pairs = add("Concat", pairs, "rotary_pairs", axis=-1)
    merged = add("Reshape", [pairs, writer.shape(0, 0, 0, dim)], "rotated", output=None if rest else output)
    return str(add("Concat", [merged, *rest], "rotated", output=output, axis=-1) if rest else merged)


def _interleaved(writer: Writer, x: str, dim: int, head_dim: int) -> tuple[str, str, list[str]]:
    """The channels of even number, those of odd number, and those that stay."""
    rest: list[str] = []
    if dim < head_dim:
        x, *rest = writer.add("Split", [x, writer.shape(dim, head_dim - dim)], "rotary_part", outputs=2, axis=-1)
    axis, step, end = writer.shape(-1), writer.shape(2), writer.shape(dim)
    first, second = (
        writer.add("Slice", [x, writer.shape(start), end, axis, step], f"rotary_{hint}")
        for start, hint in enumerate(("even", "odd"))
    )
    return first, second, rest


def _turned(writer: Writer, first: str, second: str, cos: str, sin: str) -> tuple[str, str]:
    """Both channels of each pair, turned."""
    add = writer.add
    real = add("Sub", [add("Mul", [first, cos], "rotary"), add("Mul", [second, sin], "rotary")], "rotary_first")
    imaginary = add("Add", [add("Mul", [first, sin], "rotary"), add("Mul", [second, cos], "rotary")], "rotary_second")
    return real, imaginary


def look_up(writer: Writer, table: str, position_ids: str, hint: str) -> str:
    """A table `(positions, dim/2)` at position_ids `(B, S)`: `(B, S, dim/2)`."""
    return str(writer.add("Gather", [table, position_ids], hint, axis=0))
