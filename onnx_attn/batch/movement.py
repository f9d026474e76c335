"""Operators that move elements along axes, add axes or take some away."""

from __future__ import annotations

from onnx_attn.batch.along import apart
from onnx_attn.batch.picks import gather_nd_of_entries, gather_of_entries
from onnx_attn.batch.place import Batch, Blocked, Place
from onnx_attn.batch.shared import agreed, spread_out
from onnx_attn.batch.step import Step

TO_THE_END = 2**31 - 1
"""What exporters write for the end of an axis, whatever its size: this or more."""


def transpose(step: Step) -> Place:
    place, rank = step.first(), step.rank(0)
    perm = list(step.attribute("perm", range(rank)[::-1]))
    return place.at(perm.index(place.axis))


def squeeze(step: Step) -> Place:
    place, rank = step.first(), step.rank(0)
    axes = step.numbers(1, "axes")
    if axes is None:
        axes = [axis for axis, size in enumerate(step.shape(0)) if size == 1]
    axes = [axis % rank for axis in axes]
    if place.axis in axes:
        raise Blocked("it takes the batch's axis away")
    return place.at(place.axis - sum(axis < place.axis for axis in axes))


def unsqueeze(step: Step) -> Place:
    place, axes = step.first(), step.numbers(1, "axes") or []
    rank = step.rank(0) + len(axes)
    added = {axis % rank for axis in axes}
    return place.at([axis for axis in range(rank) if axis not in added][place.axis])


def split(step: Step) -> Place:
    step.require_free_from(1)
    place = step.first()
    apart(step, place, [step.axis(0)], "splits")
    return place


def concat(step: Step) -> Place:
    return _axis_by_axis(step, "joins other things")


def by_elements(step: Step) -> Place:
    """GatherElements and ScatterElements: every operand has the axes of the first."""
    return _axis_by_axis(step, "picks entries")


def _axis_by_axis(step: Step, does: str) -> Place:
    """Nothing broadcasts: an operand that all entries share is given to each."""
    found = {position: place for position in range(len(step.inputs)) if (place := step.batch(position)) is not None}
    place, inner = agreed(step, found)
    apart(step, place, [step.axis(0)], does)
    for position in range(len(step.inputs)):
        if position not in found:
            spread_out(step, position, place, inner)
    return place


def slice_(step: Step) -> Place:
    """Along the batch's axis only the whole of it."""
    step.require_free_from(3)
    place, rank = step.first(), step.rank(0)
    starts, ends = step.reading.values(step.inputs[1]), step.reading.values(step.inputs[2])
    if starts is None or ends is None:
        raise Blocked("what it takes is not known")
    axes, steps = step.numbers(3), step.numbers(4)
    places = [axis % rank for axis in axes] if axes is not None else list(range(len(starts[0])))
    if place.axis in places:
        at = places.index(place.axis)
        sizes = [shape[place.axis] for shape in step.shapes(0)]
        bounds = [(int(start[at]), int(end[at])) for start, end in zip(starts, ends, strict=True)]
        whole = all(
            start in (0, -size) and (end >= TO_THE_END or end == size)
            for (start, end), size in zip(bounds, sizes, strict=True)
        )
        if not whole or (steps is not None and steps[at] != 1):
            raise Blocked("it takes some entries of the batch only")
    return place


def pad(step: Step) -> Place:
    step.require_free_from(1)
    place, rank = step.first(), step.rank(0)
    pads, axes = step.numbers(1, "pads") or [], step.numbers(3)
    places = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    if place.axis in places:
        at = places.index(place.axis)
        if pads[at] or pads[at + len(places)]:
            raise Blocked("it pads the batch")
    return place


def gather(step: Step) -> Place:
    axis = step.axis(0)
    data, indices = step.batch(0), step.batch(1)
    if data is not None and indices is not None:
        raise Blocked("it looks up each entry in every other")
    if data is None:
        step.require_free(0)
        return step.first(1).at(axis + step.first(1).axis)
    step.require_free(1)
    if data.axis == axis:
        return gather_of_entries(step, data)
    return data if data.axis < axis else data.at(data.axis - 1 + step.rank(1))


def gather_nd(step: Step) -> Place:
    """(b…, i…, rest) looked up at (b…, q…, m) gives (b…, q…, rest)."""
    data, indices, shared = step.batch(0), step.batch(1), int(step.attribute("batch_dims", 0))
    depth, rank = step.shape(1)[-1], step.rank(1)
    if data is not None and data.axis < shared:
        place, inner = agreed(step, {0: data, **({1: indices} if indices is not None else {})})
        if indices is None:
            spread_out(step, 1, place, inner)
        return place
    if data is None:
        step.require_free(0)
        place = step.first(1)
        if place.axis < shared or place.axis == rank - 1:
            raise Blocked("its indices have the batch where the table has none")
        return place
    step.require_free(1)
    if data.axis < shared + depth:
        return gather_nd_of_entries(step, data)
    return data.at(rank - 1 + data.axis - shared - depth)


def scatter_nd(step: Step) -> Place:
    """Rows that are shared by all entries are replaced within each: the batch lies on an axis that no index names."""
    step.require_free(1)
    depth, rank = step.shape(1)[-1], step.rank(1)
    found: dict[int, Batch] = {}
    if (data := step.batch(0)) is not None:
        found[0] = data
    if (updates := step.batch(2)) is not None:
        if updates.axis < rank - 1:
            raise Blocked("what it writes has the batch where the table has none")
        found[0 if not found else 2] = updates.at(updates.axis - (rank - 1) + depth)
    if any(place.axis < depth for place in found.values()) or len(set(found.values())) != 1:
        raise Blocked("it writes into entries of the batch")
    place = next(iter(found.values()))
    at = place.at(place.axis - depth + rank - 1)
    inner = step.reading.inner(step.inputs[0], place) if data is not None else step.reading.inner(step.inputs[2], at)
    if data is None:
        spread_out(step, 0, place, inner)
    if updates is None:
        spread_out(step, 2, at, inner)
    return place


def one_hot(step: Step) -> Place:
    step.require_free_from(1)
    place, rank = step.first(), step.rank(0) + 1
    axis = step.axis(-1, rank)
    return place if place.axis < axis else place.at(place.axis + 1)
