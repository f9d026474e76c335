"""Operands that do not follow from the batch and stand beside some that do.

What broadcasts stays. What repeats itself for each of B baked entries is cut to one of them, once the numbers show that all are
equal; it then broadcasts, or is repeated as often as the model that runs has entries:
  (B, S)     → (1, S), broadcast, or expanded to (n, S) where nothing broadcasts (Concat)
  (B·nW, …)  → (nW, …) → tiled to (n·nW, …)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_attn.batch.place import FREE, Batch, Blocked
from onnx_attn.batch.reading import Reading
from onnx_attn.batch.step import Step
from onnx_attn.views.folding import constant_value


def broadcast(step: Step, operands: Sequence[int], ranks: int = 0) -> Batch:
    """Where the batch is in the result of operands that broadcast (over their leading axes but for the last `ranks`).

    Operands with a batch must have it at the same place; the others are made to fit.
    """
    held = [position for position in operands if step.has(position)]
    rank = max(step.rank(position) for position in held)
    found: dict[int, Batch] = {}
    for position in held:
        if (batch := step.batch(position)) is not None:
            if batch.axis >= step.rank(position) - ranks:
                raise Blocked("the batch does not lie on an axis that broadcasts")
            found[position] = batch.at(batch.axis + rank - step.rank(position))
    place, inner = agreed(step, found, rank)
    for position in held:
        if position not in found:
            step.require_free(position)
            axis = place.axis - (rank - step.rank(position))
            if axis >= 0 and any(shape[axis] != 1 for shape in step.baked(position)):
                cut_to_entry(step, position, place.at(axis), inner, spread=False)
    return place


def agreed(step: Step, found: dict[int, Batch], rank: int | None = None) -> tuple[Batch, list[int]]:
    """The one place, and its inner sizes, that operands share (given as places of a result of `rank`)."""
    places = set(found.values())
    inner = set()
    for position, place in found.items():
        axis = place.axis - ((rank if rank is not None else step.rank(position)) - step.rank(position))
        inner.add(tuple(step.reading.inner(step.inputs[position], place.at(axis))))
    if len(places) != 1 or len(inner) != 1:
        names = ", ".join(f"'{step.inputs[position]}'" for position in found)
        raise Blocked(f"its operands {names} have the batch at different places")
    return places.pop(), list(inner.pop())


def cut_to_entry(step: Step, position: int, place: Batch, inner: Sequence[int], spread: bool) -> None:
    """Let a free operand serve every entry along `place`; spread: it must have an entry for each, since nothing broadcasts."""
    reading, name, axis = step.reading, step.inputs[position], place.axis
    sizes = [shape[axis] for shape in step.baked(position)]
    wanted = [outer * reading.batch * each for outer, each in zip(place.outer, inner, strict=True)]
    if sizes != wanted or len(set(inner)) != 1:
        raise Blocked(f"'{name}' has {sizes[0]} positions along the batch, which has {wanted[0]}")
    if not place.is_outermost:
        raise Blocked(f"'{name}' would have to be repeated within its axis")
    if spread and (stretched := _expanded_anew(step, name, place)) is not None:
        step.inputs[position] = stretched
        return
    if reading.batch > 1:
        _check_repeats(reading, name, axis)
        ends = [step.constant([number]) for number in (0, inner[0], axis)]
        name = step.add("Slice", [name, *ends], "entry", FREE)
    if spread or inner[0] > 1:
        repeats = step.sizes([1] * step.rank(position), axis, 1)
        name = step.add("Expand" if inner[0] == 1 else "Tile", [name, repeats], "entries", place)
    step.inputs[position] = name


def spread_out(step: Step, position: int, place: Batch, inner: Sequence[int]) -> None:
    """Make a free operand one that has the batch."""
    step.require_free(position)
    cut_to_entry(step, position, place, inner, spread=True)


def _expanded_anew(step: Step, name: str, place: Batch) -> str | None:
    """What an Expand made of a single entry, made of it for as many as there are; None for anything else."""
    view = step.reading.view
    node = view.producer(view.tensors[name]) if name in view.tensors else None
    if node is None or node.op != "Expand" or not view.in_main_graph(node):
        return None
    source, shapes = node.inputs[0].name, step.reading.shapes(name)
    before, after = step.reading.shapes(source)[0], shapes[0]
    axis = place.axis - (len(after) - len(before))
    if (axis >= 0 and before[axis] != 1) or len(set(step.reading.per_world(shapes))) > 1:
        return None
    factor = after[place.axis] // step.reading.batch
    return step.add("Expand", [source, step.sizes(after, place.axis, factor)], "entries", place)


def _check_repeats(reading: Reading, name: str, axis: int) -> None:
    """Raise Blocked unless all B blocks along an axis hold the same numbers."""
    tensor = reading.view.tensors.get(name)
    value = constant_value(reading.view, tensor) if tensor is not None else None
    if value is None:
        raise Blocked(f"'{name}' has numbers for each entry of the baked batch, which are not known to be the same")
    blocks = np.stack(np.split(value, reading.batch, axis))
    if not (blocks == blocks[:1]).all():
        raise Blocked(f"'{name}' holds other numbers for each entry of the baked batch")
