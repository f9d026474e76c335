"""The numbers of a group's projection: weights side by side, with what exact algebra makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_attn.algebra.choose import QUERY, Algebra
from onnx_attn.algebra.constant_channel import affine, fold_bias, redundant_channel, whole_bias
from onnx_attn.forms.narrow_weights import is_narrow, write_narrow
from onnx_attn.forms.packing import ROLES, Group, Member
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.rounding import RoundsBadlyError, row_slices
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite
from onnx_attn.views.linear import weight_array

Piece = tuple[tuple[slice, slice], np.ndarray]
"""Numbers, and the rows and columns that they are."""

ByRows = Callable[[slice], np.ndarray]
"""Some rows of a member's weight `(E, C)`."""


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
            return writer.computed_pieces(self._shape, self._numbers, self.dtype, "in_proj_weight")
        if self.group.reuses_weight:
            return self.group.members[0].layer.weight.name
        if is_narrow(self.view, self.group):
            return write_narrow(writer, self.view, self.group)
        return writer.weight(self._side_by_side(), "in_proj_weight")

    def bias(self, writer: Writer) -> str:
        """The packed bias `(C,)`, with zeros where a layer has none; "" if there is none at all."""
        if not self.biased:
            return ""
        if self._is_computed:
            return writer.computed_weight(self._biases, self.dtype, "in_proj_bias")
        if self.group.reuses_weight:
            bias = self.group.members[0].layer.bias
            assert bias is not None
            return bias.name
        return writer.weight(np.concatenate([self.bias_of(m) for m in self.group.members]), "in_proj_bias")

    def head_bias(self, writer: Writer, member: Member, between: int) -> str:
        """One operand's bias as `(N, 1, …, H)`, with so many axes `between` heads and features."""
        shape = (member.heads.count, *[1] * between, member.heads.size)
        columns = dict(zip(self.group.roles, self._columns, strict=True))[member.role]
        hint = f"{ROLES[member.role]}_bias"
        if self._is_computed:
            return writer.computed_weight(lambda: self._biases()[columns].reshape(shape), self.dtype, hint)
        return writer.weight(self.bias_of(member).reshape(shape), hint)

    @cached_property
    def channel(self) -> int:
        """The channel that carries the constant."""
        constant = self.algebra.constant(self.group)
        assert constant is not None
        squares = np.zeros(self._shape[0])
        for (rows, _), numbers in self._pieces(self._scaled):
            squares[rows] += (numbers**2).sum(axis=1)
        return redundant_channel(affine(self.view, constant.norm)[0], np.sqrt(squares))

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
        weight, beta = array(self.view, layer.weight), affine(self.view, constant.norm)[1]
        return whole_bias(bias, weight.T if layer.transposed else weight, beta * layer.alpha)

    def _has_bias(self, member: Member) -> bool:
        """Whether a bias is added to the operand's product."""
        constant = self.algebra.constant(self.group) is not None
        return member.layer.bias is not None and not constant and not self.algebra.takes_bias(member.role)

    @property
    def dtype(self) -> np.dtype:
        return dtype_of(self.view, self.group.members[0].layer.weight)

    @property
    def _columns(self) -> list[slice]:
        """Where the members' channels lie."""
        ends = np.cumsum([member.heads.columns.size for member in self.group.members]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]

    @property
    def _shape(self) -> tuple[int, int]:
        return self.group.members[0].layer.width, self._columns[-1].stop

    def _pieces(self, made: Callable[[ByRows, slice], Iterator[Piece]]) -> Iterator[Piece]:
        """What is made of the members' weights, one after the other. Only one layer's weights are held at a time: nobody but the
        iterator in hand knows them."""
        for member, columns in zip(self.group.members, self._columns, strict=True):
            yield from made(partial(_columns_of, member, array(self.view, member.layer.weight)), columns)

    def _stored(self, weight: ByRows, columns: slice) -> Iterator[Piece]:
        for rows in row_slices(self._shape[0], columns.stop - columns.start):
            yield (rows, columns), weight(rows)

    def _scaled(self, weight: ByRows, columns: slice) -> Iterator[Piece]:
        for place, numbers in self._stored(weight, columns):
            yield place, numbers.astype(np.float64) * self._factors[columns]

    def _scaled_or_stored(self, weight: ByRows, columns: slice) -> Iterator[Piece]:
        return (self._scaled if (self._factors[columns] != 1.0).any() else self._stored)(weight, columns)

    @cached_property
    def _factors(self) -> np.ndarray:
        """`(C,)`: what each channel's weights are multiplied by."""
        return self._of_channels(lambda member: member.layer.alpha * self._factor(member))

    def _folded(self, weight: ByRows, columns: slice) -> Iterator[Piece]:
        constant = self.algebra.constant(self.group)
        assert constant is not None
        norm, bias, gone = affine(self.view, constant.norm), self._biases()[columns], self._gone[columns]
        row = next(self._scaled(lambda _: weight(slice(self.channel, self.channel + 1)), columns))[1]
        pieces = ((rows, numbers) for (rows, _), numbers in self._scaled(weight, columns))
        for rows, numbers in fold_bias(pieces, row, bias, *norm, gone, self.channel):
            yield (rows, columns), numbers

    def _side_by_side(self) -> np.ndarray:
        """`(E, C)`: the members' columns as they are."""
        packed = np.empty(self._shape, self.dtype)
        for place, numbers in self._pieces(self._stored):
            packed[place] = numbers
        return packed

    def _numbers(self) -> Iterator[Piece]:
        """Weights `(E, C)`: Q scaled, and with the biases in them where a channel is constant. In float64 but for those that stay
        as they are stored."""
        return self._pieces(self._scaled_or_stored if self.algebra.constant(self.group) is None else self._folded)

    def _biases(self) -> np.ndarray:
        """`(C,)` in float64: Q's scaled, zeros for those that are gone."""
        constant = self.algebra.constant(self.group) is not None

        def factor(member: Member) -> float:
            kept = member.layer.bias is not None and (constant or self._has_bias(member))
            return member.layer.beta * self._factor(member) if kept else 0.0

        biases = [self.bias_of(member).astype(np.float64) for member in self.group.members]
        return np.concatenate(biases) * self._of_channels(factor)

    @property
    def _gone(self) -> np.ndarray:
        """`(C,)`: the channels whose biases are dropped or moved by other identities."""
        return self._of_channels(lambda member: self.algebra.takes_bias(member.role))

    def _factor(self, member: Member) -> float:
        return self.site.scale if member.role == QUERY and self.algebra.scale else 1.0

    def _of_channels(self, number: Callable[[Member], float]) -> np.ndarray:
        """`(C,)`: each member's number at its channels."""
        members = self.group.members
        return np.repeat([number(member) for member in members], [member.heads.columns.size for member in members])

    def bias_of(self, member: Member) -> np.ndarray:
        """`(C,)`: the member's part of its layer's bias; zeros where it has none."""
        columns, bias = member.heads.columns.reshape(-1), member.layer.bias
        if bias is None:
            return np.zeros(columns.size, self.dtype)
        return _padded(array(self.view, bias).reshape(-1)[columns], columns)


def _columns_of(member: Member, weight: np.ndarray, rows: slice) -> np.ndarray:
    """Some rows of the member's columns `(E, C)` of its layer's weight."""
    columns = member.heads.columns.reshape(-1)
    return _padded(weight[:, rows][columns].T if member.layer.transposed else weight[rows][:, columns], columns)


def _padded(numbers: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What was picked by columns, with zeros for those that stand for padding (−1)."""
    return np.where(columns >= 0, numbers, np.zeros((), numbers.dtype)) if (columns < 0).any() else numbers


def dtype_of(view: GraphView, weight: gs.Tensor) -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(view.elem_type(weight))


def array(view: GraphView, weight: gs.Tensor) -> np.ndarray:
    """A weight's numbers. Raises RoundsBadlyError where they cannot be computed beforehand."""
    value = weight_array(view, weight)
    if value is None:
        raise RoundsBadlyError(f"'{weight.name}' cannot be computed beforehand")
    return value
