"""Where to try a pattern: everywhere in a model, on one value, or downwards from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.graph.load import load
from onnx_attn.graph.view import GraphView, label
from onnx_attn.ir_model import ir_model_of, load_ir
from onnx_attn.match.matcher import Bound, Failure, Match, Matcher, below, depth
from onnx_attn.match.pattern import (
    Either,
    Fork,
    Op,
    Pattern,
    PatternError,
    Require,
    Step,
    Var,
    mentions_here,
    substitute,
)

if TYPE_CHECKING:
    from onnx_attn.given import Model as Given

Model: TypeAlias = "Given | GraphView"


def find(pattern: Pattern, model: Model) -> Iterator[Match]:
    """Every match in the main graph, in graph order; one for each value that the pattern describes.

    Only nodes of the pattern's last operators are looked at, so that the cost grows with these and not with the graph.
    """
    view = as_view(model)
    for value in _anchors(pattern, view):
        found = Matcher(view).attempt(pattern, value)
        if isinstance(found, Match):
            yield found


def explain(pattern: Pattern, model: Model) -> list[Failure]:
    """The attempts that failed, those that came furthest first."""
    view = as_view(model)
    tried = [Matcher(view).attempt(pattern, value) for value in _anchors(pattern, view)]
    return sorted((each for each in tried if isinstance(each, Failure)), key=lambda failure: -failure.matched)


def match_value(
    pattern: Pattern,
    view: GraphView,
    value: gs.Tensor,
    given: Mapping[str, Bound] | None = None,
    bodies: bool = False,
) -> Match | Failure:
    """Try a pattern on one value; `given`: what is bound by name already. bodies: a value of a body may be given, too."""
    return Matcher(view, bodies).attempt(pattern, value, given)


def follow(
    steps: Sequence[Pattern], view: GraphView, value: gs.Tensor, only: bool = True, bodies: bool = False
) -> Match | Failure:
    """Follow a value downwards through the steps of a chain, each of which says HERE for where it begins.

    only: every reader of a value on the way belongs to the step behind it, and none of them is an output of the graph.
    The match's `value` is what the last step makes; a Failure's `at` is where the way ended.
    """
    found = Match(view, value)
    for step in steps:
        least, most = (step.least, step.most) if isinstance(step, Step) else (1, 1)
        inner = step.inner if isinstance(step, Step) else step
        if not mentions_here(inner):
            raise PatternError(f"a step says HERE where it begins; {inner} does not")
        for times in range(most):
            taken = _one_step(inner, Matcher(view, bodies), found, only)
            if isinstance(taken, Match):
                found = taken
            elif times >= least:
                break
            else:
                return taken
    return found


def _one_step(step: Pattern, matcher: Matcher, so_far: Match, only: bool) -> Match | Failure:
    view, here = matcher.view, Var("_here")
    pattern = substitute(step, here)
    for value in below(view, so_far.value, depth(pattern), matcher.bodies):
        found = matcher.attempt(pattern, value, {**so_far.captures, here.name: so_far.value})
        if not isinstance(found, Match):
            continue
        stranger = _stranger(view, so_far.value, found) if only else None
        if stranger is None:
            captures = {name: bound for name, bound in found.captures.items() if not name.startswith("_")}
            return Match(view, value, captures, (*so_far.nodes, *found.nodes))
        return Failure(len(so_far.nodes), stranger, "reads it too", so_far.nodes)
    if matcher.stop is None:
        return Failure(len(so_far.nodes), so_far.value.name, "nothing reads it", so_far.nodes)
    return Failure(len(so_far.nodes) + matcher.stop.matched, matcher.stop.at, matcher.stop.reason, so_far.nodes)


def _stranger(view: GraphView, value: gs.Tensor, found: Match) -> str | None:
    """Who reads a value, or what is made of it on the way to the match's own, beside the nodes of the match."""
    own = {id(node) for node in found.nodes}
    on_the_way = [result for node in found.nodes for result in node.outputs if result is not found.value]
    for tensor in (value, *on_the_way):
        if view.is_output(tensor):
            return f"output {tensor.name}"
        for node in view.readers(tensor):
            if id(node) not in own:
                return label(node)
    return None


def as_view(model: Model) -> GraphView:
    """Raises InputError for a path that cannot be read."""
    if isinstance(model, GraphView):
        return model
    if isinstance(model, gs.Graph):
        return GraphView(gs.export_onnx(model))
    if (held := ir_model_of(model)) is not None:
        return GraphView(load_ir(held).whole().proto)
    return GraphView(model if isinstance(model, onnx.ModelProto) else load(Path(model)).whole().proto)


def _anchors(pattern: Pattern, view: GraphView) -> Iterator[gs.Tensor]:
    """The values that the pattern may describe, by the operators that make them."""
    if isinstance(pattern, Fork):
        # A fork describes its source: what something is made from.
        made = [tensor for node in view.graph.nodes for tensor in node.inputs if tensor.name]
        yield from {id(tensor): tensor for tensor in made if not view.is_weight(tensor)}.values()
        return
    roots = _roots(pattern)
    if not roots:
        raise PatternError(f"{pattern} describes any value at all; say by which operator it is made")
    for node in view.graph.nodes:
        for result in sorted(roots.get(node.op, ())):
            if result < len(node.outputs):
                yield node.outputs[result]


def _roots(pattern: Pattern) -> dict[str, set[int]]:
    """The operators that may make the value, and which of their results it is."""
    match pattern:
        case Op():
            return {op: {pattern.result} for op in pattern.ops}
        case Var() | Require() if pattern.inner is not None:
            return _roots(pattern.inner)
        case Either():
            found: dict[str, set[int]] = {}
            for choice in pattern.choices:
                roots = _roots(choice)
                if not roots:
                    return {}
                for op, results in roots.items():
                    found.setdefault(op, set()).update(results)
            return found
    return {}
