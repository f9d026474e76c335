"""One `Attention` node as a plain one: 4-D, without a cache, with at most one thing that masks; the rest is nodes around it.

Source: operator specification, Attention-23 and -24: 3-D inputs `(B, S, N·H)` are split into heads; past_key and past_value stand
before K and V on the axis of the sequence, and present_key and present_value are what this gives. scale, softcap and
softmax_precision stay the node's.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.operators.masks import Lengths, Mask, Span, one_mask
from onnx_attn.recognize.operator import is_causal
from onnx_attn.views.trace import FLOATS

QUERY, KEY, VALUE, MASK, PAST_KEY, PAST_VALUE, NONPAD = range(7)
OUTPUT, PRESENT_KEY, PRESENT_VALUE, SCORES = range(4)
KEPT = ("scale", "softcap", "softmax_precision")


@dataclass(frozen=True)
class Operator:
    """An `Attention` node to read."""

    view: GraphView
    node: gs.Node

    def input(self, position: int) -> gs.Tensor | None:
        inputs = self.node.inputs
        return inputs[position] if len(inputs) > position and inputs[position].name else None

    def output(self, position: int) -> str:
        """The name of an output that somebody wants; "" else."""
        outputs = self.node.outputs
        if len(outputs) <= position or not outputs[position].name:
            return ""
        wanted = outputs[position].outputs or self.view.is_output(outputs[position])
        return outputs[position].name if wanted else ""

    @property
    def span(self) -> Span:
        """The keys that is_causal and a window leave a query."""
        left, right = (None if size < 0 else size for size in self.window)
        return Span(left, 0 if is_causal(self.node) else right)

    @property
    def is_wide(self) -> bool:
        return self.view.rank(self.node.inputs[QUERY]) == 3

    @property
    def has_short_mask(self) -> bool:
        mask, keys = self.input(MASK), self.view.shapes(self.node.inputs[KEY])
        sizes = self.view.shapes(mask) if mask is not None else None
        past = self.past_shapes
        if not sizes or not keys or not sizes[0] or any(len(key) < 2 for key in keys):
            return False
        totals = [
            key[-2] + (before[-2] if before else 0)
            for key, before in zip(keys, past or [None] * len(keys), strict=True)
        ]
        return any(size[-1] not in (1, total) for size, total in zip(sizes, totals, strict=True))

    @property
    def past_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        past = self.input(PAST_KEY)
        return self.view.shapes(past) if past is not None else None

    @property
    def merges_masks(self) -> bool:
        """Whether more than one thing masks, or one that a plain node cannot say. (TensorRT takes is_causal without a mask only,
        and crashes on a computed triangle beside a boolean mask: TensorRT for RTX 1.7.1.)"""
        alone = self.input(MASK) is None and self.input(PAST_KEY) is None
        causal, windowed = is_causal(self.node), any(size >= 0 for size in self.window)
        return self.input(NONPAD) is not None or windowed or (causal and not alone) or self.has_short_mask

    @property
    def window(self) -> tuple[int, int]:
        """Keys before a query and behind it, −1 for all."""
        left, right = (self.node.attrs.get(f"{side}_window_size") for side in ("left", "right"))
        return -1 if left is None else int(left), -1 if right is None else int(right)

    @property
    def is_plain(self) -> bool:
        extras = (self.input(PAST_KEY), self.input(PAST_VALUE), self.output(PRESENT_KEY), self.output(PRESENT_VALUE))
        return not self.is_wide and not any(extras) and not self.merges_masks

    @property
    def can_be_spelled(self) -> bool:
        """Whether all that it does can be said around a plain node."""
        attrs, view = self.node.attrs, self.view
        if self.output(SCORES):
            return False
        ranks = {view.rank(tensor) for tensor in self.node.inputs[:3]}
        counts = [attrs.get("q_num_heads"), attrs.get("kv_num_heads")]
        if ranks not in ({3}, {4}) or (ranks == {3} and not all(counts)):
            return False
        caches = [self.input(PAST_KEY), self.input(PAST_VALUE)]
        given = [cache for cache in caches if cache is not None]
        if (
            len(given) == 1
            or any(view.rank(cache) != 4 for cache in given)
            or (given and self.input(NONPAD) is not None)
        ):
            return False
        mask = self.input(MASK)
        typed = mask is None or view.elem_type(mask) in (*FLOATS, TensorProto.BOOL)
        return typed and (mask is None or view.rank(mask) is not None)


def spell(writer: Writer, operator: Operator, name: str) -> None:
    """Append the plain node, called `name`, and all that stands around it; it makes every output that the original made."""
    view, node = operator.view, operator.node
    heads = [node.attrs.get("q_num_heads"), *[node.attrs.get("kv_num_heads")] * 2]
    query, key, value = (
        _split(writer, view, tensor, count) if operator.is_wide and count else tensor.name
        for tensor, count in zip(node.inputs[:3], heads, strict=True)
    )
    key = _with_past(writer, operator, key, PAST_KEY, PRESENT_KEY)
    value = _with_past(writer, operator, value, PAST_VALUE, PRESENT_VALUE)
    mask = operator.input(MASK)
    given = [query, key, value]
    causal = is_causal(node)
    if operator.merges_masks:
        lengths = _lengths(writer, operator, query, key)
        stored = Mask(mask.name, view.elem_type(mask), operator.has_short_mask) if mask is not None else None
        nonpad = operator.input(NONPAD)
        given.append(one_mask(writer, lengths, stored, operator.span, nonpad.name if nonpad is not None else ""))
        causal = False
    elif mask is not None:
        given.append(mask.name)
    attributes = {key: node.attrs[key] for key in KEPT if key in node.attrs} | ({"is_causal": 1} if causal else {})
    output = node.outputs[OUTPUT].name
    made = writer.names.value(f"{name}/attention_heads") if operator.is_wide else output
    writer.add("Attention", given, "attention", output=made, name=name, attributes=attributes)
    if operator.is_wide:
        turned = writer.add("Transpose", [made], "attention", perm=[0, 2, 1, 3])
        writer.add("Reshape", [turned, writer.shape(0, 0, -1)], "attention_merged", output=output)


def _split(writer: Writer, view: GraphView, tensor: gs.Tensor, heads: int) -> str:
    """`(B, S, N·H)` as `(B, N, S, H)`."""
    width = view.static(tensor, -1)
    apart = writer.add("Reshape", [tensor.name, writer.shape(0, 0, heads, width // heads if width else -1)], "heads")
    return writer.add("Transpose", [apart], "heads_turned", perm=[0, 2, 1, 3])


def _with_past(writer: Writer, operator: Operator, name: str, past: int, present: int) -> str:
    """K or V behind its past; the present output is this value."""
    before, output = operator.input(past), operator.output(present)
    if before is not None:
        return writer.add("Concat", [before.name, name], "with_past", output=output or None, axis=-2)
    if output:
        writer.add("Identity", [name], "present", output=output)
    return name


def _lengths(writer: Writer, operator: Operator, query: str, key: str) -> Lengths:
    """Lengths as numbers where they are static; else they are asked for when the model runs."""
    view, axis = operator.view, -2
    queries, keys = (view.static(tensor, axis) for tensor in operator.node.inputs[:2])
    past = operator.input(PAST_KEY)
    before = view.static(past, -2) if past is not None else 0
    total = None if None in (keys, before) else keys + before  # type: ignore[operator]

    def length(size: int | None, name: str, hint: str) -> str:
        return writer.shape(size) if size is not None else writer.add("Shape", [name], hint, start=2, end=3)

    earlier = length(before, past.name, "past_length") if past is not None else ""
    return Lengths(
        queries, total, before, length(queries, query, "query_length"), length(total, key, "key_length"), earlier
    )
