"""What ONNX Runtime's attention operators have in common, in plain nodes: heads, scores, softmax, values, caches.

Axes: B batch, S queries, L new keys, P past keys, T all keys, N heads, H head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx_attn.operators.microsoft.call import Call, NotSpelled


def heads_of(call: Call, attribute: str = "num_heads") -> int:
    heads = int(call.attribute(attribute, 0))
    if heads < 1:
        raise NotSpelled(f"without {attribute}")
    return heads


def scale_of(call: Call, head_dim: int | None) -> float:
    """The attribute, or 1/√H; 0 stands for none, as ONNX Runtime takes it."""
    scale = float(call.attribute("scale", 0.0))
    if scale:
        return scale
    if not head_dim:
        raise NotSpelled("the scale follows from a head size that is not known")
    return 1.0 / math.sqrt(head_dim)


def split_heads(call: Call, x: str, heads: int, hint: str) -> str:
    """`(B, S, N·H)` as `(B, N, S, H)`."""
    return call.turn(call.reshape(x, 0, 0, heads, -1, hint=f"{hint}_split"), 0, 2, 1, 3, hint=f"{hint}_heads")


def repeated(call: Call, x: str, kv_heads: int, copies: int, hint: str) -> str:
    """`(B, Nkv, T, H)` as `(B, Nkv·copies, T, H)`, each head for neighbours."""
    if copies == 1:
        return x
    one = call.unsqueeze(x, 2)
    many = call.op("Expand", one, call.ints(1, 1, copies, 1, 1), hint=f"{hint}_shared")
    sizes = call.op("Shape", x)
    total = call.op("Concat", call.ints(0, kv_heads * copies), _ends(call, sizes), hint=f"{hint}_sizes", axis=0)
    return call.op("Reshape", many, total, hint=f"{hint}_repeated")


def _ends(call: Call, sizes: str) -> str:
    """The last two of four sizes."""
    return call.op("Gather", sizes, call.ints(2, 3), hint="last_sizes", axis=0)


def with_past(call: Call, x: str, past: str, present: str, hint: str) -> str:
    """K or V behind its past, `(B, N, P + L, H)`; the present output is this value."""
    if past:
        return call.op("Concat", past, x, hint=f"{hint}_with_past", output=present, axis=2)
    if present:
        call.op("Identity", x, hint=f"{hint}_present", output=present)
    return x


def attend(
    call: Call, query: str, key: str, value: str, masks: Sequence[str], scale: float, softcap: float = 0.0
) -> str:
    """softmax(scale·Q·Kᵀ + masks)·V on `(B, N, S, H)`; the softmax is called what the operator was called."""
    scores = call.op("MatMul", query, call.turn(key, 0, 1, 3, 2, hint="key_turned"), hint="scores")
    elem_type = call.float_type
    if scale != 1.0:
        scores = call.op("Mul", scores, call.number(scale, elem_type), hint="scores_scaled")
    if softcap:
        cap = call.number(softcap, elem_type)
        scores = call.op("Mul", call.op("Tanh", call.op("Div", scores, cap)), cap, hint="scores_capped")
    for mask in masks:
        scores = call.op("Add", scores, mask, hint="scores_masked")
    probabilities = call.op("Softmax", scores, hint="probabilities", name=call.name, axis=-1)
    return call.op("MatMul", probabilities, value, hint="attention")


def merge_heads(call: Call, x: str, output: str) -> None:
    """`(B, N, S, H)` as `(B, S, N·H)`, under the name of an output."""
    call.reshape(call.turn(x, 0, 2, 1, 3, hint="attention_turned"), 0, 0, -1, output=output)
