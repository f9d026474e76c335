"""From the softmax's input up to Q·Kᵀ: scale, masks, casts and movement, in order, or where and why the way ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.graph.world import Shape
from onnx_attn.recognize.result import Stop
from onnx_attn.site import ScoreTerm
from onnx_attn.views.constants import ignores_numbers, is_constant
from onnx_attn.views.contraction import Contraction, contraction
from onnx_attn.views.movement import REARRANGE, Step, handed_on, is_identity, rearranges
from onnx_attn.views.quantizer import read_quantizer
from onnx_attn.views.trace import FLOATS, scalar_factor
from onnx_attn.views.uniform import uniform

MOST_BRANCHES = 64
"""How many places one walk may look at: masks are added once or twice, not dozens of times."""

CHANGES = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Expand Clip Tanh Sub Max Min Pow Relu Sigmoid Neg "
    "Concat Slice Softplus Dropout ScatterND ScatterElements Pad".split()
)
"""What may stand between a product and a softmax and still leave it attention, though not one that is read here."""

STEPS = ("QuantizeLinear", "DequantizeLinear")

Item = Step | ScoreTerm


@dataclass(frozen=True)
class Scores:
    """`softmax(items(scale · left·right))`; items in the order in which the graph applies them."""

    product: Contraction
    scale: float
    items: tuple[Item, ...]


@dataclass(frozen=True)
class _Path:
    """A way up. scale: of what is above `tensor`, against the last item."""

    tensor: gs.Tensor
    scale: float = 1.0
    items: tuple[Item, ...] = ()
    blocked: Stop | None = None
    mixed: bool = False  # A product with weights lies behind: from there on only heads may have been mixed.


def read_scores(view: GraphView, scores: gs.Tensor, softmax: gs.Node) -> Scores | Stop:
    """Walk up from `scores`, which `softmax` reads; where a node has two inputs that may lead to the product, both are tried.

    A way that reaches a product through something that is no scale, mask, cast or movement is attention all the same: it
    gives that thing's code. No way to a product: no-query-key-product, at the node where the last way ended.
    """
    paths, ended, blocked = [_Path(scores)], softmax, None
    learned: Scores | None = None
    for _ in range(MOST_BRANCHES):
        if not paths:
            break
        path = paths.pop()
        node = view.producer(path.tensor)
        if node is None or node.domain not in STANDARD:
            continue
        ended = node
        product = product_of_activations(view, node)
        if product is None:
            paths.extend(reversed(_step(view, path, node)))
            continue
        if path.blocked is not None:
            blocked = blocked or path.blocked
            continue
        found = Scores(product, path.scale * product.factor, _chosen(view, path.items))
        if not is_constant(view, product.left):
            return learned or found
        # A query that is stored; unless what it is multiplied with are scores already: then it mixes their heads.
        learned = learned or found
        paths.extend(_mixed(path, node, [product.right]))
    return blocked or learned or Stop("no-query-key-product", ended)


def product_of_activations(view: GraphView, node: gs.Node) -> Contraction | None:
    """`Q·Kᵀ`: a product of two activations. The left one may be stored: learned queries. A stored right one is weights."""
    found = contraction(view, node)
    return found if found is not None and not is_constant(view, found.right) else None


def _step(view: GraphView, path: _Path, node: gs.Node) -> list[_Path]:
    """The ways on from here, the likelier first."""
    if is_identity(view, node):
        return [replace(path, tensor=handed_on(view, node))]
    if node.op == "Cast":
        if node.attrs["to"] not in FLOATS or view.elem_type(node.inputs[0]) not in FLOATS:
            return _blocked(path, node, "scores-changed", node.inputs)
        return [_above(path, node.inputs[0], ScoreTerm("cast", dtype=node.attrs["to"]))]
    if (scalar := scalar_factor(view, node)) is not None:
        return [replace(path, tensor=scalar[0], scale=path.scale * scalar[1])]
    if (quantizer := read_quantizer(view, path.tensor)) is not None:
        assert quantizer.source is not None
        return [_above(path, quantizer.source, ScoreTerm("quantize", quantizer=quantizer))]
    if rearranges(view, node):
        return [replace(path, tensor=node.inputs[0], items=(Step(node, node.outputs[0]), *path.items))]
    if node.op == "Tanh":
        # c·tanh(s / c); the factor before the Tanh is met next.
        return [_above(path, node.inputs[0], ScoreTerm("softcap", fill=path.scale))]
    if node.op == "Max" and len(node.inputs) == 2:
        return _floored(view, path, node) or _blocked(path, node, "scores-changed", node.inputs)
    if node.op == "Add":
        return _masked(view, path, node, [(a, ScoreTerm("add", b)) for a, b in (node.inputs, node.inputs[::-1])])
    if node.op == "Sub":
        return _subtracted(view, path, node)
    if node.op == "Where":
        return _masked(view, path, node, _where(view, node)) or _blocked(path, node, "scores-changed", node.inputs[1:])
    if node.op == "Conv" or contraction(view, node) is not None:
        # By weights on the right; heads stand where a convolution has its channels.
        return [] if path.mixed else _mixed(path, node, node.inputs[:1])
    if path.mixed and node.op not in REARRANGE:
        return []
    if node.op in ("Mul", "Div"):
        return _factored(view, path, node) or _blocked(path, node, "scale-not-constant", node.inputs)
    if node.op in STEPS:
        return _blocked(path, node, "quantisation-step", node.inputs[:1])
    if node.op in CHANGES:
        return _blocked(path, node, "scores-changed", node.inputs)
    return []


def _mixed(path: _Path, node: gs.Node, inputs: list[gs.Tensor]) -> list[_Path]:
    return [replace(way, mixed=True) for way in _blocked(path, node, "talking-heads", inputs)]


def _above(path: _Path, tensor: gs.Tensor, term: ScoreTerm) -> _Path:
    """Past a term; what was scaled behind it stays behind it, but for casts, which a factor passes, and c·tanh(s / c), which
    says the factor twice."""
    if term.kind in ("cast", "softcap"):
        return replace(path, tensor=tensor, items=(term, *path.items))
    scaled = (ScoreTerm("scale", fill=path.scale),) if path.scale != 1.0 else ()
    return replace(path, tensor=tensor, items=(term, *scaled, *path.items), scale=1.0)


def _masked(view: GraphView, path: _Path, node: gs.Node, choices: list[tuple[gs.Tensor, ScoreTerm]]) -> list[_Path]:
    """The scores have the result's shape; a mask may be broadcast, and is never what the scores are made of."""
    shape = view.shapes(node.outputs[0])
    ways = []
    for scores, term in choices:
        if is_constant(view, scores) or (path.mixed and term.mask is not None and not is_constant(view, term.mask)):
            continue
        way = _above(path, scores, term)
        if shape is not None and view.shapes(scores) != shape:
            way = _widened(way, node, view.shapes(scores), shape)
        ways.append(way)
    # What has the result's shape is the likelier to be the scores: a mask may be broadcast.
    return sorted(ways, key=lambda way: shape is not None and view.shapes(way.tensor) != shape)


