"""com.microsoft.Attention and QAttention: the in-projection is inside.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.Attention
"""

from __future__ import annotations

from onnx_attn.operators.microsoft.call import Call, NotSpelled
from onnx_attn.operators.microsoft.heads import attend, heads_of, merge_heads, scale_of, split_heads, with_past
from onnx_attn.operators.microsoft.padding import Lengths, causal_mask, padding_mask

INPUT, WEIGHTS, BIAS, MASK, PAST, SCORE_BIAS, PAST_LENGTH = range(7)


def attention(call: Call) -> None:
    """`(B, S, E)` and weights `(E, Dq + Dk + Dv)`; past and present are `(2, B, N, T, H)`."""
    if call.attribute("do_rotary", 0):
        raise NotSpelled("a rotary embedding whose tables it makes itself")
    if call.attribute("past_present_share_buffer", 0) or call.input(PAST_LENGTH):
        raise NotSpelled("a past and a present that share a buffer")
    product = call.op("MatMul", call.input(INPUT), call.needed(WEIGHTS, "weights"), hint="in_proj_product")
    if call.input(BIAS):
        product = call.op("Add", product, call.input(BIAS), hint="in_proj")
    _projected(call, product, WEIGHTS, MASK, PAST, call.input(SCORE_BIAS))


QUANTISED_SCALE, WEIGHT_SCALE, QUANTISED_MASK, ZERO, WEIGHT_ZERO, QUANTISED_PAST = range(3, 9)


def quantised_attention(call: Call) -> None:
    """The same on whole numbers with their scales: input `(B, S, E)` uint8 or int8, weights int8 or uint8."""
    if call.attribute("do_rotary", 0) or call.attribute("past_present_share_buffer", 0):
        raise NotSpelled("a rotary embedding, or a past and a present that share a buffer")
    if call.opset < 13 and call.size(WEIGHT_SCALE, 0) not in (None, 1):
        raise NotSpelled("scales for each column below opset 13")
    parts = [
        _wide(call, INPUT, QUANTISED_SCALE, ZERO, None),
        _wide(call, WEIGHTS, WEIGHT_SCALE, WEIGHT_ZERO, 1),
    ]
    product = call.op(
        "Add", call.op("MatMul", *parts, hint="in_proj_product"), call.needed(BIAS, "a bias"), hint="in_proj"
    )
    _projected(call, product, WEIGHTS, QUANTISED_MASK, QUANTISED_PAST, "")


def _wide(call: Call, place: int, scale: int, zero: int, axis: int | None) -> str:
    """Whole numbers as what they stand for; of one scale, or one for each column."""
    call.needed(scale, "a scale")
    single = call.rank(scale) == 0 or call.size(scale, 0) == 1
    names = [_scalar(call, each) if single else call.input(each) for each in (scale, zero) if call.input(each)]
    axes = {"axis": axis} if axis is not None and not single else {}
    return call.op("DequantizeLinear", call.input(place), *names, hint="dequantised", **axes)  # type: ignore[arg-type]


def _scalar(call: Call, place: int) -> str:
    """An input of one element without axes."""
    value = call.value(place)
    if call.rank(place) == 0:
        return call.input(place)
    return call.writer.constant(value.reshape(()), "scale") if value is not None else call.reshape(call.input(place))


def _projected(call: Call, projected: str, weights: int, mask: int, past: int, score_bias: str) -> None:
    heads, width = heads_of(call), call.size(weights, 1)
    sizes = [int(size) for size in call.attribute("qkv_hidden_sizes", [])]
    if not sizes and width is not None and width % 3 == 0:
        sizes = [width // 3] * 3
    if len(sizes) != 3 or any(size % heads for size in sizes):
        raise NotSpelled("the widths of Q, K and V are not known")
    names = ("query", "key", "value")
    parts = call.split(projected, sizes, axis=-1, hint="projected")
    query, key, value = (split_heads(call, part, heads, name) for part, name in zip(parts, names, strict=True))
    new, behind = call.size(INPUT, 1), call.size(past, 3) if call.input(past) else 0
    total = new + behind if new is not None and behind is not None else None
    length = total_length = call.length(call.input(INPUT), 1)
    past_length = call.ints(0)
    if call.input(past):
        before = call.split(call.input(past), [1, 1], axis=0, hint="past")
        earlier = [call.op("Squeeze", each, call.ints(0)) for each in before]
        key, value = (with_past(call, x, p, "", n) for x, p, n in zip((key, value), earlier, names[1:], strict=True))
        past_length, total_length = call.length(call.input(past), 3), call.length(key, 2)
    if call.output(1):
        call.op("Concat", call.unsqueeze(key, 0), call.unsqueeze(value, 0), output=call.output(1), axis=0)
    blocked = padding_mask(call, mask, total_length, call.size(INPUT, 0))
    if call.attribute("unidirectional", 0) == 1:
        lengths = Lengths((new, total, behind), (length, total_length, past_length))
        blocked = causal_mask(call, blocked, lengths)
    masks = [each for each in (blocked, score_bias) if each]
    found = attend(call, query, key, value, masks, scale_of(call, sizes[0] // heads))
    merge_heads(call, found, call.output(0))
