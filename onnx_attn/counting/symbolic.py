"""Sizes as polynomials in the names of a model's dimensions, read off what they are at three sets of sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx

from onnx_attn.counting.flow import Flow
from onnx_attn.counting.measure import UnknownSizeError
from onnx_attn.counting.polynomial import Poly, as_polynomial
from onnx_attn.graph.element import bytes_of
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.world import World

ENOUGH = 3
"""Sets of sizes by which a polynomial is told from chance."""
_LARGE = (113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179)
_SMALL = (4, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59)


def third_world(proto: onnx.ModelProto, worlds: Sequence[World]) -> World | None:
    """Another one beside two in which the model runs; None where none was found."""
    inference = Inference(proto)
    for sizes in _further([world.sizes for world in worlds]):
        world = inference.run(sizes)
        if len(world.failures) <= len(worlds[0].failures):
            return world
    return None


def _further(known: Sequence[dict[str, int]]) -> Iterator[dict[str, int]]:
    """Sizes that keep what the known ones have in common: equal dimensions, and sums of two others."""
    for numbers in (_LARGE, _SMALL):
        found: dict[str, int] = {}
        for name in known[0]:
            column = [sizes[name] for sizes in known]
            twin = next((other for other in found if [sizes[other] for sizes in known] == column), None)
            found[name] = found[twin] if twin else numbers[len(found) % len(numbers)]
        for name in known[0]:
            for one, other in _sums(known, name):
                found[name] = found[one] + found[other]
        yield found
    yield {name: 2 * size for name, size in known[1].items()}


def _sums(known: Sequence[dict[str, int]], name: str) -> list[tuple[str, str]]:
    names = list(known[0])
    return [
        (one, other)
        for place, one in enumerate(names)
        for other in names[place + 1 :]
        if name not in (one, other) and all(sizes[name] == sizes[one] + sizes[other] for sizes in known)
    ][:1]


class SymbolicShapes:
    """Shapes by name, of flows of one model at several sizes."""

    def __init__(self, flows: Sequence[Flow], sizes: Sequence[dict[str, int]]) -> None:
        self.flows, self.sizes = flows, sizes
        self._read: dict[tuple[int, ...], Poly | None] = {}

    def __call__(self, name: str) -> list[Poly]:
        shapes = [flow.shape(name) for flow in self.flows]
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(shapes) or len({len(shape) for shape in known}) != 1:
            raise UnknownSizeError(f"the size of '{name}' is not known")
        return [self._size(name, values) for values in zip(*known, strict=True)]

    def _size(self, name: str, values: tuple[int, ...]) -> Poly:
        if len(values) < ENOUGH and len(set(values)) > 1:
            raise UnknownSizeError(f"no {ENOUGH} sets of sizes were found at which the model runs; pass --shapes")
        if values not in self._read:
            self._read[values] = as_polynomial(values, self.sizes)
        found = self._read[values]
        if found is None:
            raise UnknownSizeError(
                f"a size of '{name}' is no polynomial in the dimensions ({', '.join(map(str, values))})"
            )
        return found

    def bytes(self, name: str) -> Any:
        """Of a value of the first flow."""
        entry = self.flows[0].known.get(name)
        found: Any = Poly({(): bytes_of(entry.elem_type, 1)}) if entry is not None and entry.elem_type else 0
        for size in self(name):
            found = found * size
        return found


def numeric_shapes(flow: Flow) -> Callable[[str], Sequence[int]]:
    def shape(name: str) -> Sequence[int]:
        found = flow.shape(name)
        if found is None:
            raise UnknownSizeError(f"the size of '{name}' is not known")
        return found

    return shape