def _widened(way: _Path, node: gs.Node, before: tuple[Shape, ...] | None, shapes: tuple[Shape, ...]) -> _Path:
    """A mask with more axes, all of size 1, puts them before those of the scores; one that is larger repeats these."""
    pairs = list(zip(before or (), shapes, strict=False))
    if pairs and all((1,) * (len(shape) - len(old)) + old == shape for old, shape in pairs):
        return replace(way, items=(Step(_Unsqueezed(node), node.outputs[0]), *way.items))
    stop = Stop("scores-changed", node, f"{node.op} '{label(node)}' widens them")
    return replace(way, blocked=way.blocked or stop)


class _Unsqueezed:
    """The leading axes that broadcasting adds, as a node."""

    op, domain = "Unsqueeze", ""

    def __init__(self, node: gs.Node):
        self.name, self.inputs, self.outputs = node.name, node.inputs, node.outputs
        self.attrs: dict[str, object] = {}


def _subtracted(view: GraphView, path: _Path, node: gs.Node) -> list[_Path]:
    """`scores − mask`, and `mask − scores`, which turns the sign of the scores."""
    left, right = node.inputs
    ways = _masked(view, path, node, [(left, ScoreTerm("subtract", right)), (right, ScoreTerm("add", left))])
    return [replace(way, scale=-way.scale) if way.tensor is right else way for way in ways]


