"""com.microsoft.GroupQueryAttention: few heads of K and V, a cache, causal, perhaps rotary embeddings and a sliding window.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention. A sequence
of the batch has seqlens_k + 1 keys, of which the last S are new; in a first prompt (S is the total length) it has no past. K and
V are a buffer `(B, Nkv, M, H)`: the past's, where all keys find room in it, else of the total length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnx_attn.operators.microsoft.call import Call, ContradictionError, NotSpelled
from onnx_attn.operators.microsoft.heads import (
    attend,
    heads_of,
    merge_heads,
    repeated,
    scale_of,
    split_heads,
    with_past,
)
from onnx_attn.operators.rotary import spell_rotary

QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTHS, TOTAL, COS, SIN, POSITIONS, SCORE_BIAS = range(11)
OUTPUT, PRESENT_KEY, PRESENT_VALUE, SCORES = range(4)
EXTRAS = {
    11: "a sink of each head",
    12: "a quantised cache",
    13: "a quantised cache",
    14: "a norm of Q",
    15: "a norm of K",
}
"""Inputs that are not spelled, by their places."""


@dataclass(frozen=True)
class Keys:
    """How many keys there are, by sequence. past, total: vectors of int64 `(B, 1, 1)` or of one element; appended: the past is
    as long for all sequences, and the new keys stand behind it."""

    past: str
    count: str
    appended: bool


def grouped_attention(call: Call) -> None:
    """Q `(B, S, N·H)`, K and V `(B, S, Nkv·H)`, or all three behind one another in Q."""
    _refuse_extras(call)
    heads, kv_heads = heads_of(call), heads_of(call, "kv_num_heads")
    if heads % kv_heads:
        raise NotSpelled("heads that do not share those of K and V evenly")
    (query, key, value), head_dim = _heads(call, heads, kv_heads)
    keys = _keys(call, query)
    if call.attribute("do_rotary", 0):
        query, key = _rotated(call, query, key, keys, head_dim)
    key = _cached(call, key, call.input(PAST_KEY), call.output(PRESENT_KEY), keys, "key")
    value = _cached(call, value, call.input(PAST_VALUE), call.output(PRESENT_VALUE), keys, "value")
    masks = [_mask(call, query, key, keys), *([call.input(SCORE_BIAS)] if call.input(SCORE_BIAS) else [])]
    copies = heads // kv_heads
    key, value = repeated(call, key, kv_heads, copies, "key"), repeated(call, value, kv_heads, copies, "value")
    found = attend(call, query, key, value, masks, scale_of(call, head_dim), float(call.attribute("softcap", 0.0)))
    if keys.appended:
        merge_heads(call, found, call.output(OUTPUT))
        return
    # The sizes of Q: of keys whose number is not known, nothing would be known of the result either.
    sizes = [call.length(call.input(QUERY), axis) for axis in (0, 1)]
    wanted = call.op("Concat", *sizes, call.ints(heads * head_dim), hint="attention_sizes", axis=0)
    turned = call.turn(found, 0, 2, 1, 3, hint="attention_turned")
    call.op("Reshape", turned, wanted, hint="attention_merged", output=call.output(OUTPUT))


def _refuse_extras(call: Call) -> None:
    for place, what in EXTRAS.items():
        if call.input(place):
            raise NotSpelled(what)
    if call.output(SCORES) or call.attribute("qk_output", 0):
        raise NotSpelled("the scores are an output")
    for name, what in (
        ("smooth_softmax", "a smooth softmax"),
        ("sliding_window_cache", "a cache as long as its window"),
    ):
        if call.attribute(name, 0) not in (0, -1):
            raise NotSpelled(what)
    if any(call.attribute(f"{side}_quant_type", "NONE") != "NONE" for side in "kv"):
        raise NotSpelled("a quantised cache")
    if bool(call.input(PAST_KEY)) != bool(call.input(PAST_VALUE)):
        raise NotSpelled("a past of K or V alone")


def _heads(call: Call, heads: int, kv_heads: int) -> tuple[list[str], int]:
    names, query = ("query", "key", "value"), call.needed(QUERY, "a query")
    width, counts = call.size(QUERY, 2), (heads, kv_heads, kv_heads)
    packed = not call.input(KEY)
    if not width or width % (sum(counts) if packed else heads):
        raise NotSpelled("the size of a head is not known")
    head_dim = width // (sum(counts) if packed else heads)
    wide = [query, call.input(KEY), call.input(VALUE)]
    if packed:
        wide = call.split(query, [count * head_dim for count in counts], axis=-1, hint="projected")
    return [split_heads(call, x, n, name) for x, n, name in zip(wide, counts, names, strict=True)], head_dim


def _keys(call: Call, query: str) -> Keys:
    new, past = call.length(query, 2), call.input(PAST_KEY)
    relation = _relation(call)
    if relation == "no past" or (relation == "appended" and call.size(QUERY, 0) == 1):
        # One sequence is as long as the longest one.
        length = call.length(past, 2) if past else call.ints(0)
        return Keys(length, call.op("Add", length, new, hint="key_count"), appended=True)
    ends = call.op("Cast", call.needed(LENGTHS, "seqlens_k"), to=TensorProto.INT64)
    one = call.ints(1)
    earlier = call.op("Sub", call.op("Add", call.reshape(ends, -1, hint="last_keys"), one), new, hint="past_length")
    earlier = call.op("Where", _is_prompt(call, query), call.ints(0), earlier, hint="past_length")
    count = call.op("Max", call.length(past, 2), _total(call), hint="key_count") if past else _total(call)
    return Keys(call.reshape(earlier, -1, 1, 1, hint="past_length"), count, appended=False)


def _total(call: Call) -> str:
    """The total length as a vector of one element."""
    return call.reshape(call.op("Cast", call.needed(TOTAL, "a total length"), to=TensorProto.INT64), 1, hint="total")


def _is_prompt(call: Call, query: str) -> str:
    """Whether there is no past: S is the total length."""
    return call.op("Equal", _total(call), call.length(query, 2), hint="is_prompt")


def _relation(call: Call) -> str:
    """How the total length, the new keys and the past's buffer are related, where every world knows."""
    query, past, total = call.shapes(QUERY), call.shapes(PAST_KEY), call.known[TOTAL]
    if query is None or not total or any(each.value is None or each.value.size != 1 for each in total):
        return "unknown"
    found = set()
    for world, sizes in enumerate(query):
        behind = past[world][2] if past is not None else 0
        value = total[world].value
        keys = int(value.reshape(-1)[0]) if value is not None else 0
        if keys == behind + sizes[1]:
            found.add("appended" if behind else "no past")
        elif keys <= behind:
            found.add("buffer")
        else:
            raise ContradictionError(
                "the total length is neither the past's and the new keys', nor room in the past's buffer"
            )
    if found == {"no past"} and call.input(PAST_KEY) and call.size(PAST_KEY, 2) != 0:
        return "unknown"
    return found.pop() if len(found) == 1 else "unknown"


