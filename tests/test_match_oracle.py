"""The matcher against an oracle that tries every assignment of nodes to a pattern, and laws that must hold of any graph."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from graphs import Net
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attn.graph.view import GraphView
from onnx_attn.match import Pattern, any_order, either, find, op, var

UNARY, BINARY = ("Neg",), ("Add", "Sub")
COMMUTE = ("Add",)

Tree = str | tuple[Any, ...]
"""A pattern as data: a name; (operator, child, …); ("any", tree) for any order; ("or", tree, tree); ("as", name, tree)."""


@st.composite
def nets(draw: st.DrawFn, most: int = 6) -> Net:
    """A random graph on two square inputs, in which values are shared as it comes."""
    net = Net()
    values = [net.input("a", 2, 2), net.input("b", 2, 2)]
    for _ in range(draw(st.integers(1, most))):
        operator = draw(st.sampled_from(UNARY + BINARY))
        operands = [draw(st.sampled_from(values)) for _ in range(1 if operator in UNARY else 2)]
        values.append(net.op(operator, *operands))
    net.output(values[-1], 2)
    return net


@st.composite
def trees(draw: st.DrawFn, level: int = 3, top: bool = True) -> Tree:
    if not top and (level == 0 or draw(st.booleans())):
        return draw(st.sampled_from(["x", "y", "v", "w"]))
    kind = draw(st.sampled_from(["op", "op", "op", "or", "as"])) if level > 1 else "op"
    if kind == "or":
        return ("or", draw(trees(level - 1, top)), draw(trees(level - 1, top)))
    if kind == "as":
        return ("as", draw(st.sampled_from(["v", "w"])), draw(trees(level - 1, top)))
    operator = draw(st.sampled_from(UNARY + BINARY))
    children = [draw(trees(level - 1, top=False)) for _ in range(1 if operator in UNARY else 2)]
    tree = (operator, *children)
    return ("any", tree) if len(children) == 2 and draw(st.integers(0, 4)) == 0 else tree


def pattern_of(tree: Tree) -> Pattern:
    if isinstance(tree, str):
        return var(tree)
    head, *rest = tree
    if head == "or":
        return either(*map(pattern_of, rest))
    if head == "as":
        return var(rest[0], pattern_of(rest[1]))
    if head == "any":
        return any_order(pattern_of(rest[0]))  # type: ignore[arg-type]
    return op(head, *map(pattern_of, rest))


def plain(tree: Tree) -> Iterator[Tree]:
    """Without choices and without free orders: every tree that the tree may stand for."""
    if isinstance(tree, str):
        yield tree
        return
    head, *rest = tree
    if head == "or":
        for choice in rest:
            yield from plain(choice)
    elif head == "as":
        yield from (("as", rest[0], inner) for inner in plain(rest[1]))
    elif head == "any" or head in COMMUTE:
        operator, *children = rest[0] if head == "any" else tree
        for order in permutations(children):
            yield from ((operator, *those) for those in product(*map(list, map(plain, order))))
    else:
        yield from ((head, *those) for those in product(*map(list, map(plain, rest))))


def equations(tree: Tree, found: list[tuple[str, list[Any]]]) -> Any:
    """The tree's value as an unknown; each operator in it becomes an equation `(operator, [result, operands …])`."""
    if isinstance(tree, str):
        return tree
    head, *rest = tree
    if head == "as":
        found.append(("is", [rest[0], equations(rest[1], found)]))
        return rest[0]
    place = len(found)
    found.append((head, [place]))
    found[place][1].extend(equations(child, found) for child in rest)
    return place


def oracle(tree: Tree, graph: gs.Graph) -> set[str]:
    """The values that a tree describes: for any plain tree, any distinct nodes of its operators that fit all its equations."""
    values: set[str] = set()
    for one in plain(tree):
        found: list[tuple[str, list[Any]]] = []
        root = equations(one, found)
        wanted = [(operator, unknowns) for operator, unknowns in found if operator != "is"]
        for nodes in permutations(graph.nodes, len(wanted)):
            if any(node.op != operator for node, (operator, _) in zip(nodes, wanted, strict=True)):
                continue
            facts = [
                (u, t.name)
                for n, (_, unknowns) in zip(nodes, wanted, strict=True)
                for u, t in zip(unknowns, (*n.outputs, *n.inputs), strict=True)
            ]
            solved = dict(facts)
            if all(solved[unknown] == name for unknown, name in facts) and _joined(found, solved):
                values.add(solved[root])
    return values


