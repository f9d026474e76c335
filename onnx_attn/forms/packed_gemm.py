"""Write the in-projection of a group as one product on packed weights, in the layout that lands best.

The layout is a compiler fact (TensorRT for RTX 1.7.1, fp16, found by `fuse --search` over the reference models). Without biases
a split on the last axis lets the MHA kernel read Q, K and V where the projection wrote them (ViT: 7 kernels a layer, and 9 %
fewer bytes than a split on the axis of heads); for K and V alone, and for padded heads, a leading axis does (TNT: 48 kernels,
52). With a bias the split on the head axis after `reshape [B, S, 3·N, H]` and one transpose costs least (8 kernels a layer, 10
as exported), and so it does for heads whose size is no multiple of 8 (DaViT: 65 kernels, 69), and where sizes vary (ViT-B/16,
batch 1 to 8: 102 kernels, 150 split on the last axis). Where steps of quantisation follow, the head axis is better too
(nn.MultiheadAttention without biases, quantised: 9 kernels, 12); products that are rounded before their biases are added are
split on the last axis first (two blocks: 25 kernels, 31).
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_attn.algebra.choose import is_quantised
from onnx_attn.forms.body import write_quantizer
from onnx_attn.forms.dims import base_dims, write_reshape
from onnx_attn.forms.heads import HEAD
from onnx_attn.forms.in_proj import InProj
from onnx_attn.forms.packing import ROLES, Group, Member, Packing
from onnx_attn.forms.placement import Placement, Split
from onnx_attn.forms.quantizers import quantizer_names, write_rounded
from onnx_attn.forms.turn import plan_turn, write_turn
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.views.arrange import Dim
from onnx_attn.views.linear import rows, rows_vary

ALIGNED = 8
"""Elements: heads of a multiple of so many are read where they lie."""


def write_packed(
    writer: Writer,
    view: GraphView,
    packing: Packing,
    group: Group,
    in_proj: InProj,
    source: str,
    placement: Placement,
    projected: str = "",
) -> dict[int, str]:
    """Append the group's projection of `source` (unless it is `projected` already) and its split; returns its operands
    `(…, N, S, H)` by role."""
    finished = _is_rounded(group) and not in_proj.stands
    apart = bool(in_proj.biased) and not in_proj.stands and not projected and not finished
    late = placement.bias == "heads" and apart
    projected = projected or write_projection(writer, group, in_proj, source, bias=not late)
    order, members = group.members[0].heads.order, group.members
    base = tuple(base_dims(rows(view, members[0].layer))[:-1])
    closely = (bool(in_proj.biased) and not late) or is_quantised(view, in_proj.site, packing)
    heads, split = _Heads(members, order, base), _SPLITS[_split_at(view, group, closely, placement.split)]
    parts = _split_last(writer, heads, projected, in_proj) if finished else split(writer, heads, projected)
    found: dict[int, str] = {}
    for member, part in zip(members, parts, strict=True):
        role = member.role
        if late and role in in_proj.biased:
            between = packing.rank - 2 - order.index(HEAD)
            part = writer.add("Add", [part, in_proj.head_bias(writer, member, between)], ROLES[role])
        part = write_rounded(writer, part, in_proj.site.operands[role], ROLES[role], in_proj.dtype)
        target = packing.targets.get(role)
        found[role] = write_reshape(writer, part, target, ROLES[role]) if target else part
    return found


def _split_at(view: GraphView, group: Group, closely: bool, asked: Split) -> Split:
    """Where to split: as asked, as far as the members' heads are alike. closely: something follows the product directly."""
    sizes = {member.heads.size for member in group.members}
    counts = {member.heads.count for member in group.members}
    if asked == "auto":
        varies = rows_vary(view, group.members[0].layer)
        odd = any(size % ALIGNED for size in sizes)
        padded = any((member.heads.columns < 0).any() for member in group.members)
        asked = "heads" if closely or varies or odd else "leading" if len(group.members) == 2 or padded else "last"
    if len(sizes) > 1 or (asked == "leading" and len(counts) > 1):
        return "last"
    return asked


