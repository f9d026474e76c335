"""Norms that ONNX Runtime's optimizers fuse with the sums in front of them, in plain nodes.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, each under its name. The root mean square is
computed in float32 at least, as the standard's RMSNormalization says.
"""

from __future__ import annotations

from onnx import TensorProto

from onnx_attn.operators.microsoft.call import Call, NotSpelled

SUM = 3
"""The place of the output that is the sum itself."""


def skip_layer_normalization(call: Call) -> None:
    """LayerNormalization(input + skip + bias); the sum is an output too."""
    _nothing_of_training(call)
    layer_norm(call, _sum(call, bias=4), call.needed(2, "gamma"), call.input(3))


def skip_simplified_layer_normalization(call: Call) -> None:
    """The same with the root mean square: RMSNorm(input + skip + bias)·gamma."""
    _nothing_of_training(call)
    _rms_norm(call, _sum(call, bias=3), call.needed(2, "gamma"))


def simplified_layer_normalization(call: Call) -> None:
    """RMSNorm(x)·scale over the last axes: what transformers' optimizer calls an operator of the standard, which it is not."""
    if call.output(1):
        raise NotSpelled("the reciprocal of the root mean square is an output")
    axis = int(call.attribute("axis", -1))
    if axis not in (-1, call.rank(0) - 1):
        raise NotSpelled("a norm over several axes")
    _rms_norm(call, call.needed(0, "an input"), call.needed(1, "scale"))


def layer_normalization(call: Call) -> None:
    """The standard's operator, which ONNX Runtime takes below opset 17 too."""
    if call.output(1) or call.output(2):
        raise NotSpelled("mean or deviation are outputs")
    if int(call.attribute("axis", -1)) not in (-1, call.rank(0) - 1):
        raise NotSpelled("a norm over several axes")
    layer_norm(call, call.needed(0, "an input"), call.needed(1, "scale"), call.input(2), epsilon=1e-5)


def embed_layer_normalization(call: Call) -> None:
    """LayerNormalization(word[ids] + position[positions] + segment[segments]); counts of the mask, and the sum."""
    ids = call.needed(0, "input_ids")
    total = call.op("Gather", call.needed(2, "word_embedding"), ids, hint="words", axis=0)
    positions = call.input(8) or call.unsqueeze(call.arange(call.length(ids, 1)), 0)
    placed = call.op("Gather", call.needed(3, "position_embedding"), positions, hint="positions", axis=0)
    total = call.op("Add", total, placed, hint="embedded")
    if call.input(1):
        segments = call.op("Gather", call.needed(4, "segment_embedding"), call.input(1), hint="segments", axis=0)
        total = call.op("Add", total, segments, hint="embedded")
    if call.output(1):
        _mask_index(call, ids)
    if call.output(2):
        call.op("Identity", total, output=call.output(2))
    layer_norm(call, total, call.needed(5, "gamma"), call.input(6))


def _mask_index(call: Call, ids: str) -> None:
    """How many ones the mask has in each row; 0 throughout without one."""
    if call.input(7):
        whole = call.op("Cast", call.input(7), to=TensorProto.INT32)
        call.op("ReduceSum", whole, call.ints(1), output=call.output(1), keepdims=0)
        return
    none = call.op("Mul", call.op("Cast", ids, to=TensorProto.INT32), call.number(0, TensorProto.INT32))
    call.op("ReduceSum", none, call.ints(1), output=call.output(1), keepdims=0)


def layer_norm(call: Call, x: str, gamma: str, beta: str, epsilon: float = 1e-12) -> None:
    """LayerNormalization over the last axis, as the call's first output; epsilon: where the call does not say."""
    epsilon = float(call.attribute("epsilon", epsilon))
    if call.opset >= 17:
        call.last("LayerNormalization", x, gamma, *([beta] if beta else []), axis=-1, epsilon=epsilon)
        return
    elem_type = call.float_type
    wide = _widened(call, x, elem_type)
    centred = call.op("Sub", wide, _mean(call, wide), hint="centred")
    scaled = call.op("Div", centred, _root(call, centred, epsilon, elem_type), hint="normalised")
    scaled = _narrowed(call, scaled, elem_type)
    if beta:
        call.last("Add", call.op("Mul", scaled, gamma), beta)
    else:
        call.last("Mul", scaled, gamma)


def _rms_norm(call: Call, x: str, gamma: str) -> None:
    elem_type, epsilon = call.float_type, float(call.attribute("epsilon", 1e-5))
    wide = _widened(call, x, elem_type)
    scaled = call.op("Div", wide, _root(call, wide, epsilon, elem_type), hint="normalised")
    call.last("Mul", _narrowed(call, scaled, elem_type), gamma)


def _root(call: Call, x: str, epsilon: float, elem_type: int) -> str:
    squares = _mean(call, call.op("Mul", x, x, hint="squares"))
    small = call.number(epsilon, TensorProto.DOUBLE if elem_type == TensorProto.DOUBLE else TensorProto.FLOAT)
    return call.op("Sqrt", call.op("Add", squares, small))


def _mean(call: Call, x: str) -> str:
    """Over the last axis; from opset 18 on axes are an input."""
    if call.opset >= 18:
        return call.op("ReduceMean", x, call.ints(-1), hint="mean", keepdims=1)
    return call.op("ReduceMean", x, hint="mean", axes=[-1], keepdims=1)


def _widened(call: Call, x: str, elem_type: int) -> str:
    narrow = elem_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return call.op("Cast", x, hint="wide", to=TensorProto.FLOAT) if narrow else x


def _narrowed(call: Call, x: str, elem_type: int) -> str:
    narrow = elem_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return call.op("Cast", x, hint="narrow", to=elem_type) if narrow else x


def _sum(call: Call, bias: int) -> str:
    total = call.needed(0, "an input")
    added = [call.needed(1, "skip"), *([call.input(bias)] if call.input(bias) else [])]
    # ONNX Runtime adds in this order: another one rounds otherwise.
    for number, name in enumerate(added, 1):
        last = call.output(SUM) if number == len(added) else ""
        total = call.op("Add", total, name, hint="sum", output=last)
    return total


def _nothing_of_training(call: Call) -> None:
    if call.output(1) or call.output(2):
        raise NotSpelled("mean or deviation are outputs")