def _joined(found: list[tuple[str, list[Any]]], solved: dict[Any, str]) -> bool:
    """Do named values and what describes them agree? Names stand for values that may be known from one side only."""
    equal = [unknowns for operator, unknowns in found if operator == "is"]
    for _ in equal:
        for name, inner in equal:
            known = solved.get(inner, solved.get(name))
            if known is not None:
                solved.setdefault(name, known)
                solved.setdefault(inner, known)
    return all(solved[name] == solved[inner] for name, inner in equal)


def names_described_once(tree: Tree) -> bool:
    """Two descriptions of one name may speak of the same nodes, which the oracle's distinct nodes cannot."""
    for one in plain(tree):
        found: list[tuple[str, list[Any]]] = []
        equations(one, found)
        names = [unknowns[0] for operator, unknowns in found if operator == "is"]
        if len(names) != len(set(names)):
            return False
    return True


@settings(max_examples=400, deadline=None)
@given(nets(5), trees().filter(names_described_once))
def test_the_matcher_finds_what_trying_everything_finds(net: Net, tree: Tree) -> None:
    view = GraphView(net.model())
    assert {match.value.name for match in find(pattern_of(tree), view)} == oracle(tree, view.graph)


def test_a_name_that_is_known_is_still_what_its_description_says() -> None:
    """`Add(v, v = Neg(x))` on one value twice that nothing negates."""
    net = Net()
    doubled = net.op("Add", net.input("a", 2, 2), "a")
    net.output(doubled, 2)
    negated = net.op("Neg", "a")
    net.output(net.op("Add", negated, negated), 2)
    pattern = op("Add", var("v"), var("v", op("Neg", var("x"))))
    assert len(list(find(pattern, GraphView(net.model())))) == 1


def cut_out(draw: st.DrawFn, value: gs.Tensor, levels: int, seen: dict[int, Pattern], turned: bool) -> Pattern:
    """The pattern that describes a value in its graph, down to some level; shared values by name."""
    if id(value) in seen:
        return seen[id(value)]
    node = value.inputs[0] if value.inputs else None
    if node is None or levels == 0:
        seen[id(value)] = var(value.name)
        return seen[id(value)]
    operands = [cut_out(draw, each, levels - 1, seen, turned) for each in node.inputs]
    if turned and node.op in COMMUTE and draw(st.booleans()):
        operands.reverse()
    seen[id(value)] = var(value.name, op(node.op, *operands))
    return seen[id(value)]


@settings(max_examples=150, deadline=None)
@given(nets(12), st.data(), st.booleans())
def test_every_part_of_a_graph_matches_its_own_description(net: Net, data: st.DataObject, turned: bool) -> None:
    view = GraphView(net.model())
    node = data.draw(st.sampled_from(list(view.graph.nodes)))
    pattern = cut_out(data.draw, node.outputs[0], data.draw(st.integers(1, 4)), {}, turned)
    found = [match for match in find(pattern, view) if match.value is node.outputs[0]]
    assert len(found) == 1


def swapped(net: Net, operators: tuple[str, ...], which: list[bool]) -> onnx.ModelProto:
    model = net.model()
    for node, swap in zip(model.graph.node, which, strict=True):
        if swap and node.op_type in operators:
            node.input[:] = list(node.input)[::-1]
    return model


@settings(max_examples=200, deadline=None)
@given(nets(8), trees(), st.data())
def test_operands_that_commute_may_change_places_anywhere(net: Net, tree: Tree, data: st.DataObject) -> None:
    which = data.draw(st.lists(st.booleans(), min_size=len(net.nodes), max_size=len(net.nodes)))
    pattern = pattern_of(tree)
    as_built = [match.value.name for match in find(pattern, net.model())]
    assert [match.value.name for match in find(pattern, swapped(net, COMMUTE, which))] == as_built


@given(st.sampled_from(["Sub", "MatMul"]), st.sampled_from([("Neg", "Exp"), ("Exp", "Neg")]))
def test_operands_that_do_not_commute_may_not(operator: str, made: tuple[str, str]) -> None:
    net = Net()
    left, right = (net.op(each, net.input(name, 2, 2)) for each, name in zip(made, "ab", strict=True))
    net.output(net.op(operator, left, right), 2)
    pattern = op(operator, *(op(each, var(name)) for each, name in zip(made, "ab", strict=True)))
    assert len(list(find(pattern, net.model()))) == 1
    assert list(find(pattern, swapped(net, (operator,), [True] * len(net.nodes)))) == []
