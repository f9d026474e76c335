"""What of a site is quantised: Q, K and V as they are multiplied, the scores, the probabilities, and what becomes of P·V."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.site import AttentionSite, Written
from onnx_attn.views.movement import REARRANGE
from onnx_attn.views.quantizer import NARROW, Quantizer, read_quantizer
from onnx_attn.views.trace import trace

KINDS = {"int8": "int8", "uint8": "int8", "fp8": "fp8"}
"""Types for which kernels exist; those of one name are taken for one another."""
MOST_STEPS = 8


def quantised_facts(view: GraphView, candidate: AttentionSite | Written) -> dict[str, Any]:
    """The facts about quantisation. Of a call of our function, its body says what is done to scores and probabilities."""
    if isinstance(candidate, Written):
        reads, output = candidate.node.inputs[:3], candidate.node.outputs[0]
        scores, probabilities = _in_body(view, candidate.node)
        steps: Sequence[Quantizer] = ()
    else:
        reads, output, steps = [each.read for each in candidate.operands], candidate.output, candidate.quantizers
        probabilities = candidate.quantized.kind if candidate.quantized is not None else "none"
        scores = any(term.kind == "quantize" for term in candidate.terms)
    found = [_step(view, tensor) for tensor in reads]
    kinds = [_kind(each) for each in found]
    all_steps = [*steps, *(each for each in found if isinstance(each, Quantizer))]
    sliced = {each for each in found if isinstance(each, int)}
    return {
        "quantized": _together(kinds, probabilities != "none"),
        "scores_quantized": scores,
        "probabilities_quantized": KINDS.get(probabilities, probabilities),
        "result_quantized": _is_rounded(view, output),
        "sliced": "none" if not sliced else "heads" if sliced == {candidate.heads} else "features",
        "offset": any(step.numbers[1] != 0 for step in all_steps),
    }


def _in_body(view: GraphView, call: gs.Node) -> tuple[bool, str]:
    """Whether a function rounds its scores, and to what its probabilities."""
    bodies = [f for f in view.proto.functions if f.domain == call.domain and f.name == call.op]
    if not bodies:
        return False, "none"
    body = bodies[0]
    producers = {name: node for node in body.node for name in node.output}
    softmax = next((node for node in body.node if node.op_type == "Softmax"), None)
    types = {name: view.elem_type(tensor) for name, tensor in zip(body.input, call.inputs, strict=False)}
    types |= {
        node.output[0]: attribute.t.data_type
        for node in body.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }

    def above(name: str, until: onnx.NodeProto | None) -> onnx.NodeProto | None:
        """The first QuantizeLinear on the way up, before a product or `until`."""
        for _ in range(2 * MOST_STEPS):
            node = producers.get(name)
            if node is None or node is until or node.op_type == "MatMul" or not node.input:
                return None
            if node.op_type == "QuantizeLinear":
                return node
            # A choice takes the scores where they are not masked, whichever operand that is.
            chosen = [each for each in node.input[1:] if producers.get(each, node).op_type != "CastLike"]
            name = chosen[0] if node.op_type == "Where" and chosen else node.input[0]
        return None

    if softmax is None:
        return False, "none"
    products = [above(node.input[0], softmax) for node in body.node if node.op_type == "MatMul"]
    step = products[-1] if products else None
    zero = types.get(step.input[2], 0) if step is not None and len(step.input) > 2 else 0
    return above(softmax.input[0], None) is not None, NARROW.get(zero, "none")


def _step(view: GraphView, tensor: gs.Tensor) -> Quantizer | str | int | None:
    """The step that an operand comes from by movement; of narrow numbers that were moved, or given, their kind; for a step with
    many scales, how many."""
    source = trace(view, tensor, through_repeats=True).source
    step = read_quantizer(view, source)
    node = view.producer(source)
    if step is not None or node is None or node.op != "DequantizeLinear" or node.domain not in STANDARD:
        return step
    shape = view.shapes(node.inputs[1])
    if shape and math.prod(shape[0]) > 1:
        return shape[0][0]
    return NARROW.get(view.elem_type(node.inputs[0]), "other")


def _kind(step: Quantizer | str | int | None) -> str:
    if step is None or isinstance(step, int):
        return "none" if step is None else "sliced"
    kind = step.kind if isinstance(step, Quantizer) else step
    return KINDS.get(kind, kind)


def _together(kinds: Sequence[str], probabilities: bool) -> str:
    """One kind where all three have it; "some" where one of the two products is between narrow numbers and the other is not the
    same; "alone" where steps stand on one side of a product at most."""
    query, key, value = kinds
    if set(kinds) == {"none"}:
        return "none"
    if len(set(kinds)) == 1 and query in ("int8", "fp8"):
        return query
    return "some" if "none" not in (query, key) or (value != "none" and probabilities) else "alone"


def _is_rounded(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether all that becomes of P·V, at most rearranged, is that it is quantised."""
    for _ in range(MOST_STEPS):
        readers = view.readers(tensor)
        if len(readers) != 1 or view.is_output(tensor) or readers[0].domain not in STANDARD:
            return False
        if readers[0].op == "QuantizeLinear":
            return readers[0].inputs[0] is tensor
        if readers[0].op not in REARRANGE:
            return False
        tensor = readers[0].outputs[0]
    return False
