"""A map's rows put into windows, read off the movement that the graph has, and written in its shortest form.

    roll by shift, cut both axes, and bring what lies in one window together:
    b (gh wh) (gw ww) c -> (wh ww b gh gw) c       token of the window first, windows last

Token first is what attention kernels read in place: with the windows first, TensorRT for RTX 1.7.1 puts the tokens first by
itself, in a kernel behind each LayerNorm (four Swin blocks: 33 kernels and 81.1 MB with windows first, 29 and 70.8 with tokens
first; at batch 8 37 and 783, 33 and 700).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Shape
from onnx_attn.views.layout import Digit, common, decode
from onnx_attn.views.movement import Step


@dataclass(frozen=True)
class Partition:
    """The rows of a map `(B, …, C)`, B entries of `height × width` rows, as tokens of windows.

    shift: by how many rows and columns the map is rolled first, towards the origin.
    order: the pieces of the axes batch (0), height (1) and width (2), outer to inner, as `(axis, step, size)`; size None: the
        whole batch. The last `inside` of them number the tokens of a window, the others the windows.
    tokens: of one window.
    padding: rows and columns of zeros that the map gets first: before and after its height, before and after its width. Height
        and width count them.
    rolled: by how many rows and columns the map is rolled before it gets these.
    """

    height: int
    width: int
    shift: tuple[int, int]
    order: tuple[Digit, ...]
    inside: int
    tokens: int
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    rolled: tuple[int, int] = (0, 0)

    @property
    def moves(self) -> bool:
        """False where windows are whole maps: their rows lie as they did."""
        return (
            any(self.padding)
            or self.shift != (0, 0)
            or list(self.order) != sorted(self.order, key=lambda d: (d.axis, -d.step))
        )

    @property
    def atoms(self) -> list[Digit]:
        """The pieces in the order of the map's axes."""
        return sorted(self.order, key=lambda digit: (digit.axis, -digit.step))

    @property
    def turned(self) -> list[int]:
        """The permutation from the map's pieces to tokens first, windows last."""
        outer, inner = self.order[: -self.inside], self.order[-self.inside :]
        atoms = self.atoms
        return [atoms.index(digit) for digit in (*inner, *outer)]

    @property
    def windows(self) -> int | None:
        """How many windows a map has; None where they are not numbered map by map."""
        outer = self.order[: -self.inside]
        return math.prod(digit.size or 1 for digit in outer[1:]) if outer[0].axis == 0 else None

    @property
    def own(self) -> tuple[int, int]:
        """Height and width without padding."""
        top, bottom, left, right = self.padding
        return self.height - top - bottom, self.width - left - right

    @property
    def kept(self) -> np.ndarray:
        """The places of the map's own rows among all, padding included, of one map."""
        (top, _, left, _), (height, width) = self.padding, self.own
        places = np.arange(self.height * self.width).reshape(self.height, self.width)
        own: np.ndarray = np.roll(places[top : top + height, left : left + width], self.rolled, (0, 1)).reshape(-1)
        return own

    def token_first(self, rows: np.ndarray) -> np.ndarray:
        """Rows `(windows · tokens)` as `(tokens · windows)`."""
        return rows.reshape(-1, self.tokens).T.reshape(-1)


def read_partition(
    view: GraphView, source: gs.Tensor, steps: Sequence[Step], rows: Sequence[np.ndarray], tokens: int
) -> Partition | None:
    """Read `rows`, world by world the rows of `source` that windows of so many tokens consist of, one after the other.

    steps: the movement that made them; sizes of the map may stand on its way. None where they are no partition of a map.
    """
    shapes = view.shapes(source)
    if shapes is None or any(math.prod(shape[:-1]) != each.size for shape, each in zip(shapes, rows, strict=True)):
        return None
    if any(not each.size for each in rows):
        return None
    for height, width in _maps(view, source, shapes, steps):
        found = _over(shapes, rows, tokens, height, width)
        if found is not None:
            return found
    return None


def _maps(
    view: GraphView, source: gs.Tensor, shapes: tuple[Shape, ...], steps: Sequence[Step]
) -> list[tuple[int, int]]:
    """What height and width the map may have: as the source or a tensor on the way has them; last of all one row."""
    whole = [step for each in steps for step in each.whole]
    found: dict[tuple[int, int], None] = {}
    for tensor in (source, *(step.output for step in whole)):
        seen = view.shapes(tensor)
        if seen is None or len(seen[0]) != 4 or len({shape[1:3] for shape in seen}) != 1:
            continue
        if all(a[0] == b[0] and math.prod(a) == math.prod(b) for a, b in zip(seen, shapes, strict=True)):
            found[seen[0][1], seen[0][2]] = None
    lengths = {math.prod(shape[1:-1]) for shape in shapes}
    if len(lengths) == 1:
        found[1, lengths.pop()] = None
    return list(found)


