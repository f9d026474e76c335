"""Try a pattern on a value: every way in turn, until one matches; else what was furthest along when it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import TypeAlias

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.match.pattern import (
    MOST_OPERANDS,
    Const,
    Either,
    Fork,
    Op,
    Pattern,
    PatternError,
    Require,
    Var,
)

Bound: TypeAlias = "gs.Tensor | gs.Node | float"


@dataclass(frozen=True)
class Match:
    """What a pattern matched: its named values, nodes and numbers, and all its nodes, the last one of the graph first."""

    view: GraphView
    value: gs.Tensor
    captures: Mapping[str, Bound] = field(default_factory=dict)
    nodes: tuple[gs.Node, ...] = ()

    def __getitem__(self, name: str) -> gs.Tensor:
        """A named value."""
        found = self.captures[name]
        assert isinstance(found, gs.Tensor), f"'{name}' is no value"
        return found

    def node(self, name: str) -> gs.Node:
        found = self.captures[name]
        assert isinstance(found, gs.Node), f"'{name}' is no node"
        return found

    def number(self, name: str) -> float:
        found = self.captures[name]
        assert isinstance(found, float), f"'{name}' is no number"
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.captures


@dataclass(frozen=True)
class Failure:
    """A pattern that did not match. matched: how many nodes of it did, at the furthest; then `at`, a node or a value by name,
    stopped it, since `reason`."""

    matched: int
    at: str
    reason: str
    nodes: tuple[gs.Node, ...] = ()

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        came = f"{self.matched} node{'s' if self.matched != 1 else ''} matched, then at '{self.at}': "
        return came + self.reason


class Matcher:
    """One attempt. `stop` keeps the failure that came furthest; of equals the first, which is the likelier way.

    bodies: nodes of bodies and functions match too, and not only those of the main graph.
    """

    def __init__(self, view: GraphView, bodies: bool = False):
        self.view = view
        self.bodies = bodies
        self.stop: Failure | None = None

    def attempt(self, pattern: Pattern, value: gs.Tensor, given: Mapping[str, Bound] | None = None) -> Match | Failure:
        found = next(self._ways(pattern, value, Match(self.view, value, dict(given or {}))), None)
        if found is not None:
            return found
        assert self.stop is not None
        return self.stop

    def _ways(self, pattern: Pattern, value: gs.Tensor, so_far: Match) -> Iterator[Match]:
        """Every way in which the pattern describes the value, given what is bound; as deep as the pattern is."""
        match pattern:
            case Op():
                yield from self._op(pattern, value, so_far)
            case Var():
                yield from self._var(pattern, value, so_far)
            case Const():
                yield from self._const(pattern, value, so_far)
            case Either():
                for choice in pattern.choices:
                    yield from self._ways(choice, value, so_far)
            case Require():
                for found in self._ways(pattern.inner, value, so_far):
                    if pattern.test(found):
                        yield found
                    else:
                        self._stopped(found, found.nodes[-1] if found.nodes else value, pattern.reason)
            case Fork():
                yield from self._fork(pattern, value, so_far)
            case _:
                raise PatternError(f"{pattern} stands alone; HERE, maybe and repeat belong into a chain")

    def _op(self, pattern: Op, value: gs.Tensor, so_far: Match) -> Iterator[Match]:
        node = self.view.producer(value)
        wanted = "|".join(pattern.ops)
        if node is None or not (self.bodies or self.view.in_main_graph(node)):
            what = "a constant" if self.view.is_weight(value) else "an input of the graph"
            return self._stopped(so_far, value, f"expected {wanted}, found {what}")
        reason = self._unlike(pattern, node, value)
        if reason is not None:
            return self._stopped(so_far, node, reason)
        if any(node is other for other in so_far.nodes):
            return self._stopped(so_far, node, f"expected another {wanted} than the one that is matched already")
        captures = so_far.captures | {pattern.name: node} if pattern.name else so_far.captures  # type: ignore[operator]
        here = Match(self.view, so_far.value, captures, (*so_far.nodes, node))
        for order in _orders(pattern, node):
            yield from self._inputs(pattern.inputs, [node.inputs[position] for position in order], here)
        return None

    def _unlike(self, pattern: Op, node: gs.Node, value: gs.Tensor) -> str | None:
        wanted = "|".join(pattern.ops)
        domains = STANDARD if pattern.domain in STANDARD else (pattern.domain,)
        if node.op not in pattern.ops or node.domain not in domains:
            return f"expected {wanted}, found {node.op}"
        if len(node.outputs) <= pattern.result or node.outputs[pattern.result] is not value:
            return f"expected result {pattern.result} of {wanted}, found another"
        if len([tensor for tensor in node.inputs if tensor.name]) < len(pattern.inputs):
            return f"expected {wanted} with {len(pattern.inputs)} operands, found {len(node.inputs)}"
        for name, wished in pattern.attributes.items():
            if node.attrs.get(name) != wished:
                return f"expected {wanted} with {name} {wished}, found {node.attrs.get(name)}"
        return None

    def _inputs(self, patterns: tuple[Pattern, ...], values: list[gs.Tensor], so_far: Match) -> Iterator[Match]:
        if not patterns:
            yield so_far
            return
        for found in self._ways(patterns[0], values[0], so_far):
            yield from self._inputs(patterns[1:], values[1:], found)

    def _var(self, pattern: Var, value: gs.Tensor, so_far: Match) -> Iterator[Match]:
        known = so_far.captures.get(pattern.name)
        if known is not None:
            if known is not value:
                self._stopped(so_far, value, f"expected '{pattern.name}' again, which is '{_name(known)}'")
            elif pattern.inner is None or any(self.view.producer(value) is node for node in so_far.nodes):
                yield so_far
            else:  # Known by its bare name so far.
                yield from self._ways(pattern.inner, value, so_far)
            return
        ways = [so_far] if pattern.inner is None else self._ways(pattern.inner, value, so_far)
        for found in ways:
            if found.captures.get(pattern.name, value) is value:  # Its own description may name it, and mean another.
                yield Match(found.view, found.value, {**found.captures, pattern.name: value}, found.nodes)
            else:
                self._stopped(found, value, f"'{pattern.name}' would be two values")

    def _const(self, pattern: Const, value: gs.Tensor, so_far: Match) -> Iterator[Match]:
        number = self.view.scalar(value)
        if number is None or (pattern.value is not None and number != pattern.value):
            found = "one that is computed" if number is None else f"{number:g}"
            return self._stopped(so_far, value, f"expected {pattern} as a number, found {found}")
        captures = {**so_far.captures, pattern.name: number} if pattern.name else so_far.captures
        yield Match(so_far.view, so_far.value, captures, so_far.nodes)
        return None

    def _fork(self, pattern: Fork, value: gs.Tensor, so_far: Match) -> Iterator[Match]:
        for found in self._ways(pattern.source, value, so_far):
            yield from self._branches(pattern.branches, value, found)

    def _branches(self, branches: tuple[Pattern, ...], source: gs.Tensor, so_far: Match) -> Iterator[Match]:
        if not branches:
            yield so_far
            return
        for value in below(self.view, source, depth(branches[0]), self.bodies):
            for found in self._ways(branches[0], value, so_far):
                yield from self._branches(branches[1:], source, found)
        self._stopped(so_far, source, f"{len(branches)} of the values that are made from it are missing: {branches[0]}")

    def _stopped(self, so_far: Match, at: gs.Node | gs.Tensor, reason: str) -> None:
        if self.stop is None or len(so_far.nodes) > self.stop.matched:
            self.stop = Failure(len(so_far.nodes), _name(at), reason, so_far.nodes)


def _orders(pattern: Op, node: gs.Node) -> Iterator[tuple[int, ...]]:
    """Positions of the node's inputs, in the orders in which they may meet the pattern's operands."""
    wanted, there = len(pattern.inputs), len(node.inputs)
    if pattern.any_order and 2 <= there <= MOST_OPERANDS:
        yield from permutations(range(there), wanted)
    else:
        yield tuple(range(wanted))


def below(view: GraphView, source: gs.Tensor, levels: int, bodies: bool = False) -> Iterator[gs.Tensor]:
    """The values that nodes of the main graph (or any) make from a value, at most so many nodes further down, each once."""
    seen, row = {id(source)}, [source]
    for _ in range(levels):
        made = [
            result
            for value in row
            for node in view.readers(value)
            if bodies or view.in_main_graph(node)
            for result in node.outputs
        ]
        row = [value for value in {id(v): v for v in made}.values() if id(value) not in seen]
        seen.update(map(id, row))
        yield from row


def depth(pattern: Pattern) -> int:
    """How many nodes stand one above the other in a pattern, at most."""
    match pattern:
        case Op():
            return 1 + max((depth(each) for each in pattern.inputs), default=0)
        case Var() | Require():
            return depth(pattern.inner) if pattern.inner is not None else 0
        case Either():
            return max(map(depth, pattern.choices))
        case Fork():
            return max(map(depth, pattern.branches))
    return 0


def _name(thing: object) -> str:
    return label(thing) if isinstance(thing, gs.Node) else str(getattr(thing, "name", thing))
