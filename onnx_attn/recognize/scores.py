"""From the softmax's input up to Q·Kᵀ: scale, masks and casts, in order, or where and why the way ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.match import Match, match_value, op, require, var
from onnx_attn.recognize.result import Stop
from onnx_attn.site import ScoreTerm
from onnx_attn.views.linear import weight_tensor
from onnx_attn.views.movement import is_identity
from onnx_attn.views.trace import FLOATS, scalar_factor

PRODUCT = require(
    op("MatMul", var("query"), var("key")),
    lambda match: not is_constant(match.view, match["key"]),
    "constant keys are weights",
)
"""`Q·Kᵀ`: a matrix product of two activations; a constant query is allowed (learned queries)."""

MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze"})
MOST_BRANCHES = 64
"""How many places one walk may look at: masks are added once or twice, not dozens of times."""

CHANGES = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Expand Clip Tanh Sub Max Min Pow Relu Sigmoid Neg QuantizeLinear "
    "DequantizeLinear Concat Slice Softplus Dropout".split()
)
"""What may stand between a product and a softmax and still leave it attention, though not one that is read here."""


@dataclass(frozen=True)
class Scores:
    """`softmax(terms(scale · left·right))`; terms in the order in which the graph applies them."""

    product: gs.Node
    scale: float
    terms: tuple[ScoreTerm, ...]


@dataclass(frozen=True)
class _Path:
    tensor: gs.Tensor
    scale: float = 1.0
    terms: tuple[ScoreTerm, ...] = ()
    blocked: Stop | None = None
    mixed: bool = False  # A product with weights lies behind: from there on only heads may have been mixed.


def read_scores(view: GraphView, scores: gs.Tensor, softmax: gs.Node) -> Scores | Stop:
    """Walk up from `scores`, which `softmax` reads; where a node has two inputs that may lead to the product, both are tried.

    A way that reaches a product through something that is no scale, mask or cast is attention all the same: it gives
    that thing's code. No way to a product: no-query-key-product, at the node where the last way ended.
    """
    paths, ended, blocked = [_Path(scores)], softmax, None
    for _ in range(MOST_BRANCHES):
        if not paths:
            break
        path = paths.pop()
        node = view.producer(path.tensor)
        if node is None or not view.in_main_graph(node) or node.domain not in STANDARD:
            continue
        ended = node
        if _is_product(view, node):
            if path.blocked is None:
                return Scores(node, path.scale, path.terms)
            blocked = blocked or path.blocked
            continue
        paths.extend(reversed(_step(view, path, node)))
    return blocked or Stop("no-query-key-product", ended)


def _is_product(view: GraphView, node: gs.Node) -> bool:
    return isinstance(match_value(PRODUCT, view, node.outputs[0]), Match)


def is_constant(view: GraphView, tensor: gs.Tensor) -> bool:
    """Weights, as they are stored or turned round, and small values that follow from constants alone."""
    return view.is_weight(tensor) or weight_tensor(view, tensor) is not None or view.constant(tensor) is not None


def _step(view: GraphView, path: _Path, node: gs.Node) -> list[_Path]:
    """The ways on from here, the likelier first."""
    if is_identity(view, node):
        return [replace(path, tensor=node.inputs[0])]
    if node.op == "Cast":
        if node.attrs["to"] not in FLOATS or view.elem_type(node.inputs[0]) not in FLOATS:
            return _blocked(path, node, "scores-changed", node.inputs)
        return [_above(path, node.inputs[0], ScoreTerm("cast", dtype=node.attrs["to"]))]
    if (scalar := scalar_factor(view, node)) is not None:
        return [replace(path, tensor=scalar[0], scale=path.scale * scalar[1])]
    if node.op == "Add":
        return _masked(view, path, node, [(a, ScoreTerm("add", b)) for a, b in (node.inputs, node.inputs[::-1])])
    if node.op == "Where":
        choices = _where(view, node)
        return _masked(view, path, node, choices) or _blocked(path, node, "scores-changed", node.inputs[1:])
    if node.op == "MatMul":
        return (
            []
            if path.mixed
            else [replace(way, mixed=True) for way in _blocked(path, node, "talking-heads", node.inputs[:1])]
        )
    if path.mixed and node.op not in MOVES:
        return []
    if node.op in ("Mul", "Div"):
        return _blocked(path, node, "scale-not-constant", node.inputs)
    if node.op in CHANGES:
        return _blocked(path, node, "scores-changed", node.inputs)
    return []


def _above(path: _Path, tensor: gs.Tensor, term: ScoreTerm) -> _Path:
    return replace(path, tensor=tensor, terms=(term, *path.terms))


def _masked(view: GraphView, path: _Path, node: gs.Node, choices: list[tuple[gs.Tensor, ScoreTerm]]) -> list[_Path]:
    """The scores have the result's shape; a mask may be broadcast, and is never what the scores are made of."""
    shape = view.shapes(node.outputs[0])
    ways = []
    for scores, term in choices:
        if is_constant(view, scores) or (path.mixed and term.mask is not None and not is_constant(view, term.mask)):
            continue
        way = _above(path, scores, term)
        if shape is not None and view.shapes(scores) != shape:
            way = replace(
                way, blocked=way.blocked or Stop("scores-changed", node, f"{node.op} '{label(node)}' widens them")
            )
        elif path.scale != 1.0:
            way = replace(way, blocked=way.blocked or Stop("scale-after-mask", node))
        ways.append(way)
    # What has the result's shape is the likelier to be the scores: a mask may be broadcast.
    return sorted(ways, key=lambda way: shape is not None and view.shapes(way.tensor) != shape)


def _where(view: GraphView, node: gs.Node) -> list[tuple[gs.Tensor, ScoreTerm]]:
    """`Where(mask, scores, c)` and `Where(mask, c, scores)` with one constant number c."""
    mask, chosen, other = node.inputs
    choices = []
    if (fill := view.scalar(other)) is not None:
        choices.append((chosen, ScoreTerm("where", mask, fill, keep_when=True)))
    if (fill := view.scalar(chosen)) is not None:
        choices.append((other, ScoreTerm("where", mask, fill, keep_when=False)))
    return choices


def _blocked(path: _Path, node: gs.Node, code: str, inputs: list[gs.Tensor]) -> list[_Path]:
    stop = Stop(code, node, f"{node.op} '{label(node)}'")
    if path.blocked is not None and code != "talking-heads":
        stop = path.blocked
    return [replace(path, tensor=tensor, blocked=stop) for tensor in inputs if tensor.name]