def _over(
    shapes: tuple[Shape, ...], rows: Sequence[np.ndarray], tokens: int, height: int, width: int
) -> Partition | None:
    layouts = []
    shift = divmod(int(rows[0][0]) % (height * width), width)
    for shape, each in zip(shapes, rows, strict=True):
        batch, place = np.divmod(each, height * width)
        row, column = np.divmod(place, width)
        rolled = (batch * height + (row - shift[0]) % height) * width + (column - shift[1]) % width
        layouts.append(decode(rolled, (shape[0], height, width)))
    layout = common(layouts)
    if layout is None or any(layout.offsets):
        return None
    order = layout.digits
    if not any(digit.axis == 0 for digit in order):  # A batch of one.
        order = (Digit(0, 1, None), *order)
    order = tuple(_whole(digit, height, width) for digit in order)
    inside = _inside(order, tokens)
    if inside is None or not _complete(order, (height, width)):
        return None
    return Partition(height, width, shift, order, inside, tokens)


def _whole(digit: Digit, height: int, width: int) -> Digit:
    """With a number for the size of an axis of the map, which is static."""
    if digit.axis == 0 or digit.size is not None:
        return digit
    return Digit(digit.axis, digit.step, (height, width)[digit.axis - 1])


def _inside(order: Sequence[Digit], tokens: int) -> int | None:
    """How many of the last pieces number the tokens."""
    product = 1
    for count, digit in enumerate(reversed(order), 1):
        if digit.axis == 0:
            return None
        product *= digit.size or 1
        if product == tokens:
            return count
    return None


def _complete(order: Sequence[Digit], sizes: tuple[int, int]) -> bool:
    """Whether the pieces are all of the map: the whole batch once, height and width cut without rest."""
    if [(digit.step, digit.size) for digit in order if digit.axis == 0] != [(1, None)]:
        return False
    for axis, size in enumerate(sizes, 1):
        step = 1
        for digit in sorted((d for d in order if d.axis == axis), key=lambda d: d.step):
            if digit.step != step:
                return False
            step *= digit.size or 1
        if step != size:
            return False
    return True


def write_partition(writer: Writer, source: str, partition: Partition, channels: int, output: str) -> None:
    """`source` `(B, …, C)` as `output` `(tokens · windows, C)`, in plain operators."""
    if any(partition.padding) or partition.shift != (0, 0):
        source = writer.add("Reshape", [source, writer.shape(-1, *partition.own, channels)], "map")
    if any(partition.padding):
        top, bottom, left, right = partition.padding
        source = _rolled(writer, source, partition.own, partition.rolled)
        source = writer.add("Pad", [source, writer.shape(0, top, left, 0, 0, bottom, right, 0)], "padded")
    source = _rolled(writer, source, (partition.height, partition.width), partition.shift)
    sizes = [digit.size or -1 for digit in partition.atoms]
    source = writer.add("Reshape", [source, writer.shape(*sizes, channels)], "cut")
    source = writer.add("Transpose", [source], "turned", perm=[*partition.turned, len(sizes)])
    writer.add("Reshape", [source, writer.shape(-1, channels)], "windows", output=output)


def write_reverse(writer: Writer, source: str, partition: Partition, target: Sequence[int], output: str) -> None:
    """`source` `(tokens · windows, C)` as `output`, a map with the sizes `target` `(-1, …, C)`, in plain operators."""
    channels, sizes = target[-1], [digit.size or -1 for digit in partition.atoms]
    back = list(np.argsort(partition.turned))
    source = writer.add(
        "Reshape", [source, writer.shape(*[sizes[place] for place in partition.turned], channels)], "windows"
    )
    source = writer.add("Transpose", [source], "turned", perm=[*map(int, back), len(sizes)])
    whole, own = (partition.height, partition.width), partition.own
    if any(partition.padding) or partition.shift != (0, 0):
        source = writer.add("Reshape", [source, writer.shape(-1, *whole, channels)], "map")
        source = _rolled(writer, source, whole, _back(whole, partition.shift))
    if any(partition.padding):
        top, _, left, _ = partition.padding
        ends = [writer.shape(top, left), writer.shape(top + own[0], left + own[1]), writer.shape(1, 2)]
        source = writer.add("Slice", [source, *ends], "own")
        source = _rolled(writer, source, own, _back(own, partition.rolled))
    writer.add("Reshape", [source, writer.shape(*target)], "rows", output=output)


def _back(sizes: tuple[int, int], shift: tuple[int, int]) -> tuple[int, int]:
    """The roll that undoes another."""
    return (sizes[0] - shift[0]) % sizes[0], (sizes[1] - shift[1]) % sizes[1]


def _rolled(writer: Writer, source: str, sizes: tuple[int, int], shift: tuple[int, int]) -> str:
    """A map `(B, height, width, C)` of these sizes rolled towards the origin."""
    for axis, by, size in zip((1, 2), shift, sizes, strict=True):
        if not by:
            continue
        far = writer.add("Slice", [source, writer.shape(by), writer.shape(size), writer.shape(axis)], "far")
        near = writer.add("Slice", [source, writer.shape(0), writer.shape(by), writer.shape(axis)], "near")
        source = writer.add("Concat", [far, near], "rolled", axis=axis)
    return source


def read_roll(shape: Shape, rows: np.ndarray) -> tuple[int, int] | None:
    """By how much maps `(B, height, width, C)` of this shape are rolled, whose rows lie so; None if they are not just rolled."""
    maps, height, width = shape[:3]
    shift = divmod(int(rows[0]), width)
    places = np.arange(maps * height * width).reshape(maps, height, width)
    fits = rows.size == places.size and shift[0] < height
    return shift if fits and np.array_equal(np.roll(places, (-shift[0], -shift[1]), (1, 2)).reshape(-1), rows) else None
