"""Pack weights that are stored as narrow numbers without making them wide: numbers side by side, and so their scales.

With a scale for each channel that is exact. Weights of one scale each lie side by side only if that is the same one; it is
written once for each channel (measured with TensorRT for RTX 1.7.1: a block of one layer takes 5 kernels then, and 7 with one
scale; bytes moved rise, for a product of three roles is no longer rounded where it is written).
"""

from __future__ import annotations

import numpy as np

from onnx_attn.forms.packing import Group, Member
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.views.stored import Stored, read_stored, rests_on_narrow, stored_array

CODE = "weight-scales-differ"


def is_narrow(view: GraphView, group: Group) -> bool:
    """Whether any weight of a group is stored as narrow numbers."""
    return any(rests_on_narrow(view, member.layer.weight) for member in group.members)


def narrow_refused(view: GraphView, group: Group) -> str | None:
    """Why the narrow weights of a group cannot stand side by side; None if they can, or there are none."""
    if not group.reuses_weight and len({member.layer.rounded is None for member in group.members}) != 1:
        return "some products are rounded before their biases are added, others are not"
    if group.reuses_weight or not is_narrow(view, group):
        return None
    if any((member.layer.alpha, member.layer.beta) != (1.0, 1.0) for member in group.members):
        return "a product with quantised weights has a factor of its own"
    parts = [_part(view, member) for member in group.members]
    found = [part for part in parts if part is not None]
    if len(found) != len(parts):
        return "not all weights are stored as quantised numbers with one scale, or one for each output channel"
    if len({(part.numbers.dtype, part.zero.dtype, part.scale.dtype) for part in found}) != 1:
        return "the weights are quantised to different types"
    if len({part.scale.ndim for part in found}) != 1:
        return f"{CODE}: some weights have one scale, others one for each channel"
    if found[0].scale.ndim == 0 and len({(float(part.scale), float(part.zero)) for part in found}) != 1:
        return f"{CODE}: each weight has one scale, and not the same; quantise the weights per channel"
    return None


def write_narrow(writer: Writer, view: GraphView, group: Group) -> str:
    """The packed weights `(E, C)` of a group that is not refused: narrow numbers behind a DequantizeLinear."""
    parts = [part for member in group.members if (part := _part(view, member)) is not None]
    numbers = writer.weight(np.concatenate([part.numbers for part in parts], axis=1), "in_proj_weight_quantized")
    scale = np.concatenate([np.broadcast_to(part.scale, part.numbers.shape[1:]) for part in parts])
    zero = np.concatenate([np.broadcast_to(part.zero, part.numbers.shape[1:]) for part in parts])
    names = [numbers, writer.weight(scale, "in_proj_weight_scale"), writer.weight(zero, "in_proj_weight_zero_point")]
    made: str = writer.add("DequantizeLinear", names, "in_proj_weight", axis=1)
    return made


class _Part:
    """A member's columns `(E, C)`, with one scale and zero point (of no axis), or with one for each column."""

    def __init__(self, numbers: np.ndarray, scale: np.ndarray, zero: np.ndarray):
        self.numbers, self.scale, self.zero = numbers, scale, zero


def _part(view: GraphView, member: Member) -> _Part | None:
    stored, layer = read_stored(view, member.layer.weight), member.layer
    columns = member.heads.columns.reshape(-1)
    if stored is None or (columns < 0).any() or stored.axis not in (None, 0 if layer.transposed else 1):
        return None
    arrays = _arrays(view, stored)
    if arrays is None:
        return None
    numbers, scale, zero = arrays
    numbers = numbers[columns].T if layer.transposed else numbers[:, columns]
    if stored.axis is None:
        return _Part(numbers, scale.reshape(()), zero.reshape(-1)[:1].reshape(()))
    return _Part(numbers, scale[columns], np.broadcast_to(zero, scale.shape)[columns])


def _arrays(view: GraphView, stored: Stored) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    numbers, scale = stored_array(view, stored.numbers), stored_array(view, stored.scale)
    if numbers is None or scale is None:
        return None
    zero = np.zeros((), numbers.dtype) if stored.zero is None else stored_array(view, stored.zero)
    return (numbers, scale, zero) if zero is not None else None
