"""com.microsoft.MultiHeadAttention: Q, K and V are projected outside, their biases added inside.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MultiHeadAttention
"""

from __future__ import annotations

from onnx_attn.operators.microsoft.call import Call, NotSpelled
from onnx_attn.operators.microsoft.heads import attend, heads_of, merge_heads, scale_of, split_heads, with_past
from onnx_attn.operators.microsoft.padding import Lengths, causal_mask, padding_mask

QUERY, KEY, VALUE, BIAS, MASK, SCORE_BIAS, PAST_KEY, PAST_VALUE, PAST_LENGTH, INDIRECTION = range(10)
OUTPUT, PRESENT_KEY, PRESENT_VALUE, SCORES = range(4)


def multi_head_attention(call: Call) -> None:
    """Q `(B, S, N·H)` with K and V too, or as caches `(B, N, L, H)`, or packed by head: `(B, L, N, 2, H)`, `(B, S, N, 3, H)`."""
    _refuse_what_decoders_share(call)
    heads = heads_of(call)
    (query, key, value), head_dim = _heads(call, heads)
    past = call.input(PAST_KEY)
    key = with_past(call, key, call.input(PAST_KEY), call.output(PRESENT_KEY), "key")
    value = with_past(call, value, call.input(PAST_VALUE), call.output(PRESENT_VALUE), "value")
    vectors = (call.length(query, 2), call.length(key, 2), call.length(past, 2) if past else call.ints(0))
    blocked = padding_mask(call, MASK, vectors[1], call.size(QUERY, 0))
    if call.attribute("unidirectional", 0) == 1:
        behind = call.size(PAST_KEY, 2) if past else 0
        if _lengths_of(call, QUERY) != _lengths_of(call, KEY):
            raise NotSpelled("unidirectional over keys of another sequence")
        blocked = causal_mask(call, blocked, Lengths((call.size(QUERY, 1), _keys(call, behind), behind), vectors))
    masks = [each for each in (blocked, call.input(SCORE_BIAS)) if each]
    found = attend(call, query, key, value, masks, scale_of(call, head_dim))
    merge_heads(call, found, call.output(OUTPUT))


def _refuse_what_decoders_share(call: Call) -> None:
    if call.output(SCORES):
        raise NotSpelled("the scores are an output")
    if call.input(PAST_LENGTH) or call.input(INDIRECTION):
        raise NotSpelled("a past and a present that share a buffer")
    if bool(call.input(PAST_KEY)) != bool(call.input(PAST_VALUE)):
        raise NotSpelled("a past of K or V alone")


def _heads(call: Call, heads: int) -> tuple[list[str], int | None]:
    """Q, K and V as `(B, N, S, H)`, and the size of a head where it does not vary."""
    names, query = ("query", "key", "value"), call.needed(QUERY, "a query")
    if call.rank(QUERY) == 5:
        if call.input(BIAS):
            raise NotSpelled("a bias beside packed Q, K and V")
        return _packed(call, query, 3), call.size(QUERY, 4)
    width = call.size(QUERY, 2)
    head_dim = width // heads if width else None
    biases = _biases(call, width)
    if biases[0]:
        query = call.op("Add", query, biases[0], hint="query_biased")
    query = split_heads(call, query, heads, names[0])
    key = call.needed(KEY, "a key")
    if call.rank(KEY) == 5:
        if any(biases[1:]):
            raise NotSpelled("a bias beside packed K and V")
        return [query, *_packed(call, key, 2)], head_dim
    rest = [key, call.needed(VALUE, "a value")]
    if call.rank(KEY) == 4:
        return [query, *rest], head_dim
    biased = [
        call.op("Add", x, bias, hint=f"{name}_biased") if bias else x
        for x, bias, name in zip(rest, biases[1:], names[1:], strict=True)
    ]
    return [query, *(split_heads(call, x, heads, name) for x, name in zip(biased, names[1:], strict=True))], head_dim


def _biases(call: Call, width: int | None) -> list[str]:
    """The parts of the bias for Q, K and V; those of cached K and V are in them already."""
    bias, total = call.input(BIAS), call.size(BIAS, 0)
    if not bias:
        return ["", "", ""]
    if width is None or total is None or total <= 2 * width:
        raise NotSpelled("the widths of Q, K and V are not known")
    parts = call.split(bias, [width, width, total - 2 * width], axis=0, hint="bias")
    return parts if call.rank(KEY) == 3 else [parts[0], "", ""]


def _packed(call: Call, x: str, count: int) -> list[str]:
    """`(B, L, N, count, H)` as so many `(B, N, L, H)`."""
    parts = call.split(call.turn(x, 3, 0, 2, 1, 4, hint="unpacked"), [1] * count, axis=0, hint="unpacked")
    return [call.op("Squeeze", part, call.ints(0)) for part in parts]


def _lengths_of(call: Call, place: int) -> list[int]:
    """Of queries, or of new keys, in every world."""
    shapes = call.shapes(place if call.input(place) else QUERY) or ()
    return [shape[2 if len(shape) == 4 else 1] for shape in shapes]


def _keys(call: Call, past: int | None) -> int | None:
    """How many keys there are with the past, where that does not vary."""
    packed = call.rank(QUERY) == 5
    new = call.size(QUERY, 1) if packed else call.size(KEY, 2 if call.rank(KEY) == 4 else 1)
    return new + past if new is not None and past is not None else None
