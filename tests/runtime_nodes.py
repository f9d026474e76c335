"""One operator of ONNX Runtime on model inputs, and values on which it may be called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from graphs import Net

B, S, L, P, N, KV, H, E = 2, 5, 7, 3, 4, 2, 16, 24
D = N * H
FULL = np.array([S, S], np.int32)
Given = tuple[int, ...] | np.ndarray | None
"""A shape of floats, or whole numbers that a caller gives, or nothing."""


@dataclass(frozen=True)
class Case:
    """An operator, its inputs by place, its attributes, and the ranks of its outputs (0 for one that is left out)."""

    op: str
    inputs: Sequence[Given]
    attrs: dict[str, Any] = field(default_factory=dict)
    ranks: Sequence[int] = (3,)
    fixed: dict[int, np.ndarray] = field(default_factory=dict)
    domain: str = "com.microsoft"

    def model(self, opset: int = 17, dtype: Any = np.float32) -> onnx.ModelProto:
        net, names = Net(opset, dtype), []
        for place, given in enumerate(self.inputs):
            if place in self.fixed:
                own = self.fixed[place].dtype
                names.append(net.const(self.fixed[place], dtype if own == np.float32 else own))
            elif given is None:
                names.append("")
            elif isinstance(given, np.ndarray):
                names.append(net.input(f"i{place}", *given.shape, dtype=given.dtype))
            else:
                names.append(net.input(f"i{place}", *given))
        made = net.op(self.op, *names, outputs=len(self.ranks), name="softmax", domain=self.domain, **self.attrs)
        for name, rank in zip([made] if len(self.ranks) == 1 else made, self.ranks, strict=True):
            if rank:
                net.output(name, rank)
        model = net.model(com_microsoft=1)
        for place, rank in enumerate(self.ranks):
            if not rank:
                model.graph.node[0].output[place] = ""
        return model

    def feeds(self, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        rng, values = np.random.default_rng(5), {}
        for place, given in enumerate(self.inputs):
            if given is None or place in self.fixed:
                continue
            scale = 1.0 / np.sqrt(given[0]) if isinstance(given, tuple) and len(given) == 2 else 1.0
            values[f"i{place}"] = (
                given if isinstance(given, np.ndarray) else np.asarray(scale * rng.standard_normal(given), dtype)
            )
        return values


def mask(*shape: int, whole: bool = True) -> np.ndarray:
    """Zeros and ones, of which a whole row is zeros. (Behind -10000 a score has few digits left: with a bias on top, two right
    sums may differ there.)"""
    found = np.random.default_rng(3).integers(0, 2, shape).astype(np.int32)
    found[..., 0] = 1
    if whole:
        found[-1] = 0
    return found


def attention(*more: Given, outputs: Sequence[int] = (3,), width: int = 3 * D, **attrs: Any) -> Case:
    weights = np.asarray(np.random.default_rng(2).standard_normal((E, width)) / np.sqrt(E), np.float32)
    return Case("Attention", [(B, S, E), weights, (width,), *more], {"num_heads": N, **attrs}, outputs, {1: weights})


def multi_head(query: Given, key: Given, value: Given, *more: Given, outputs: int = 1, **attrs: Any) -> Case:
    ranks = (3, 4, 4)[:outputs]
    return Case("MultiHeadAttention", [query, key, value, *more], {"num_heads": N, **attrs}, ranks)


def grouped(
    batch: int,
    new: int,
    past: int,
    *more: Given,
    lengths: Sequence[int] = (),
    room: int | None = None,
    packed: bool = False,
    **attrs: Any,
) -> Case:
    """lengths: of each sequence, if not all are the longest; room: of the buffer, where that is longer than the past."""
    total = new + past
    wide: list[Given] = [(batch, new, (N + 2 * KV) * H), None, None]
    if not packed:
        wide = [(batch, new, D), (batch, new, KV * H), (batch, new, KV * H)]
    cache: list[Given] = [(batch, KV, past if room is None else room, H)] * 2
    ends = np.array(lengths or [total] * batch, np.int32) - 1
    options = {"num_heads": N, "kv_num_heads": KV, **attrs}
    fixed = {6: np.array(total, np.int32)}
    return Case("GroupQueryAttention", [*wide, *cache, ends, fixed[6], *more], options, (3, 4, 4), fixed)


TABLES: list[Given] = [(64, H // 2)] * 2
"""Cosines and sines (of no angle, which makes no difference to what they are multiplied with)."""


def quantised(kind: type, columns: bool, *more: Given, outputs: Sequence[int] = (3,), **attrs: Any) -> Case:
    rng = np.random.default_rng(7)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    sizes = (3 * D,) if columns else ()
    fixed = {
        1: rng.integers(low, high, (E, 3 * D)).astype(kind),
        3: np.array(0.02, np.float32),
        4: np.asarray(rng.uniform(0.001, 0.002, sizes), np.float32),
        6: np.array(131, np.uint8),
        7: np.asarray(rng.integers(0, 5, sizes), kind),
    }
    x = rng.integers(0, 255, (B, S, E)).astype(np.uint8)
    given = [x, fixed[1], (3 * D,), fixed[3], fixed[4], *(more[:1] or [None]), fixed[6], fixed[7], *more[1:]]
    return Case("QAttention", given, {"num_heads": N, **attrs}, outputs, fixed)


PAST: Given = (2, B, N, P, H)
CACHE: list[Given] = [(B, N, P, H), (B, N, P, H)]
QUERY: Given = (B, S, D)
OTHER: list[Given] = [(B, L, D), (B, L, D)]

ATTENTION_CASES = {
    "attention": attention(),
    "attention, keys masked": attention(mask(B, S)),
    "attention, scores masked": attention(mask(B, S, S)),
    "attention, ends": attention(np.array([3, 5], np.int32)),
    "attention, ends and starts": attention(np.array([3, 5, 1, 0], np.int32)),
    "attention, causal": attention(unidirectional=1),
    "attention, causal and masked": attention(mask(B, S), unidirectional=1),
    "attention, causal, masked by little": attention(mask(B, S), unidirectional=1, mask_filter_value=-5.0),
    "attention, bias on the scores": attention(None, None, (B, N, S, S), scale=0.3),
    "attention, mask and bias": attention(mask(B, S, whole=False), None, (1, N, S, S)),
    "attention, narrow values": attention(width=2 * D + 12, qkv_hidden_sizes=[D, D, 12]),
    "attention, past": attention(None, PAST, outputs=(3, 5)),
    "attention, causal behind a past": attention(mask(B, S + P), PAST, outputs=(3, 5), unidirectional=1),
    "attention, present": attention(outputs=(3, 5), unidirectional=1),
    "quantised": quantised(np.int8, False),
    "quantised by column": quantised(np.int8, True, mask(B, S)),
    "quantised, unsigned weights": quantised(np.uint8, False),
    "quantised, past": quantised(np.int8, False, mask(B, S + P), PAST, outputs=(3, 5), unidirectional=1),
    "multi-head": multi_head(QUERY, QUERY, QUERY),
    "multi-head, other keys, narrow values": multi_head(QUERY, (B, L, D), (B, L, 12), (2 * D + 12,)),
    "multi-head, ends": multi_head(QUERY, *OTHER, None, np.array([3, 7], np.int32)),
    "multi-head, keys masked": multi_head(QUERY, *OTHER, (3 * D,), mask(B, L)),
    "multi-head, scores masked": multi_head(QUERY, *OTHER, None, mask(B, S, L), scale=0.7),
    "multi-head, mask and bias": multi_head(QUERY, *OTHER, None, mask(B, L, whole=False), (B, 1, S, L)),
    "multi-head, causal and masked": multi_head(QUERY, QUERY, QUERY, None, mask(B, S), unidirectional=1),
    "multi-head, past": multi_head(QUERY, QUERY, QUERY, None, None, None, *CACHE, outputs=3),
    "multi-head, causal behind a past": multi_head(
        QUERY, QUERY, QUERY, (3 * D,), mask(B, S + P), None, *CACHE, outputs=3, unidirectional=1
    ),
    "multi-head, cached keys": multi_head(QUERY, (B, N, L, H), (B, N, L, H), (3 * D,), mask(B, L)),
    "multi-head, presents": multi_head(QUERY, *OTHER, outputs=3),
    "grouped, prompt": grouped(2, 5, 0),
    "grouped, step": grouped(1, 1, 6),
    "grouped, steps": grouped(2, 1, 6, lengths=[7, 4]),
    "grouped, continued": grouped(1, 4, 6),
    "grouped, step in a buffer": grouped(2, 1, 6, lengths=[7, 4], room=16),
    "grouped, prompt in a buffer": grouped(2, 5, 0, room=16),
    "grouped, rotary": grouped(2, 5, 0, *TABLES, do_rotary=1),
    "grouped, rotary, step": grouped(2, 1, 6, *TABLES, lengths=[7, 4], do_rotary=1),
    "grouped, rotary, interleaved": grouped(1, 1, 6, *TABLES, do_rotary=1, rotary_interleaved=1),
    "grouped, rotary, positions": grouped(1, 3, 4, *TABLES, np.array([[9, 2, 30]]), do_rotary=1),
    "grouped, rotary, positions of a prompt": grouped(2, 3, 0, *TABLES, np.array([[9, 2, 30]] * 2), do_rotary=1),
    "grouped, packed": grouped(2, 5, 0, *TABLES, packed=True, do_rotary=1),
    "grouped, window": grouped(2, 5, 0, local_window_size=3),
    "grouped, window, step": grouped(2, 1, 6, lengths=[7, 4], local_window_size=3),
    "grouped, softcap and bias": grouped(2, 5, 0, None, None, None, (2, 1, 5, 5), softcap=2.0),
    "grouped, bias, step": grouped(1, 1, 6, None, None, None, (1, N, 1, 7), scale=0.3),
    "grouped, not causal": grouped(2, 5, 0, causal=0),
}
