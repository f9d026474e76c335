"""Reshape → Transpose → Reshape, each as far as it is needed, with as few axes as can be.

Axes that stay neighbours move as one. Source: measured with TensorRT for RTX 1.7.1, fp16: of heads projected from a sequence that
comes first, `[S, B, N·H] → [S, B·N, H] → [B·N, S, H] → [B, N, S, H]` is read by the attention kernel where it lies; with B and N
moved as two axes, each of Q, K and V is copied by a kernel of its own (8 kernels for 6). Behind a split on the last axis it is
the other way round: there N has to stay an axis of its own (four Swin blocks, tokens first: 29 kernels, 41 with B·N), while axes
of rows still move as one (Nest: 42 kernels, 48).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_attn.forms.dims import product, write_reshape
from onnx_attn.graph.edit import Writer
from onnx_attn.views.arrange import Dim, reshape_target


@dataclass(frozen=True)
class Turn:
    """The targets of the Reshapes before and after a Transpose (None where there is none to write), and its permutation."""

    split: list[int] | None
    order: list[int]
    merged: list[int] | None

    @property
    def nodes(self) -> int:
        """How many nodes it takes."""
        return (self.split is not None) + self.turns + (self.merged is not None)

    @property
    def turns(self) -> bool:
        """Whether anything is transposed."""
        return self.order != sorted(self.order)


def plan_turn(
    base: Sequence[Dim], atoms: Sequence[Dim], order: Sequence[int], final: Sequence[Dim], alone: int | None = None
) -> Turn | None:
    """How a tensor with the sizes `base`, taken apart into `atoms`, which are then put into `order`, gets the sizes `final`; None
    where Reshape cannot say it. alone: an atom that stays an axis of its own."""
    return _turn(base, *_neighbours(atoms, order, alone), final) or _turn(base, atoms, order, final)


def write_turn(writer: Writer, tensor: str, turn: Turn, hint: str) -> str:
    if turn.split is not None:
        tensor = write_reshape(writer, tensor, turn.split, f"{hint}_split")
    if turn.turns:
        tensor = writer.add("Transpose", [tensor], hint, perm=turn.order)
    return write_reshape(writer, tensor, turn.merged, f"{hint}_merged") if turn.merged is not None else tensor


def _turn(base: Sequence[Dim], atoms: Sequence[Dim], order: Sequence[int], final: Sequence[Dim]) -> Turn | None:
    moved = [atoms[position] for position in order]
    first, last = reshape_target(base, atoms), reshape_target(moved, final)
    if first is None or last is None:
        return None
    return Turn(first if list(atoms) != list(base) else None, list(order), last if moved != list(final) else None)


def _neighbours(atoms: Sequence[Dim], order: Sequence[int], alone: int | None) -> tuple[list[Dim], list[int]]:
    """The same with neighbours that stay neighbours as one; nothing is moved where all of them do."""
    groups: list[list[int]] = []
    for position in order:
        if groups and position == groups[-1][-1] + 1 and alone not in (position, groups[-1][-1]):
            groups[-1].append(position)
        else:
            groups.append([position])
    if len(groups) == 1:
        return list(atoms), list(order)
    source = sorted(groups)
    return [product([atoms[each] for each in group]) for group in source], [source.index(group) for group in groups]
