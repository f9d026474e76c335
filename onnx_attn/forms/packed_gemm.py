"""Write the in-projection of a group as one product on packed weights, in the layout that lands best.

The layout is a compiler fact (TensorRT for RTX 1.7.1, ViT block): without biases, a split on the last axis lets the MHA
kernel read Q, K and V where the projection wrote them (7 kernels a layer); with a bias, the split on the head axis after
`reshape [B, S, 3·N, H]` and one transpose costs least (8 kernels, 10 as exported). Where sizes vary, that is the better one
without biases too (ViT-B/16, batch 1 to 8: 102 kernels, 150 split on the last axis), and for K and V alone (cross-attention:
7 kernels, 8), and where steps of quantisation follow (nn.MultiheadAttention without biases, quantised: 9 kernels, 12). Products
that are rounded before their biases are added are split on the last axis first (two blocks: 25 kernels, 31).
"""

from __future__ import annotations

from onnx_attn.algebra.choose import is_quantised
from onnx_attn.forms.body import write_quantizer
from onnx_attn.forms.dims import write_reshape
from onnx_attn.forms.heads import HEAD
from onnx_attn.forms.in_proj import InProj
from onnx_attn.forms.packing import ROLES, Group, Member, Packing
from onnx_attn.forms.quantizers import quantizer_names, write_rounded
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.views.linear import rows


def write_packed(
    writer: Writer, view: GraphView, packing: Packing, group: Group, in_proj: InProj, source: str
) -> dict[int, str]:
    """Append the group's projection of `source` and its split; returns its operands `(…, N, S, H)` by role."""
    projected = _write_projection(writer, group, in_proj, source)
    counts = [member.heads.count for member in group.members]
    sizes = [member.heads.size for member in group.members]
    leading = packing.rank - 2
    # Axes of the reshaped projection are (source axes…, N, H); the operands want `order` and then H.
    order = group.members[0].heads.order
    perm = [leading if axis == HEAD else axis for axis in order] + [leading + 1]

    def turned(tensor: str, count: int, size: int, hint: str) -> str:
        tensor = write_reshape(writer, tensor, [0] * leading + [count, size], f"{hint}_heads")
        return tensor if perm == sorted(perm) else writer.add("Transpose", [tensor], hint, perm=perm)

    hints = [ROLES[role] for role in group.roles]
    varies = len(set(rows(view, group.members[0].layer))) > 1
    finished = _is_rounded(group) and not in_proj.stands
    by_heads = bool(in_proj.biased) or varies or len(sizes) == 2 or is_quantised(view, in_proj.site, packing)
    if by_heads and len(set(sizes)) == 1 and not finished:
        packed = turned(projected, sum(counts), sizes[0], "_".join(hints))
        parts = _split(writer, packed, counts, order.index(HEAD))
    else:
        parts = _split(writer, projected, [n * h for n, h in zip(counts, sizes, strict=True)], -1)
        if finished:
            parts = [_finished(writer, in_proj, *part) for part in zip(group.members, parts, strict=True)]
        parts = [turned(*part) for part in zip(parts, counts, sizes, hints, strict=True)]
    parts = [
        write_rounded(writer, part, in_proj.site.operands[role], ROLES[role], in_proj.dtype)
        for role, part in zip(group.roles, parts, strict=True)
    ]
    return {
        role: write_reshape(writer, part, packing.targets[role], ROLES[role]) if role in packing.targets else part
        for role, part in zip(group.roles, parts, strict=True)
    }


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


def _write_projection(writer: Writer, group: Group, in_proj: InProj, source: str) -> str:
    """`source·W + b` as MatMul and Add: the compiler packs Gemm only by turning it back into these."""
    if in_proj.stands:
        return group.members[0].layer.output.name
    weight, bias = in_proj.weight(writer), "" if _is_rounded(group) else in_proj.bias(writer)
    if not bias:
        return writer.add("MatMul", [source, weight], "in_proj")
    return writer.add("Add", [writer.add("MatMul", [source, weight], "in_proj_product"), bias], "in_proj")