def _floored(view: GraphView, path: _Path, node: gs.Node) -> list[_Path]:
    """`max(scores, c)` with one constant number: as exporters keep sums of masks above the lowest number."""
    for scores, other in (node.inputs, node.inputs[::-1]):
        fill = view.scalar(other)
        if fill is not None and view.shapes(scores) == view.shapes(node.outputs[0]):
            return [_above(path, scores, ScoreTerm("floor", fill=fill))]
    return []


def _factored(view: GraphView, path: _Path, node: gs.Node) -> list[_Path]:
    """A factor of many numbers that no input's numbers decide: a learned temperature a head, ones and zeros of a causal mask."""
    pairs = [tuple(node.inputs), tuple(node.inputs[::-1])] if node.op == "Mul" else [tuple(node.inputs)]
    for scores, factor in pairs:
        one = all(math.prod(shape) == 1 for shape in view.shapes(factor) or ((),))
        if one or is_constant(view, scores) or view.shapes(scores) != view.shapes(node.outputs[0]):
            continue
        if ignores_numbers(view, factor):
            return [_above(path, scores, ScoreTerm("factor", factor, keep_when=node.op == "Mul"))]
    return []


def _chosen(view: GraphView, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """`scores + Where(mask, 0, −inf)` as `Where(mask, scores, −inf)`, where all is of one type: the same for all finite scores.
    The choice is a kernel's own, the sum takes eight kernels more (TensorRT for RTX 1.7.1, half precision: 5 and 13)."""
    if any(isinstance(item, ScoreTerm) and item.kind == "cast" for item in items):
        return items
    return tuple(_choice(view, item) or item if isinstance(item, ScoreTerm) else item for item in items)


def _choice(view: GraphView, term: ScoreTerm) -> ScoreTerm | None:
    node = view.producer(term.mask) if term.kind == "add" and term.mask is not None else None
    if node is None or node.op != "Where" or node.domain not in STANDARD:
        return None
    if all(world.value(node.outputs[0].name) is not None for world in view.worlds):
        return None  # Its numbers follow from sizes: a triangle, which no input decides.
    mask, chosen, other = node.inputs
    fills = [uniform(view, each) for each in (chosen, other)]
    if sorted(fills, key=str) != sorted([0.0, -math.inf], key=str) or is_constant(view, mask):
        return None
    return ScoreTerm("where", mask, -math.inf, keep_when=fills[0] == 0.0)


def _where(view: GraphView, node: gs.Node) -> list[tuple[gs.Tensor, ScoreTerm]]:
    """`Where(mask, scores, c)` and `Where(mask, c, scores)` with one constant number c."""
    mask, chosen, other = node.inputs
    choices = []
    if (fill := uniform(view, other)) is not None:
        choices.append((chosen, ScoreTerm("where", mask, fill, keep_when=True)))
    if (fill := uniform(view, chosen)) is not None:
        choices.append((other, ScoreTerm("where", mask, fill, keep_when=False)))
    return choices


def _blocked(path: _Path, node: gs.Node, code: str, inputs: list[gs.Tensor]) -> list[_Path]:
    stop = Stop(code, node, f"{node.op} '{label(node)}'")
    if path.blocked is not None and code != "talking-heads":
        stop = path.blocked
    return [replace(path, tensor=tensor, blocked=stop) for tensor in inputs]
