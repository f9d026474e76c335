"""From the softmax down to P·V: casts, movement, guards and dropout on the way, or who else reads the probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.match import HERE, Match, const, follow, op, require
from onnx_attn.recognize.result import Stop
from onnx_attn.site import Guard, ScoreTerm
from onnx_attn.views.constants import is_constant
from onnx_attn.views.contraction import Contraction, contraction
from onnx_attn.views.movement import REARRANGE, Step, is_identity, rearranges
from onnx_attn.views.quantizer import Quantizer, quantizes
from onnx_attn.views.trace import FLOATS
from onnx_attn.views.uniform import uniform

PRODUCTS = ("MatMul", "Einsum", "Gemm")
CHANGES = REARRANGE | frozenset(
    "Cast Dropout Identity IsNaN Where Expand Mul Div Add Slice Concat Clip ReduceMean ReduceSum "
    "QuantizeLinear DequantizeLinear Sub Gather Split Squeeze Unsqueeze".split()
)
"""What probabilities may go through and still be multiplied with values afterwards."""
MOST_NODES = 64

GUARD = require(
    op("Where", op("IsNaN", HERE), const(0.0), HERE),
    lambda match: match.view.shapes(match.nodes[-1].inputs[0]) == match.view.shapes(match.nodes[0].outputs[0]),
    "the guard widens the probabilities",
)
"""`Where(IsNaN(P), 0, P)`: rows that are masked throughout become 0."""


@dataclass(frozen=True)
class Product:
    """P·V, with what stands between the softmax and it.

    product: with P on the left, whichever operand it is; None in a body, where shapes are not known.
    swapped: P is the graph's right operand. steps: movement from the softmax's result to what the product reads.
    output: what holds the result, where that is not the product's own. cleared: a mask that sets probabilities to 0, and how
    many of the steps stand before it. quantized: what the probabilities are rounded by, behind all else but movement.
    shared: somebody else reads the probabilities too, and who, as a refusal says it.
    """

    node: gs.Node
    product: Contraction | None = None
    swapped: bool = False
    output: gs.Tensor | None = None
    steps: tuple[Step, ...] = ()
    dtypes: tuple[int, ...] = ()
    guard: Guard = None
    notes: tuple[str, ...] = ()
    cleared: tuple[ScoreTerm, int] | None = None
    quantized: Quantizer | None = None
    shared: Stop | None = None


def read_probabilities(view: GraphView, tensor: gs.Tensor, softmax: gs.Node) -> Product | Stop:
    """Follow the probabilities `tensor`, which `softmax` ends with, to the product with V.

    Where somebody else reads them as well, the product says so (`shared`), if the way to it is the only one to a product.

    Stops: probabilities-used (several products, or something on the way that is read elsewhere), dropout-training,
    probabilities-changed and talking-heads where a product follows all the same; else class-softmax, gating or no-value-product.
    """
    found, way = Product(softmax), tensor
    while found.node is softmax:
        below = _below(view, way, found)
        if isinstance(below, Stop):
            return found.shared or below
        way, found = below
    return found


def _below(view: GraphView, tensor: gs.Tensor, found: Product) -> tuple[gs.Tensor, Product] | Stop:
    """One step further down: what holds the probabilities there, and what is found."""
    bodies = not view.in_main_graph(found.node)
    free = found.guard is None and found.cleared is None and found.quantized is None
    guarded = follow([GUARD], view, tensor, bodies=bodies) if free else None
    if isinstance(guarded, Match):
        return guarded.value, replace(found, guard="nan")
    readers = _distinct(view.readers(tensor))
    if len(readers) != 1 or view.is_output(tensor):
        stop = _several(view, tensor, readers)
        readers = [node for node in readers if _reaches_product(view, node, tensor)]
        if len(readers) != 1 or view.in_main_graph(readers[0]) == bodies or found.quantized is not None:
            return stop
        found = replace(found, shared=found.shared or stop)
    node = readers[0]
    if view.in_main_graph(node) == bodies:  # A branch weighs the values, or does not: what is in it stays there.
        used = Stop("probabilities-used", node, "a body of If, Loop or Scan reads them")
        return used if _reaches_product(view, node, tensor) else _no_product(view, tensor, [node])
    step = quantizes(view, node, tensor)
    if step is not None and (found.quantized is None or step.repeats(found.quantized)):
        # What is rounded is not computed twice.
        rounded = view.readers(node.outputs[0])[0].outputs[0]
        return found.shared or (rounded, replace(found, quantized=step))
    if node.op in PRODUCTS and node.domain in STANDARD and len(node.inputs) > 1:
        product = _product(view, tensor, node, found, bodies)
    else:
        product = _through(view, node, found) or _cleared(view, node, tensor, found) or _changed(view, node, tensor)
    if isinstance(product, Stop):
        return found.shared or product
    return node.outputs[0], product


def _product(view: GraphView, tensor: gs.Tensor, node: gs.Node, found: Product, bodies: bool) -> Product | Stop:
    """P·V in either order; or a product of the probabilities with themselves, or with weights."""
    operands = node.inputs[:2]
    if operands[0] is operands[1]:
        return Stop("probabilities-used", node, "both operands of the product are the probabilities")
    if bodies:  # Shapes are not known there: whether weights are multiplied tells.
        weights = any(is_constant(view, each) for each in operands)
        return _changed(view, node, tensor) if weights else replace(found, node=node)
    product = contraction(view, node)
    if product is None:
        more = " multiplies more than two operands" if node.op == "Einsum" and len(node.inputs) > 2 else ""
        return Stop("probabilities-changed", node, f"{node.op} '{label(node)}'{more}")
    swapped = product.right is tensor
    product = product.turned if swapped else product
    if is_constant(view, product.right) or product.factor != 1.0:
        return _changed(view, node, tensor)
    return replace(found, node=node, product=product, swapped=swapped)


def read_divided(view: GraphView, exponential: gs.Tensor, division: gs.Node) -> Product | None:
    """`(E·V) / ΣE`: the product of exponentials with V, which `division` brings down to probabilities afterwards."""
    product = contraction(view, view.producer(division.inputs[0]) or division)
    if (
        product is None
        or product.factor != 1.0
        or any(is_constant(view, each) for each in (product.left, product.right))
    ):
        return None
    swapped = product.right is exponential
    product = product.turned if swapped else product
    if product.left is not exponential or len(view.readers(exponential)) != 2 or len(view.readers(product.result)) != 1:
        return None
    if view.is_output(exponential) or view.is_output(product.result):
        return None
    # The sum has the axes of the exponentials, with 1 where keys were: the result has to have its own where it had them.
    kept = zip(product.left_axes, product.result_axes, strict=False)
    aligned = len(product.left_axes) == len(product.result_axes) and all(
        made == name or name in product.summed for name, made in kept
    )
    if not aligned or view.shapes(division.outputs[0]) != view.shapes(product.result):
        return None
    return Product(product.node, product, swapped, division.outputs[0])


def _through(view: GraphView, node: gs.Node, found: Product) -> Product | Stop | None:
    """One node that leaves the probabilities what they are; None if it does not."""
    if node.domain not in STANDARD:
        return None
    if node.op == "Dropout":
        if not is_identity(view, node):
            return Stop("dropout-training", node)
        if len(node.outputs) > 1 and (node.outputs[1].outputs or view.is_output(node.outputs[1])):
            return Stop("probabilities-used", node, "the Dropout's mask is read")
        return replace(found, notes=(*found.notes, f"inference Dropout '{label(node)}' removed"))
    if is_identity(view, node):
        return found
    if rearranges(view, node):
        return replace(found, steps=(*found.steps, Step(node, node.outputs[0])))
    if node.op == "Cast" and node.attrs["to"] in FLOATS and found.quantized is None:
        # A guard before or after the cast is the same: a NaN stays one, and 0 is 0 in every type.
        return replace(found, dtypes=(*found.dtypes, node.attrs["to"]))
    return None


def _cleared(view: GraphView, node: gs.Node, tensor: gs.Tensor, found: Product) -> Product | None:
    """`Where(mask, 0, P)` and `Where(mask, P, 0)`: blocked keys are set to 0 once more, which tells on rows where all are."""
    done = (found.guard, found.cleared, found.quantized)
    if node.op != "Where" or node.domain not in STANDARD or done != (None, None, None):
        return None
    mask, chosen, other = node.inputs
    fill = other if chosen is tensor else chosen
    if uniform(view, fill) != 0.0:
        return None
    if view.shapes(node.outputs[0]) is None or view.shapes(node.outputs[0]) != view.shapes(tensor):
        return None
    term = ScoreTerm("where", mask, 0.0, keep_when=chosen is tensor)
    return replace(found, cleared=(term, len(found.steps)))


def _several(view: GraphView, tensor: gs.Tensor, readers: list[gs.Node]) -> Stop:
    """More than one reader, or none, or a model output: attention if one of them multiplies with values."""
    leading = [node for node in readers if _reaches_product(view, node, tensor)]
    if not leading:
        return _no_product(view, tensor, readers)
    others = [node for node in readers if node is not leading[0]]
    ops = {node.op: node for node in readers}
    guards = ops.keys() == {"IsNaN", "Where"} and ops["Where"].inputs[0] is ops["IsNaN"].outputs[0]
    if guards and not view.is_output(tensor):
        return Stop("probabilities-changed", leading[0], "a NaN guard that does not put 0 in place of NaN")
    if others and not guards:
        return Stop("probabilities-used", others[0])
    return Stop("probabilities-used", leading[0], f"'{tensor.name}' is a model output")


def _changed(view: GraphView, node: gs.Node, tensor: gs.Tensor) -> Stop:
    """A node that changes the probabilities: attention if a product with values follows; none if heads are mixed."""
    mixing = _mixing(view, node)
    if mixing is not None:
        below = mixing.outputs[0]
        if any(_reaches_product(view, reader, below) for reader in view.readers(below)):
            return Stop("talking-heads", mixing)
        return Stop("class-softmax", mixing, "the result goes into a product with constant weights")
    if _reaches_product(view, node, tensor):
        code = "quantisation-step" if node.op == "QuantizeLinear" else "probabilities-changed"
        return Stop(code, node, f"{node.op} '{label(node)}'")
    return _no_product(view, tensor, [node])


def _mixing(view: GraphView, node: gs.Node) -> gs.Node | None:
    """The product with constant weights that probabilities go into, at most rearranged before."""
    for _ in range(MOST_NODES):
        if node.op in (*PRODUCTS, "Conv"):
            return node if any(is_constant(view, tensor) for tensor in node.inputs[:2]) else None
        readers = _distinct(view.readers(node.outputs[0]))
        if node.op not in REARRANGE or len(readers) != 1:
            return None
        node = readers[0]
    return None


def _no_product(view: GraphView, tensor: gs.Tensor, readers: list[gs.Node]) -> Stop:
    node = readers[0] if readers else view.producer(tensor)
    assert node is not None
    if not readers or view.is_output(tensor) or any(reader.op in ("ArgMax", "Log") for reader in readers):
        return Stop("class-softmax", node)
    if any(reader.op in ("TopK", "Mul", "Gather", "GatherElements", "Split") for reader in readers):
        return Stop("gating", node)
    return Stop("no-value-product", node)


def _reaches_product(view: GraphView, node: gs.Node, tensor: gs.Tensor) -> bool:
    """Does a product of these probabilities with another activation follow, at most past a few changes?"""
    queue = [(node, tensor)]
    for _ in range(MOST_NODES):
        if not queue:
            return False
        reader, came = queue.pop()
        if reader.op in PRODUCTS and len(reader.inputs) > 1:
            other = reader.inputs[1] if reader.inputs[0] is came else reader.inputs[0]
            if not is_constant(view, other):
                return True
        elif reader.op in CHANGES and not _leaves(view, reader, came):
            queue.extend((below, reader.outputs[0]) for below in view.readers(reader.outputs[0]))
    return False


def _leaves(view: GraphView, node: gs.Node, tensor: gs.Tensor) -> bool:
    """True where the result is no longer probabilities: weighed values (a gate) or a sum with another activation."""
    if node.op not in ("Mul", "Div", "Add"):
        return False
    if view.shapes(node.outputs[0]) != view.shapes(tensor):
        return True
    return node.op == "Add" and not any(is_constant(view, other) for other in node.inputs)


def _distinct(nodes: list[gs.Node]) -> list[gs.Node]:
    return list({id(node): node for node in nodes}.values())
