"""Products: the batch may lie on any axis but the one that is summed."""

from __future__ import annotations

from onnx_attn.batch.place import Batch, Blocked, Place
from onnx_attn.batch.shared import broadcast, cut_to_entry, spread_out
from onnx_attn.batch.step import Step

SUMMED = "it sums over the batch"


def matmul(step: Step) -> Place:
    """(…, M, K) by (…, K, N); what comes behind the two are zero points, which all entries share."""
    second = 2 if step.node.op_type == "QLinearMatMul" else 1
    if step.node.op_type == "QLinearMatMul":
        second = 3
    step.require_free(*[position for position in range(len(step.inputs)) if position not in (0, second)])
    ranks = step.rank(0), step.rank(second)
    rows, columns = _on_matrix(step, 0), _on_matrix(step, second)
    if rows is None and columns is None:
        if min(ranks) < 2:
            raise Blocked(SUMMED)
        return broadcast(step, (0, second), ranks=2)
    if rows is not None and columns is not None:
        raise Blocked("it multiplies each entry by every other")
    at, batch = (0, rows) if rows is not None else (second, columns)
    assert batch is not None
    other = second if at == 0 else 0
    from_back = batch.axis - step.rank(at)
    if step.rank(at) == 1 or from_back == (-1 if at == 0 else -2):
        raise Blocked(SUMMED)
    step.require_free(other)
    rank = max(ranks) if min(ranks) > 1 else max(ranks) - 1
    # A vector as the other operand leaves out the axis that it is summed with.
    vector = step.rank(other) == 1
    return batch.at(rank - 1 if vector else rank + from_back)


def _on_matrix(step: Step, position: int) -> Batch | None:
    """The batch of an operand that has it on one of its last two axes."""
    batch = step.batch(position)
    return batch if batch is not None and batch.axis >= step.rank(position) - 2 else None


def gemm(step: Step) -> Place:
    rows, columns = step.batch(0), step.batch(1)
    if rows is not None and columns is not None:
        raise Blocked("it multiplies each entry by every other" if rows.axis != columns.axis else SUMMED)
    if rows is not None:
        step.require_free(1)
        place = rows.at(rows.axis ^ (1 if step.attribute("transA", 0) else 0))
        summed = place.axis == 1
    elif columns is not None:
        step.require_free(0)
        place = columns.at(columns.axis ^ (1 if step.attribute("transB", 0) else 0))
        summed = place.axis == 0
    else:
        raise Blocked("only what it adds follows from the batch")
    if summed:
        raise Blocked(SUMMED)
    if step.has(2):
        at = 0 if rows is not None else 1
        _addend(step, place, step.reading.inner(step.inputs[at], step.first(at)))
    return place


def _addend(step: Step, place: Batch, inner: list[int]) -> None:
    axis = place.axis - (2 - step.rank(2))
    batch = step.batch(2)
    if batch is not None:
        if batch != place.at(axis) or step.reading.inner(step.inputs[2], batch) != inner:
            raise Blocked("what it adds has the batch at another place")
        return
    step.require_free(2)
    if axis >= 0 and any(shape[axis] != 1 for shape in step.baked(2)):
        cut_to_entry(step, 2, place.at(axis), inner, spread=False)


def einsum(step: Step) -> Place:
    """Every operand that has the batch's letter has the batch."""
    equation = step.attribute("equation").decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = [_letters(term, step.rank(position)) for position, term in enumerate(left.split(","))]
    result = _letters(right, None, terms) if arrow else _implied(terms)
    found = {position: place for position in range(len(terms)) if (place := step.batch(position)) is not None}
    letters = {terms[position][place.axis] for position, place in found.items()}
    if len(letters) != 1:
        raise Blocked("it multiplies each entry by every other")
    letter = letters.pop()
    if letter not in result:
        raise Blocked(SUMMED)
    kinds = {
        (place.outer, tuple(step.reading.inner(step.inputs[position], place))) for position, place in found.items()
    }
    if len(kinds) != 1 or any(term.count(letter) > 1 for term in terms):
        raise Blocked("its operands have the batch at different places")
    outer, inner = kinds.pop()
    for position, term in enumerate(terms):
        if position not in found:
            step.require_free(position)
            if letter in term:
                spread_out(step, position, Batch(term.index(letter), outer), list(inner))
    return Batch(result.index(letter), outer)


def _letters(term: str, rank: int | None, terms: list[list[str]] | None = None) -> list[str]:
    """The axes of a term; those of an ellipsis are called by their number from the back."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    if rank is None:
        count = max(sum(name.isdigit() for name in each) for each in terms or [[]])
    else:
        count = rank - len(before) - len(after)
    return [*before, *[str(number) for number in reversed(range(count))], *after]


def _implied(terms: list[list[str]]) -> list[str]:
    """The result where no arrow says it: letters that stand once, in their order, behind an ellipsis."""
    every = [name for term in terms for name in term]
    dots = sorted({name for name in every if name.isdigit()}, key=int, reverse=True)
    return dots + sorted(name for name in set(every) if not name.isdigit() and every.count(name) == 1)