def _rotated(call: Call, query: str, key: str, keys: Keys, head_dim: int) -> tuple[str, str]:
    cos, sin = call.needed(COS, "a table of cosines"), call.needed(SIN, "a table of sines")
    half = call.size(COS, 1)
    if half is None:
        raise NotSpelled("the size of the rotary embedding is not known")
    fresh = call.arange(call.length(query, 2))
    if call.input(POSITIONS):
        # Of a first prompt ONNX Runtime looks at the first number alone.
        given = call.input(POSITIONS)
        first = call.op("Slice", given, call.ints(0, 0), call.ints(1, 1), hint="first_position")
        running = call.op("Add", first, fresh, hint="positions")
        positions = call.op("Where", _is_prompt(call, query), running, given, hint="positions")
    else:
        past = call.reshape(keys.past, -1, 1, hint="past_length")
        positions = call.op("Add", past, fresh, hint="positions")
    tables = [call.op("Gather", table, positions, hint="rotary_table", axis=0) for table in (cos, sin)]
    interleaved = bool(call.attribute("rotary_interleaved", 0))
    turned = [
        spell_rotary(call.writer, x, *tables, interleaved=interleaved, dim=2 * half, head_dim=head_dim)
        for x in (query, key)
    ]
    return turned[0], turned[1]


def _cached(call: Call, x: str, past: str, present: str, keys: Keys, hint: str) -> str:
    """The buffer of K or V with the new ones in it; what is behind them is 0."""
    if keys.appended:
        return with_past(call, x, past, present, hint)
    if not past:
        past = call.op("Slice", x, call.ints(0), call.ints(0), call.ints(2), hint="no_past")
    rows = call.reshape(call.arange(keys.count), -1, 1, hint="rows")
    behind = call.op("Add", call.op("Sub", rows, keys.past), call.length(past, 2), hint="from_new")
    in_past = call.op("Less", rows, keys.past)
    last = call.op("Sub", call.op("Add", call.length(past, 2), call.length(x, 2)), call.ints(1), hint="last_row")
    source = call.op("Min", call.op("Where", in_past, rows, behind), last, hint="source_rows")
    stacked = call.op("Concat", past, x, hint=f"{hint}_stacked", axis=2)
    sizes = call.op("Shape", stacked)
    picked = [call.op("Gather", sizes, call.ints(axis), axis=0) for axis in (0, 1, 3)]
    wanted = call.op("Concat", picked[0], picked[1], keys.count, picked[2], hint="cache_sizes", axis=0)
    index = call.op("Expand", call.unsqueeze(source, 1), wanted, hint="source_index")
    found = call.op("GatherElements", stacked, index, axis=2)
    end = call.op("Add", keys.past, call.length(x, 2), hint="key_end")
    held = call.unsqueeze(call.op("Less", rows, end), 1)
    return call.op("Where", held, found, call.number(0.0, call.float_type), hint=f"{hint}_cache", output=present)


def _mask(call: Call, query: str, key: str, keys: Keys) -> str:
    """0 where a query sees a key, the lowest number elsewhere: `(S, T)`, or `(B, 1, S, M)` where lengths differ."""
    if call.input(SCORE_BIAS) and not keys.appended and _relation(call) != "appended":
        raise NotSpelled("a bias over fewer keys than the buffer has")
    window = int(call.attribute("local_window_size", -1))
    rows, columns = call.unsqueeze(call.arange(call.length(query, 2)), 1), call.arange(call.length(key, 2))
    place = call.op("Add", rows, keys.past, hint="query_places")
    if call.attribute("causal", 1):
        allowed = call.op("LessOrEqual", columns, place, hint="attended")
    else:
        allowed = call.op("Less", columns, call.op("Add", keys.past, call.length(query, 2)), hint="attended")
    if window > 0:
        near = call.op("Greater", columns, call.op("Sub", place, call.ints(window)), hint="near")
        allowed = call.op("And", allowed, near, hint="attended")
    if not keys.appended:
        allowed = call.unsqueeze(allowed, 1)
    elem_type = call.float_type
    return call.op("Where", allowed, call.number(0.0, elem_type), call.number(-np.inf, elem_type), hint="causal_mask")