@dataclass(frozen=True)
class _Heads:
    """The members' heads. order: the source's axes as the operands have them. base: the sizes of these axes."""

    members: tuple[Member, ...]
    order: tuple[int, ...]
    base: tuple[Dim, ...]

    @property
    def counts(self) -> list[int]:
        return [member.heads.count for member in self.members]

    @property
    def size(self) -> int:
        return self.members[0].heads.size

    @property
    def hint(self) -> str:
        return "_".join(ROLES[member.role] for member in self.members)

    @property
    def leading(self) -> int:
        return len(self.base)

    def turned(self, writer: Writer, tensor: str, count: int, size: int, hint: str, alone: bool = False) -> str:
        """A projection `(…, S, N·H)` as `(…, N, S, H)`. alone: the heads stay an axis of their own."""
        atoms = [*self.base, count, size]
        perm = [self.leading if axis == HEAD else axis for axis in self.order] + [self.leading + 1]
        turn = plan_turn(
            [*self.base, count * size],
            atoms,
            perm,
            [atoms[position] for position in perm],
            self.leading if alone else None,
        )
        assert turn is not None  # Each axis by itself can always be said.
        return write_turn(writer, tensor, turn, hint)


def _split_last(writer: Writer, heads: _Heads, projected: str, in_proj: InProj | None = None) -> list[str]:
    """in_proj: where each part of the product has still to be rounded, and its bias added."""
    sizes = [member.heads.size for member in heads.members]
    widths = [count * size for count, size in zip(heads.counts, sizes, strict=True)]
    parts = _split(writer, projected, widths, -1)
    if in_proj is not None:
        parts = [_finished(writer, in_proj, *part) for part in zip(heads.members, parts, strict=True)]
    hints = [ROLES[member.role] for member in heads.members]
    return [heads.turned(writer, *part, alone=True) for part in zip(parts, heads.counts, sizes, hints, strict=True)]


def _split_heads(writer: Writer, heads: _Heads, projected: str) -> list[str]:
    packed = heads.turned(writer, projected, sum(heads.counts), heads.size, heads.hint)
    return _split(writer, packed, heads.counts, heads.order.index(HEAD))


def _split_leading(writer: Writer, heads: _Heads, projected: str) -> list[str]:
    many, count = len(heads.members), heads.counts[0]
    tensor = write_reshape(writer, projected, [0] * heads.leading + [many, count, heads.size], f"{heads.hint}_heads")
    inner = [heads.leading + 1 if axis == HEAD else axis for axis in heads.order]
    perm = [heads.leading, *inner, heads.leading + 2]
    tensor = writer.add("Transpose", [tensor], heads.hint, perm=perm)
    if many == 1:
        return [writer.add("Squeeze", [tensor, writer.shape(0)], heads.hint)]
    parts = _split(writer, tensor, [1] * many, 0)
    return [
        writer.add("Squeeze", [part, writer.shape(0)], ROLES[member.role])
        for part, member in zip(parts, heads.members, strict=True)
    ]


_SPLITS = {"last": _split_last, "heads": _split_heads, "leading": _split_leading}


def _split(writer: Writer, tensor: str, sizes: list[int], axis: int) -> list[str]:
    if len(sizes) == 1:
        return [tensor]
    return writer.add("Split", [tensor, writer.shape(*sizes)], "in_proj_split", outputs=len(sizes), axis=axis)


def _is_rounded(group: Group) -> bool:
    """Whether products are rounded before their biases are added: each by itself, behind the split."""
    return any(member.layer.rounded for member in group.members)


def _finished(writer: Writer, in_proj: InProj, member: Member, part: str) -> str:
    """An operand's part `(…, C)` of the product, rounded as its layer has it, with its bias."""
    assert member.layer.rounded is not None
    role = ROLES[member.role]
    part = write_quantizer(writer, part, quantizer_names(writer, member.layer.rounded), f"{role}_product")
    name: str = writer.add("Add", [part, writer.weight(in_proj.bias_of(member), f"{role}_bias")], role)
    return name


def write_projection(writer: Writer, group: Group, in_proj: InProj, source: str, bias: bool) -> str:
    """`source·W + b` as MatMul and Add: the compiler packs Gemm only by turning it back into these. bias: it is added here."""
    if in_proj.stands:
        return group.members[0].layer.output.name
    weight, added = in_proj.weight(writer), in_proj.bias(writer) if bias and not _is_rounded(group) else ""
    if not added:
        return writer.add("MatMul", [source, weight], "in_proj")
    return writer.add("Add", [writer.add("MatMul", [source, weight], "in_proj_product"), added], "in_proj")
