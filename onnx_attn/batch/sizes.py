"""Operators that are told sizes: Reshape, Expand, Tile, Resize. Here exporters bake the batch in.

A Reshape keeps the order of elements, so the batch keeps the number of places in front of it: `ahead` = the axes before its own,
times its outer. It lies on an axis of the result that has `prefix` places before it, `prefix · outer' = ahead`, and whose size is
a multiple of outer' · B. With B > 1 that is one axis at most. With B = 1 there may be several: (S, 1, E) → (S, E) is (S·B, E), or
(S, B·E). They are tried in the order of how exporters write, and what comes behind decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_attn.batch.place import FREE, SIZED, Batch, Blocked, Place
from onnx_attn.batch.step import Step
from onnx_attn.graph.world import Shape

KEPT, REST = 0, -1
"""What a Reshape's target says of an axis: as it is in the input; what is left over."""


def reshape(step: Step) -> Place:
    place = step.first()
    targets = _results(step)
    found = _readings(step.baked(0), place, targets, step.reading.batch)
    if not found:
        raise Blocked("it joins the batch with other axes, or splits it, so that no axis carries it any more")
    step.choices = len(found)
    wanted = found[step.choice % len(found)]
    if not step.works(step.inputs, wanted):
        _retarget(step, place, wanted, targets)
    return wanted


def _results(step: Step) -> list[Shape]:
    """The result's shapes at the baked batch, one a world."""
    shapes = [world.shape(step.node.output[0]) for world in step.reading.view.worlds]
    if any(shape is None for shape in shapes):
        raise Blocked(f"the shape of '{step.node.output[0]}' cannot be followed")
    return [shape for shape in shapes if shape is not None]


