"""A product of two tensors with its axes labelled: MatMul, Einsum of two operands, Gemm of two matrices.

Axes of one label are one axis: a label of both operands and the result is a batch axis, one of both operands alone is summed
over, one of a single operand and the result is that operand's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView

Labels = tuple[Hashable, ...]
_ELLIPSIS = "…"


@dataclass(frozen=True)
class Contraction:
    """`result = factor · Σ left · right`. Each operand's axes by label; an axis of size 1 may be broadcast."""

    node: gs.Node
    left: gs.Tensor
    right: gs.Tensor
    left_axes: Labels
    right_axes: Labels
    result_axes: Labels
    factor: float = 1.0

    @property
    def result(self) -> gs.Tensor:
        return self.node.outputs[0]

    @property
    def summed(self) -> Labels:
        return tuple(label for label in self.left_axes if label in self.right_axes and label not in self.result_axes)

    @property
    def turned(self) -> Contraction:
        """The same with its operands exchanged."""
        return Contraction(
            self.node, self.right, self.left, self.right_axes, self.left_axes, self.result_axes, self.factor
        )


def contraction(view: GraphView, node: gs.Node) -> Contraction | None:
    """Read a node as a product of two tensors of known rank; None if it is none, or sums over an axis of one alone."""
    if node.domain not in STANDARD or node.op not in ("MatMul", "Einsum", "Gemm") or len(node.inputs) < 2:
        return None
    ranks = [rank for tensor in node.inputs[:2] if (rank := view.rank(tensor)) is not None]
    if len(ranks) != 2 or (node.op == "Einsum" and len(node.inputs) != 2):
        return None
    left, right = node.inputs[:2]
    if node.op == "Gemm":
        return _gemm(view, node)
    if node.op == "MatMul":
        if min(ranks) < 2:
            return None
        batch = _numbered(max(ranks) - 2)
        first, second = (batch[len(batch) - rank + 2 :] for rank in ranks)
        return Contraction(node, left, right, (*first, "m", "k"), (*second, "k", "n"), (*batch, "m", "n"))
    found = einsum_labels(str(node.attrs.get("equation", "")), ranks)
    if found is None:
        return None
    (left_axes, right_axes), result = found
    alone = (set(left_axes) ^ set(right_axes)) - set(result)
    return None if alone else Contraction(node, left, right, left_axes, right_axes, result)


def _gemm(view: GraphView, node: gs.Node) -> Contraction | None:
    """`alpha · A'·B'`, with no third operand, or one that counts for nothing."""
    if len(node.inputs) > 2 and node.inputs[2].name and node.attrs.get("beta", 1.0) != 0.0:
        added = view.constant(node.inputs[2])
        if added is None or added.any():
            return None
    left, right = node.inputs[:2]
    left_axes = ("k", "m") if node.attrs.get("transA", 0) else ("m", "k")
    right_axes = ("n", "k") if node.attrs.get("transB", 0) else ("k", "n")
    factor = float(node.attrs.get("alpha", 1.0))
    return Contraction(node, left, right, left_axes, right_axes, ("m", "n"), factor)


def einsum_labels(equation: str, ranks: Sequence[int]) -> tuple[tuple[Labels, ...], Labels] | None:
    """The labels of each operand's axes and of the result's; None for an equation with a diagonal, or of other ranks.

    Source: onnx operator specification, Einsum-12: letters of either case, spaces mean nothing, `...` stands for leading axes,
    and without `->` the result has the letters that stand once, in alphabetical order, behind the ellipsis.
    """
    terms, arrow, result = re.sub(r"\s", "", equation).partition("->")
    operands = terms.split(",")
    if len(operands) != len(ranks):
        return None
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(operands, ranks, strict=True)]
    if any(count != 0 and (count < 0 or "..." not in term) for count, term in zip(hidden, operands, strict=True)):
        return None
    most = max((count for count, term in zip(hidden, operands, strict=True) if "..." in term), default=0)
    if not arrow:
        counts = Counter(terms.replace("...", "").replace(",", ""))
        once = "".join(sorted(letter for letter, count in counts.items() if count == 1))
        result = ("..." if "..." in terms else "") + once
    read = [_labels(term, count) for term, count in zip([*operands, result], [*hidden, most], strict=True)]
    if any(len(set(labels)) != len(labels) for labels in read):
        return None
    return tuple(read[:-1]), read[-1]


def _labels(term: str, hidden: int) -> Labels:
    labels: list[Hashable] = []
    for letter in term.replace("...", _ELLIPSIS):
        labels.extend(_numbered(hidden) if letter == _ELLIPSIS else [letter])
    return tuple(labels)


def _numbered(count: int) -> Labels:
    """Labels of leading axes, counted from the last, so that operands of several ranks agree."""
    return tuple(range(-count, 0))
