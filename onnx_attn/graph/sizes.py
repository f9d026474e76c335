"""Choose the sizes of a model's dynamic dimensions, so that everything that is computed from them can be checked."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import onnx

from onnx_attn.graph.inference import Inference, Memo
from onnx_attn.graph.small_values import INDICES
from onnx_attn.graph.world import World, is_static, symbol

MOST_GUESSES = 64
_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109)
_BATCH = (2, 3)
_OTHERS = tuple(itertools.pairwise(_PRIMES))
"""Pairs of primes, one number a world. Small, so that what runs on them is cheap."""


def worlds_of(proto: onnx.ModelProto, memo: Memo | None = None) -> tuple[World, ...]:
    """One world of a static model, two of a dynamic one.

    Dimensions of different names get different numbers. Where the model contradicts itself at those, dimensions at the
    same place in their inputs get one number (two names that must be equal), then one dimension is the sum of two others, then
    image-like sizes are tried. Last come
    the numbers that stand in the model's own Reshapes: exporters freeze sizes that they call dynamic, and then there may
    be one world only. The assignment with the fewest contradictions is taken.
    """
    symbols = dynamic_dimensions(proto.graph)
    if not symbols:
        return (Inference(proto, memo=memo).run({}),)
    inference = Inference(proto, INDICES, memo)
    best: tuple[World, ...] | None = None
    for assignment in _assignments(symbols, proto.graph):
        worlds = tuple(inference.run(sizes) for sizes in assignment)
        if best is None or _failures(worlds) < _failures(best):
            best = worlds
        if not _failures(best):
            return best
    assert best is not None
    frozen = [inference.run(sizes) for sizes in _frozen(symbols, best[0], proto.graph)]
    chosen = min(frozen, key=lambda world: (len(world.failures), -world.kept_axes), default=best[0])
    return _widened(inference, chosen) if not chosen.failures else best


def _widened(inference: Inference, world: World) -> tuple[World, ...]:
    """Beside a world that works, a second one in which every dimension that can be twice as large is.

    A dimension that no other size satisfies is frozen in truth, and counts as static; one that only has to be a multiple
    of something does not.
    """

    def works(sizes: dict[str, int]) -> bool:
        other = inference.run(sizes)
        return not other.failures and other.kept_axes >= world.kept_axes

    free = {name: 2 * size for name, size in world.sizes.items() if works({**world.sizes, name: 2 * size})}
    wider = {**world.sizes, **free}
    return (world, inference.run(wider)) if free and works(wider) else (world,)


def dynamic_dimensions(graph: onnx.GraphProto) -> dict[str, int]:
    """Name of every dynamic input dimension → the axis where it first stands."""
    initializers = {tensor.name for tensor in graph.initializer}
    symbols: dict[str, int] = {}
    for value in graph.input:
        if value.name not in initializers:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if not is_static(dim):
                    symbols.setdefault(symbol(value.name, axis, dim), axis)
    return symbols


def _failures(worlds: tuple[World, ...]) -> int:
    return sum(len(world.failures) for world in worlds)


def _assignments(symbols: dict[str, int], graph: onnx.GraphProto) -> Iterator[list[dict[str, int]]]:
    pairs = (_BATCH, *_OTHERS)
    apart = [{name: pairs[i % len(pairs)][w] for i, name in enumerate(symbols)} for w in (0, 1)]
    if any(_summands(name) for name in symbols):
        yield [{name: _sum_of(name, sizes) for name in sizes} for sizes in apart]
    yield apart
    yield [{name: pairs[axis % len(pairs)][w] for name, axis in symbols.items()} for w in (0, 1)]
    for total, first, second in itertools.islice(_sums(symbols, graph), MOST_GUESSES):
        yield [
            {**sizes, total: sizes[first] + (sizes[second] if isinstance(second, str) else second)} for sizes in apart
        ]
    yield [{name: (_BATCH if axis == 0 else (224, 256))[w] for name, axis in symbols.items()} for w in (0, 1)]


def _sums(symbols: dict[str, int], graph: onnx.GraphProto) -> Iterator[tuple[str, str, str | int]]:
    """Dimensions that may be the sum of two, as that of keys behind a past; the second may be a number. Those with a first axis,
    which is a batch as a rule, come last."""
    dims = (dim for value in graph.input for dim in value.type.tensor_type.shape.dim)
    numbers = sorted({dim.dim_value for dim in dims if is_static(dim)})
    pairs = list(itertools.permutations(symbols, 2))
    sums: list[tuple[str, str, str | int]] = [(t, a, b) for t, a in pairs for b in symbols if a < b != t]
    sums += [(total, first, number) for total, first in pairs for number in numbers]
    yield from sorted(sums, key=lambda names: any(symbols.get(str(name)) == 0 for name in names))


def _summands(name: str) -> list[str]:
    """Of a dimension that is called after a sum, `past_sequence_length + 1`, as exporters name them: what is added."""
    parts = [part.strip() for part in name.split("+")]
    return parts if len(parts) > 1 and all(part.isidentifier() or part.isdecimal() for part in parts) else []


def _sum_of(name: str, sizes: dict[str, int]) -> int:
    """The size of such a dimension where all that is added has one; its own where not."""
    parts = [int(part) if part.isdecimal() else sizes.get(part) for part in _summands(name)]
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else sizes[name]


def _frozen(symbols: dict[str, int], world: World, graph: onnx.GraphProto) -> Iterator[dict[str, int]]:
    """Assignments from the numbers that the model's Reshapes ask for, the most frequent first; a size of 1 tells nothing."""
    numbers: Counter[int] = Counter()
    for node in graph.node:
        if node.op_type == "Reshape" and (target := world.value(node.input[1])) is not None:
            numbers.update(int(number) for number in target.reshape(-1) if number > 1)
    most = max(2, int(MOST_GUESSES ** (1 / len(symbols))))
    choices = [number for number, _ in numbers.most_common(most)]
    for sizes in itertools.islice(itertools.product(choices, repeat=len(symbols)), MOST_GUESSES):
        yield dict(zip(symbols, sizes, strict=True))