def _readings(before: Sequence[Shape], place: Batch, after: Sequence[Shape], batch: int) -> list[Batch]:
    """Where the batch may be in the result, the most natural place first."""
    found = []
    for axis in range(len(after[0])):
        outer = []
        for source, target, own in zip(before, after, place.outer, strict=True):
            ahead, prefix = math.prod(source[: place.axis]) * own, math.prod(target[:axis])
            if prefix and ahead % prefix == 0 and target[axis] and target[axis] % (ahead // prefix * batch) == 0:
                outer.append(ahead // prefix)
        if len(outer) == len(after):
            found.append(Batch(axis, tuple(outer)))

    def unnatural(each: Batch) -> tuple[bool, bool, bool, int]:
        # The last axis holds channels; a batch that is outermost again is what the exporter was after.
        last = each.axis == len(after[0]) - 1 and len(after[0]) > 1
        return last, not each.is_outermost, each.axis != place.axis, each.axis

    return sorted(found, key=unnatural)


def _retarget(step: Step, place: Batch, wanted: Batch, results: Sequence[Shape]) -> None:
    """A target that says the batch's axis by 0 or −1, or else computes it."""
    value = step.reading.value(step.inputs[1])
    keeps = _keeps(step, place, wanted, results)
    if value is None:
        _patched(step, wanted, [KEPT, REST] if keeps else [REST])
        return
    target = [int(number) for number in value.reshape(-1)]
    rest = [axis for axis, number in enumerate(target) if number == REST and axis != wanted.axis]
    exact = step.attribute("allowzero", 0)
    for axis, number in enumerate(target):
        if axis != wanted.axis and number == KEPT and axis == place.axis and not exact:
            target[axis] = _static(results, axis)
    if keeps:
        target[wanted.axis] = KEPT
    elif rest and len({shape[rest[0]] for shape in results}) > 1:
        factor = _static(results, wanted.axis) // step.reading.batch
        step.inputs[1] = step.sizes(target, wanted.axis, factor)
        return
    else:
        for axis in rest:
            target[axis] = results[0][axis]
        target[wanted.axis] = REST
    step.inputs[1] = step.constant(target)


def _keeps(step: Step, place: Batch, wanted: Batch, results: Sequence[Shape]) -> bool:
    """Whether the batch's axis is the input's own at the same place."""
    sizes = [shape[place.axis] for shape in step.baked(0)]
    same = wanted == place and sizes == [shape[wanted.axis] for shape in results]
    return same and not step.attribute("allowzero", 0)


def _static(shapes: Sequence[Shape], axis: int) -> int:
    sizes = {shape[axis] for shape in shapes}
    if len(sizes) > 1:
        raise Blocked("beside the batch, other sizes vary that its target does not say")
    return sizes.pop()


def _patched(step: Step, wanted: Batch, instead: Sequence[int]) -> None:
    """A target that is computed, with one of its numbers replaced."""
    values = step.reading.values(step.inputs[1])
    if values is None:
        raise Blocked("its sizes are not known")
    chosen = np.arange(values[0].size) == wanted.axis
    for number in instead:
        name = step.add("Where", [step.constant(chosen), step.constant([number]), step.inputs[1]], "sizes", SIZED)
        if step.works([step.inputs[0], name, *step.inputs[2:]], wanted):
            step.inputs[1] = name
            return
    raise Blocked("its sizes are computed, from the baked batch too")


def flatten(step: Step) -> Place:
    """To two axes: those before `axis`, and those from there on."""
    place, axis = step.first(), step.axis(1, step.rank(0) + 1)
    first = place.axis < axis
    ahead = [shape[: place.axis] if first else shape[axis : place.axis] for shape in step.baked(0)]
    outer = tuple(math.prod(sizes) * own for sizes, own in zip(ahead, place.outer, strict=True))
    return Batch(0 if first else 1, outer)


def expand(step: Step) -> Place:
    """A size of 1 keeps what is there."""
    place = step.first()
    results = _results(step)
    wanted = place.at(place.axis + len(results[0]) - step.rank(0))
    if step.works(step.inputs, wanted):
        return wanted
    value = step.reading.value(step.inputs[1])
    length = step.shape(1)[0]
    if value is None:
        _patched(step, wanted, [1])
        return wanted
    target = [int(number) for number in value.reshape(-1)]
    target[wanted.axis - (len(results[0]) - length)] = 1
    step.inputs[1] = step.constant(target)
    return wanted


def tile(step: Step) -> Place:
    """k copies of an axis stand before what each of them holds."""
    place = step.first()
    repeats = step.numbers(1) or []
    return Batch(place.axis, tuple(outer * repeats[place.axis] for outer in place.outer))


def resize(step: Step) -> Place:
    """Scales leave the batch as it is; sizes name it."""
    place = step.first()
    step.require_free(1, 2)
    if step.has(1) and step.shape(1) != (0,):
        raise Blocked("it has a region of interest")
    if place.axis != 0 or not step.has(3) or step.works(step.inputs, place):
        return place
    sizes = step.numbers(3) or []
    axes = [axis % step.rank(0) for axis in step.attribute("axes", range(step.rank(0)))]
    at = axes.index(place.axis)
    if sizes[at] != step.shape(0)[place.axis]:
        raise Blocked("it resizes the batch")
    step.inputs[3] = step.sizes(sizes, at, sizes[at] // step.reading.batch)
    return place


def grown(step: Step) -> Place:
    """What is filled or expanded to a size that follows from the batch: equal for all entries."""
    if step.node.op_type == "Expand":
        step.require_free(0)
    results = step.reading.infer(step.written())
    shapes = [found[0].shape if found and found[0] is not None else None for found in results]
    if any(shape is None for shape in shapes):
        return SIZED
    made = [shape for shape in shapes if shape is not None]
    outer = (1,) * len(step.reading.view.worlds)
    found = [place for axis in range(len(made[0])) if step.reading.fits(place := Batch(axis, outer), made)]
    if len(set(made[: len(outer)])) == 1 and all(shape == made[0] for shape in made):
        return FREE
    if step.node.op_type == "Expand" and found:
        source = step.shape(0)
        axis = found[0].axis - (len(made[0]) - len(source))
        if axis >= 0 and source[axis] != 1:
            return SIZED
    return found[0] if len(found) == 1 else SIZED
