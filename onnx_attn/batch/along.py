"""Operators that work along axes: on any axis but the batch's they keep entries apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx_attn.batch.place import SIZED, Batch, Blocked, Place
from onnx_attn.batch.shared import agreed, broadcast, cut_to_entry, spread_out
from onnx_attn.batch.step import Step


def apart(step: Step, place: Batch, axes: Sequence[int], does: str) -> None:
    """Raise Blocked if the batch lies on one of the axes that the operator works along."""
    if place.axis in axes:
        raise Blocked(f"it {does} along the batch")


def elementwise(step: Step) -> Place:
    return broadcast(step, range(len(step.inputs)))


def cast_like(step: Step) -> Place:
    """Of its second input it reads the type alone."""
    return step.place(0)


def dropout(step: Step) -> Place:
    training = step.numbers(2)
    if training is not None and any(training):
        raise Blocked("it is in training mode, where chance decides")
    step.require_free_from(1)
    return step.first()


def softmax(step: Step) -> Place:
    place = step.first()
    apart(step, place, [step.axis(-1)], "normalises")
    return place


def layer_norm(step: Step) -> Place:
    """Normalises all axes from `axis` on."""
    step.require_free_from(1)
    place = step.first()
    apart(step, place, range(step.axis(-1), step.rank(0)), "normalises")
    return place


def batch_norm(step: Step) -> Place:
    step.require_free_from(1)
    if step.attribute("training_mode", 0) or len([name for name in step.node.output if name]) > 1:
        raise Blocked("it is in training mode, where it normalises along the batch")
    place = step.first()
    apart(step, place, [1], "has weights")
    return place


def image(step: Step) -> Place:
    """Convolutions, pools and their like: the first axis holds the pictures, each of them by itself."""
    step.require_free_from(1)
    place = step.first()
    if len([name for name in step.node.output if name]) > 1:
        raise Blocked("its indices count on through all pictures")
    apart(step, place, range(1, step.rank(0)), "works")
    return place


def grid_sample(step: Step) -> Place:
    found = {position: place for position in (0, 1) if (place := step.batch(position)) is not None}
    if any(place.axis != 0 for place in found.values()):
        raise Blocked("it works along the batch")
    place, inner = agreed(step, found)
    for position in {0, 1}.difference(found):
        spread_out(step, position, place, inner)
    return place


def reduction(step: Step) -> Place:
    step.require_free_from(1)
    place, rank = step.first(), step.rank(0)
    axes = step.numbers(1, "axes")
    if not axes:
        if step.attribute("noop_with_empty_axes", 0):
            return place
        raise Blocked("it sums up all axes, that of the batch too")
    axes = sorted(axis % rank for axis in axes)
    apart(step, place, axes, "sums up")
    if step.attribute("keepdims", 1):
        return place
    return place.at(place.axis - sum(axis < place.axis for axis in axes))


def arg_reduction(step: Step) -> Place:
    place, axis = step.first(), step.axis(0)
    apart(step, place, [axis], "picks")
    return place if step.attribute("keepdims", 1) or axis > place.axis else place.at(place.axis - 1)


def one_axis(default: int) -> Callable[[Step], Place]:
    """Operators along the attribute `axis`."""

    def rule(step: Step) -> Place:
        step.require_free_from(1)
        place = step.first()
        apart(step, place, [step.axis(default)], "works")
        return place

    return rule


def cumulative(step: Step) -> Place:
    place, axes = step.first(), step.numbers(1)
    apart(step, place, [axis % step.rank(0) for axis in axes or range(step.rank(0))], "sums up")
    return place


def triangle(step: Step) -> Place:
    step.require_free_from(1)
    place, rank = step.first(), step.rank(0)
    apart(step, place, [rank - 2, rank - 1], "cuts a triangle")
    return place


def quantize(step: Step) -> Place:
    """One scale for all, or one for each position of an axis."""
    step.require_free_from(1)
    place = step.first()
    if step.attribute("block_size", 0):
        raise Blocked("it has scales in blocks")
    if step.shape(1) not in ((), (1,)):
        apart(step, place, [step.axis(1)], "has scales")
    return place


def attention(step: Step) -> Place:
    """Entries are the first axis of Q, K, V, the caches and the lengths; a mask broadcasts to (B, N, Sq, Sk)."""
    main = [position for position in (0, 1, 2, 4, 5, 6) if step.has(position)]
    found = {position: place for position in main if (place := step.batch(position)) is not None}
    if not found or any(place.axis != 0 for place in found.values()):
        raise Blocked("the batch is not the first axis of Q, K and V")
    place = next(iter(found.values()))
    inner = {tuple(step.reading.inner(step.inputs[position], each)) for position, each in found.items()}
    if len(set(found.values())) != 1 or len(inner) != 1:
        raise Blocked("Q, K and V have the batch at different places")
    entries = list(inner.pop())
    for position in set(main).difference(found):
        spread_out(step, position, place, entries)
    if step.has(3):
        _mask(step, place, entries)
    return place


def _mask(step: Step, place: Batch, inner: Sequence[int]) -> None:
    axis, batch = 4 - step.rank(3), step.batch(3)
    if batch is not None:
        if batch.axis != 0 or axis != 0 or batch != place or step.reading.inner(step.inputs[3], batch) != list(inner):
            raise Blocked("its mask has the batch at another place than Q, K and V")
        return
    step.require_free(3)
    if axis == 0 and any(shape[0] != 1 for shape in step.baked(3)):
        cut_to_entry(step, 3, place, inner, spread=False)


def shape_of(step: Step) -> Place:
    return SIZED
