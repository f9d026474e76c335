"""The numbers of a group's projection: weights side by side, with what exact algebra makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_attn.algebra.choose import QUERY, Algebra
from onnx_attn.algebra.constant_channel import affine, fold_bias, whole_bias
from onnx_attn.forms.narrow_weights import is_narrow, write_narrow
from onnx_attn.forms.packing import ROLES, Group, Member
from onnx_attn.graph.edit import RoundsBadlyError, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite
from onnx_attn.views.linear import weight_array

Numbers = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class InProj:
    """The projection of one group under an algebra."""

    view: GraphView
    site: AttentionSite
    group: Group
    algebra: Algebra

    @property
    def stands(self) -> bool:
        """Whether the projection's own result serves as it is."""
        return self.group.reuses_output and not self.algebra.changes(self.group)

    @property
    def biased(self) -> tuple[int, ...]:
        """The roles whose operands have a bias added."""
        return tuple(member.role for member in self.group.members if self._has_bias(member))

    def weight(self, writer: Writer) -> str:
        """The packed weights `(E, C)`."""
        if self._is_computed:
            return self._computed(writer, "in_proj_weight", lambda numbers: numbers[0])
        if self.group.reuses_weight:
            return self.group.members[0].layer.weight.name
        if is_narrow(self.view, self.group):
            return write_narrow(writer, self.view, self.group)
        return writer.weight(np.concatenate([self._weight(m) for m in self.group.members], axis=1), "in_proj_weight")

    def bias(self, writer: Writer) -> str:
        """The packed bias `(C,)`, with zeros where a layer has none; "" if there is none at all."""
        if not self.biased:
            return ""
        if self._is_computed:
            return self._computed(writer, "in_proj_bias", lambda numbers: numbers[1])
        if self.group.reuses_weight:
            bias = self.group.members[0].layer.bias
            assert bias is not None
            return bias.name
        return writer.weight(np.concatenate([self.bias_of(m) for m in self.group.members]), "in_proj_bias")

    def head_bias(self, writer: Writer, member: Member, between: int) -> str:
        """One operand's bias as `(N, 1, …, H)`, with so many axes `between` heads and features."""
        shape = (member.heads.count, *[1] * between, member.heads.size)
        width = member.heads.columns.size
        start = sum(m.heads.columns.size for m in self.group.members[: self.group.members.index(member)])

        def part(numbers: Numbers) -> np.ndarray | None:
            return None if numbers[1] is None else numbers[1][start : start + width].reshape(shape)

        hint = f"{ROLES[member.role]}_bias"
        if self._is_computed:
            return self._computed(writer, hint, part)
        return writer.weight(self.bias_of(member).reshape(shape), hint)

    @cached_property
    def channel(self) -> int:
        """The channel that carries the constant."""
        return self._folded()[1]

    @property
    def _is_computed(self) -> bool:
        """Whether numbers change, and so are rounded anew."""
        factors = [factor for m in self.group.members for factor in (m.layer.alpha, m.layer.beta)]
        return self.algebra.changes(self.group) or any(factor != 1.0 for factor in factors)

    def moved_bias(self, role: int) -> np.ndarray:
        """All that an operand's layer adds to each row, by the layer's channels `(C,)`, in float64."""
        layer = next(member.layer for member in self.group.members if member.role == role)
        assert layer.bias is not None
        bias = array(self.view, layer.bias).astype(np.float64).reshape(-1) * layer.beta
        constant = self.algebra.constant(self.group)
        if constant is None:
            return bias
        weight = array(self.view, layer.weight).astype(np.float64) * layer.alpha
        return whole_bias(bias, weight.T if layer.transposed else weight, affine(self.view, constant.norm)[1])

    def _has_bias(self, member: Member) -> bool:
        """Whether a bias is added to the operand's product."""
        constant = self.algebra.constant(self.group) is not None
        return member.layer.bias is not None and not constant and not self.algebra.takes_bias(member.role)

    def _computed(self, writer: Writer, hint: str, part: Callable[[Numbers], np.ndarray | None]) -> str:
        def exact() -> np.ndarray:
            found = part(self._numbers())
            assert found is not None
            return found

        return writer.computed_weight(exact, self.dtype, hint)

    @property
    def dtype(self) -> np.dtype:
        return helper.tensor_dtype_to_np_dtype(self.view.elem_type(self.group.members[0].layer.weight))

    def _numbers(self) -> Numbers:
        """Weights `(E, C)` and bias `(C,)` in float64."""
        if self.algebra.constant(self.group) is not None:
            return self._folded()[0], None
        weights, biases = self._plain()
        return weights, biases if self.biased else None

    def _folded(self) -> tuple[np.ndarray, int]:
        constant = self.algebra.constant(self.group)
        assert constant is not None
        weights, biases = self._plain()
        gone = [self.algebra.takes_bias(m.role) for m in self.group.members for _ in range(m.heads.columns.size)]
        return fold_bias(weights, biases, *affine(self.view, constant.norm), np.asarray(gone))

    def _plain(self) -> tuple[np.ndarray, np.ndarray]:
        """The members side by side in float64: Q scaled, biases that are gone left out."""
        constant = self.algebra.constant(self.group) is not None
        weights, biases = [], []
        for member in self.group.members:
            factor = self.site.scale if member.role == QUERY and self.algebra.scale else 1.0
            weights.append(self._weight(member).astype(np.float64) * (member.layer.alpha * factor))
            kept = member.layer.bias is not None and (constant or self._has_bias(member))
            biases.append(self.bias_of(member).astype(np.float64) * (member.layer.beta * factor if kept else 0.0))
        return np.concatenate(weights, axis=1), np.concatenate(biases)

    def _weight(self, member: Member) -> np.ndarray:
        """`(E, C)`: the member's columns."""
        weight, columns = array(self.view, member.layer.weight), member.heads.columns.reshape(-1)
        return _padded(weight[columns].T if member.layer.transposed else weight[:, columns], columns)

    def bias_of(self, member: Member) -> np.ndarray:
        """`(C,)`: the member's part of its layer's bias; zeros where it has none."""
        columns, bias = member.heads.columns.reshape(-1), member.layer.bias
        if bias is None:
            return np.zeros(columns.size, self.dtype)
        return _padded(array(self.view, bias).reshape(-1)[columns], columns)


def _padded(numbers: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What was picked by columns, with zeros for those that stand for padding (−1)."""
    return np.where(columns >= 0, numbers, np.zeros((), numbers.dtype)) if (columns < 0).any() else numbers


def array(view: GraphView, weight: gs.Tensor) -> np.ndarray:
    """A weight's numbers. Raises RoundsBadlyError where they cannot be computed beforehand."""
    value = weight_array(view, weight)
    if value is None:
        raise RoundsBadlyError(f"'{weight.name}' cannot be computed beforehand")
    return value
