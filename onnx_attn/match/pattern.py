"""What patterns are made of. A pattern describes a value: which node makes it, and of what.

    op("Softmax", x)            the first result of a Softmax of what `x` describes
    op("Mul|Div", x, y)         of either operator
    var("x"), var("x", p)       any value, or one that `p` describes, by the name x; the same value wherever the name stands again
    const(0.0), const()         a constant number, this one or any
    either(p, q)                p, or else q
    require(p, test, reason)    p, if `test(match)` holds
    chain(p, step, …)           p, and what the steps make of it one after the other, which each step calls HERE
    maybe(step), repeat(step)   in a chain: perhaps; any number of times
    fork(x, p, q, …)            the value x, from which distinct nodes make p, q, …

Operands stand in the node's order; those of operators that commute (Add, Mul, And, Or, Xor, Max, Min, Sum, Equal) in any.
`any_order` says so of an operator that does not. Inputs of a node that a pattern does not mention are free. Two nodes of a
pattern are two nodes of the graph, unless they are one value by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from onnx_attn.graph.view import STANDARD

if TYPE_CHECKING:
    from onnx_attn.match.matcher import Match

COMMUTE = frozenset("Add Mul And Or Xor Max Min Sum Equal BitwiseAnd BitwiseOr BitwiseXor".split())
"""Operators whose operands may change places: a fact of the operator, from the ONNX operator specification."""
MOST_OPERANDS = 4
"""Up to how many operands every order is tried: their number is a factorial."""
_numbers = count()


class PatternError(ValueError):
    """A pattern that cannot be what its author meant."""


class Pattern:
    """Any of the classes below."""


@dataclass(frozen=True)
class Op(Pattern):
    ops: tuple[str, ...]
    inputs: tuple[Pattern, ...]
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    result: int = 0
    name: str | None = None
    any_order: bool = False

    def __str__(self) -> str:
        return f"{'|'.join(self.ops)}({', '.join(map(str, self.inputs))})"


@dataclass(frozen=True)
class Var(Pattern):
    name: str
    inner: Pattern | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Const(Pattern):
    value: float | None
    name: str | None

    def __str__(self) -> str:
        return "a constant" if self.value is None else f"{self.value:g}"


@dataclass(frozen=True)
class Either(Pattern):
    choices: tuple[Pattern, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.choices))


@dataclass(frozen=True)
class Require(Pattern):
    inner: Pattern
    test: Callable[[Match], bool]
    reason: str

    def __str__(self) -> str:
        return str(self.inner)


@dataclass(frozen=True)
class Fork(Pattern):
    source: Var
    branches: tuple[Pattern, ...]

    def __str__(self) -> str:
        return f"fork({self.source}, {', '.join(map(str, self.branches))})"


@dataclass(frozen=True)
class _Here(Pattern):
    def __str__(self) -> str:
        return "HERE"


HERE = _Here()
"""In a step of a chain: what the chain has come to."""


@dataclass(frozen=True)
class Step(Pattern):
    """A step that may be missing, or stand several times."""

    inner: Pattern
    least: int
    most: int


def op(ops: str, *inputs: Pattern, domain: str = "", result: int = 0, name: str | None = None, **attributes: Any) -> Op:
    """The `result`-th result of a node of one of `ops` ("Mul|Div"), whose first inputs are `inputs` and whose attributes have
    these values. `name` keeps the node itself in the match."""
    found = tuple(part.strip() for part in ops.split("|"))
    if not all(found):
        raise PatternError(f"op({ops!r}): name an operator, or several as 'Mul|Div'")
    if not all(isinstance(each, Pattern) for each in inputs):
        raise PatternError(
            f"op({ops!r}): every operand is a pattern; use var('x') for any value, const(0.5) for a number"
        )
    commutes = set(found) <= COMMUTE and domain in STANDARD
    return Op(found, inputs, domain, attributes, result, name, commutes)


def var(name: str, inner: Pattern | None = None) -> Var:
    """A value by name; where the name stands a second time, the same value."""
    if not name:
        raise PatternError("var(''): give the value a name")
    return Var(name, inner)


def const(value: float | None = None, name: str | None = None) -> Const:
    """A number that does not depend on any input: `value`, or any one; kept under `name`."""
    return Const(value, name)


def either(*choices: Pattern) -> Either:
    """The first of the choices that matches."""
    if len(choices) < 2:
        raise PatternError("either() needs two choices or more")
    return Either(choices)


def any_order(pattern: Op) -> Op:
    """The same node with its operands in any order."""
    return replace(pattern, any_order=True)


def require(pattern: Pattern, test: Callable[[Match], bool], reason: str) -> Require:
    """What `pattern` matches, if `test` holds for what is named in it; `reason` says what is wrong if not."""
    return Require(pattern, test, reason)


def maybe(step: Pattern) -> Step:
    """In a chain: a step that may be missing."""
    return repeat(step, at_most=1)


def repeat(step: Pattern, at_least: int = 0, at_most: int = 8) -> Step:
    """In a chain: a step that stands between `at_least` and `at_most` times, as often as it can."""
    if not 0 <= at_least <= at_most:
        raise PatternError(f"repeat(…, at_least={at_least}, at_most={at_most}): the first is at most the second")
    if not mentions_here(step):
        raise PatternError(f"a step of a chain says HERE where the chain comes in; {step} does not")
    return Step(step, at_least, at_most)


def fork(source: Var, *branches: Pattern) -> Fork:
    """The value `source`, from which distinct nodes make each of the branches; every branch names it."""
    for branch in branches:
        if not any(isinstance(part, Var) and part.name == source.name for part in parts(branch)):
            raise PatternError(f"fork({source}, …): the branch {branch} does not name '{source}'")
    return Fork(source, branches)


def chain(first: Pattern, *steps: Pattern) -> Pattern:
    """What the steps, in their order, make of `first`."""
    found = first
    for step in steps:
        if not mentions_here(step):
            raise PatternError(f"a step of a chain says HERE where the chain comes in; {step} does not")
        found = _after(found, step)
    return found


def _after(before: Pattern, step: Pattern) -> Pattern:
    if not isinstance(step, Step):
        return substitute(step, before)
    found = before
    ways = [before] if step.least == 0 else []
    for times in range(1, step.most + 1):
        found = substitute(step.inner, found)
        if times >= step.least:
            ways.insert(0, found)
    return ways[0] if len(ways) == 1 else Either(tuple(ways))


def parts(pattern: Pattern) -> list[Pattern]:
    """A pattern and everything in it."""
    found, queue = [], [pattern]
    while queue:
        part = queue.pop()
        found.append(part)
        queue.extend(_children(part))
    return found


def mentions_here(pattern: Pattern) -> bool:
    return any(isinstance(part, _Here) for part in parts(pattern))


def substitute(step: Pattern, here: Pattern) -> Pattern:
    """The step with `here` in place of HERE; where that stands twice, both are one value."""
    if sum(isinstance(part, _Here) for part in parts(step)) > 1:
        here = Var(f"_{next(_numbers)}", here)
    return _replaced(step, here)


def _replaced(pattern: Pattern, here: Pattern) -> Pattern:
    """Recursion as deep as the pattern, which its author wrote by hand."""
    match pattern:
        case _Here():
            return here
        case Op():
            return replace(pattern, inputs=tuple(_replaced(each, here) for each in pattern.inputs))
        case Var() if pattern.inner is not None:
            return replace(pattern, inner=_replaced(pattern.inner, here))
        case Either():
            return Either(tuple(_replaced(each, here) for each in pattern.choices))
        case Require() | Step():
            return replace(pattern, inner=_replaced(pattern.inner, here))
        case Fork():
            return replace(pattern, branches=tuple(_replaced(each, here) for each in pattern.branches))
    return pattern


def _children(pattern: Pattern) -> tuple[Pattern, ...]:
    match pattern:
        case Op():
            return pattern.inputs
        case Var():
            return (pattern.inner,) if pattern.inner is not None else ()
        case Either():
            return pattern.choices
        case Require() | Step():
            return (pattern.inner,)
        case Fork():
            return (pattern.source, *pattern.branches)
    return ()
