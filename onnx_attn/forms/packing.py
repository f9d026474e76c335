"""Which of Q, K and V can come from one product, and how each reads its channels.

Operands on one source form a group: all three in self-attention, K and V in cross-attention. The weights of a group stand
side by side afterwards, and one product makes what three made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import base_dims, layout_dims
from onnx_attn.forms.heads import HEAD, Heads, read_heads
from onnx_attn.forms.owning import is_own
from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.projection import from_nearer_sources
from onnx_attn.site import AttentionSite, Operand, Projected
from onnx_attn.views.arrange import Dim, reshape_target
from onnx_attn.views.linear import Linear, rows, rows_vary

ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class Member:
    """One operand of a group: its role (0 query, 1 key, 2 value), its layer, and how it reads that as heads."""

    role: int
    projected: Projected
    heads: Heads

    @property
    def layer(self) -> Linear:
        return self.projected.layer


@dataclass(frozen=True)
class Group:
    """Operands that one product on one source makes, in the order query, key, value."""

    members: tuple[Member, ...]

    @property
    def source(self) -> gs.Tensor:
        return self.members[0].layer.source

    @property
    def roles(self) -> tuple[int, ...]:
        return tuple(member.role for member in self.members)

    @property
    def reuses_weight(self) -> bool:
        """True if one layer makes the members in just the order that is wanted: its weights stay as they are."""
        layer = self.members[0].layer
        if any(member.layer.output is not layer.output for member in self.members):
            return False
        wanted = np.concatenate([member.heads.columns.reshape(-1) for member in self.members])
        stored = all(weight is None or _is_stored(weight) for weight in (layer.weight, layer.bias))
        plain = stored and not layer.transposed and (layer.alpha, layer.beta) == (1.0, 1.0)
        return plain and np.array_equal(wanted, np.arange(layer.channels))

    @property
    def reuses_output(self) -> bool:
        """True if the projection can stay as it is, so that only what reads it is written anew."""
        return self.reuses_weight and not self.members[0].layer.moves


@dataclass(frozen=True)
class Packing:
    """A packing that can be written: the operands of its groups as `(…, N, S, H)`.

    rank: with which they are made. heads: of Q. targets: by role, the shapes in which operands have other axes of size 1.
    """

    groups: tuple[Group, ...]
    rank: int
    heads: int | None
    targets: Mapping[int, list[int]] = field(default_factory=dict)

    @property
    def members(self) -> dict[int, tuple[Group, Member]]:
        return {member.role: (group, member) for group in self.groups for member in group.members}

    def apart(self) -> Packing:
        """The same with a product for each of Q, K and V."""
        return replace(self, groups=tuple(Group((member,)) for group in self.groups for member in group.members))


def _is_stored(weight: gs.Tensor) -> bool:
    """Whether a weight stays as it is in the model: as it is stored, or dequantised from that."""
    return isinstance(weight, gs.Constant) or any(node.op == "DequantizeLinear" for node in weight.inputs)


def plan_packing(view: GraphView, site: AttentionSite) -> Packing | str:
    """A packing for the site, or in words why there is none."""
    if site.projection is None or not _shared_sources(site):
        worked_on = site.projection is not None and None in site.projection.operands and site.projection.kind != "none"
        if worked_on:
            return "something other than movement stands between the projections and Q, K or V"
        return "no two of Q, K and V are linear in one source"
    if site.value.whole.factor != 1.0:
        return "V is scaled"
    if any(operand.whole.factor != operand.trace.factor for operand in site.operands):
        return "K is scaled before its heads are repeated"
    groups = [group for members in _by_source(site) for group in _read(view, members)]
    if not any(len(group.members) > 1 for group in groups):
        return "Q, K and V do not split the projection's channels into heads alike"
    found = _aligned(view, site, groups)
    if isinstance(found, str):
        return found
    for group in found.groups:
        if _share_channels(group):
            return "Q, K and V share channels of their projection"
        if not group.reuses_output and not _is_packable(view, site, group):
            return "weights-shared: the projection's weights or results are read elsewhere too"
    return found


def for_tensorrt(view: GraphView, site: AttentionSite, packing: Packing) -> Packing | str:
    """A packing as TensorRT's compiler gains by it, or in words why it gains nothing.

    Measured with TensorRT for RTX 1.7.1, half precision, on SM80, SM89 and SM120:

    - K and V of a picture that asks a text (diffusers), without biases and at one size: 9 kernels either way, and 6 % more
      bytes packed. (Where sizes vary, packing is worth while: 10 kernels, 12; and so it is with biases, which it moves away:
      CrossViT 54 kernels, 57; a decoder's layer 15 either way, and 8 % fewer bytes.)
    - Q beside packed K and V, in torch's cross-attention by itself: read tokens first, as torch has it, 6 kernels; from the input
      7, and 6 to 8 % more bytes, also where sizes vary. Behind a norm it is the other way round: the norm then moves every
      token in a kernel of its own (a decoder's layer, 4 % more bytes).
    """
    group, *others = [group for group in packing.groups if len(group.members) > 1]
    if not others and _is_bare_pair(view, group):
        return "K and V without biases alone move more bytes packed"
    return replace(packing, groups=tuple(_nearest(view, site, each) for each in packing.groups))


def _is_bare_pair(view: GraphView, group: Group) -> bool:
    """Whether a group is two layers of their own, without biases and of one size."""
    bare = not group.reuses_weight and all(member.layer.bias is None for member in group.members)
    return bare and len(group.members) == 2 and not rows_vary(view, group.members[0].layer)


def _nearest(view: GraphView, site: AttentionSite, group: Group) -> Group:
    """Q alone, of an input of the model, over the last tensor on its rows' way to the product; any other group as it is."""
    if group.roles != (0,) or not view.is_from_outside(group.source):
        return group
    (member,) = group.members
    for (candidate,) in from_nearer_sources(view, [(site.query, member.projected)]):
        heads = read_heads(candidate.layout, candidate.layer, rows(view, candidate.layer))
        if heads is not None and len(heads.order) == len(member.heads.order):
            group = Group((Member(0, candidate, heads),))
    return group


def _is_packable(view: GraphView, site: AttentionSite, group: Group) -> bool:
    """Whether nobody else reads the group's layers; who reads the site's probabilities, and so Q and K, can be served."""
    layers = [(member.role, member.layer) for member in group.members]
    if site.shared:
        return _can_serve(view, group) and is_own(view, replace(site, shared=False), layers)
    return is_own(view, site, layers)


def _shared_sources(site: AttentionSite) -> bool:
    return any(len(members) > 1 for members in _by_source(site))


def _by_source(site: AttentionSite) -> list[list[tuple[int, Operand, Projected]]]:
    """The operands that come from layers, those of one source together. A source is compared as a tensor, never by its
    dimensions: equal shapes prove nothing."""
    assert site.projection is not None
    sources: dict[int, list[tuple[int, Operand, Projected]]] = {}
    for role, (operand, projected) in enumerate(zip(site.operands, site.projection.operands, strict=True)):
        if projected is not None:
            sources.setdefault(id(projected.layer.source), []).append((role, operand, projected))
    return list(sources.values())


def _read(view: GraphView, members: Sequence[tuple[int, Operand, Projected]]) -> list[Group]:
    """The heads of operands on one source, over the farthest source that serves all of them; of three, K and V alone where
    Q's do not fit theirs."""
    for candidate in from_nearer_sources(view, [(operand, projected) for _, operand, projected in members]):
        heads = [read_heads(p.layout, p.layer, rows(view, p.layer)) for p in candidate]
        if None not in heads and len({each.order for each in heads if each}) == 1:
            roles = [role for role, _, _ in members]
            return [Group(tuple(map(Member, roles, candidate, heads)))]  # type: ignore[arg-type]
    return _read(view, members[1:]) if len(members) == 3 else []


def _aligned(view: GraphView, site: AttentionSite, groups: Sequence[Group]) -> Packing | str:
    """The groups as they fit each other and the operands that are in none."""
    members = {member.role: member for group in groups for member in group.members}
    if len({member.heads.order for member in members.values()}) != 1:
        return "Q, K and V do not split the projection's channels into heads alike"
    order = next(iter(members.values())).heads.order
    shapes = {role: (_written(view, member), _original(view, member)) for role, member in members.items()}
    if any(_without_ones(made) != _without_ones(wanted) for made, wanted in shapes.values()):
        return "Q, K and V do not split the projection's channels into heads alike"
    targets = {r: reshape_target(made, wanted) for r, (made, wanted) in shapes.items() if made != wanted}
    if None in targets.values():
        return "two sizes vary where axes of size 1 come and go"
    heads = members[0].heads.count if 0 in members else view.static(site.query.tensor, -3)
    if not all(_shared_evenly(heads, member.heads) for member in members.values()):
        return "heads of K and V are not shared evenly by those of Q"
    return Packing(tuple(groups), len(order) + 1, heads, {role: target for role, target in targets.items() if target})


def _original(view: GraphView, member: Member) -> tuple[Dim, ...]:
    """The operand's sizes `(…, N, S, H)` as the site reads them, over its source."""
    return tuple(layout_dims(member.projected.layout, base_dims(rows(view, member.layer))))


def _written(view: GraphView, member: Member) -> tuple[Dim, ...]:
    """The operand's sizes as they are written, its heads' copies included."""
    base, heads = base_dims(rows(view, member.layer)), member.heads
    leading = (heads.count * heads.copies if axis == HEAD else base[axis] for axis in heads.order)
    return (*leading, heads.size)


def _without_ones(dims: Sequence[Dim]) -> list[Dim]:
    return [dim for dim in dims if dim != 1]


def _shared_evenly(wanted: int | None, heads: Heads) -> bool:
    """Every head serves equally many of the `wanted` of Q, neighbours: as copies in the graph, or by the operator's rule."""
    if heads.copies == 1 and heads.count == wanted:
        return True
    if not wanted or wanted % heads.count or heads.order[-2] != HEAD:
        return False
    return heads.copies in (1, wanted // heads.count)


def _share_channels(group: Group) -> bool:
    layers: dict[int, list[np.ndarray]] = {}
    for member in group.members:
        layers.setdefault(id(member.layer.output), []).append(member.heads.columns.reshape(-1))
    return any(np.unique(np.concatenate(columns)).size != sum(map(len, columns)) for columns in layers.values())


def _can_serve(view: GraphView, group: Group) -> bool:
    """Whether the layers' results are parts of the packed one as they stand: each a layer of its own, its channels in their
    order, its rows as the source has them."""
    layers = [member.layer for member in group.members]
    if len(layers) < 2 or len({layer.output.name for layer in layers}) < len(layers):
        return False
    for member, layer in zip(group.members, layers, strict=True):
        plain = not layer.moves and (layer.alpha, layer.beta) == (1.0, 1.0)
        ordered = np.array_equal(member.heads.columns.reshape(-1), np.arange(layer.channels))
        shapes, source = view.shapes(layer.output), view.shapes(layer.source)
        if not plain or not ordered or shapes is None or source is None:
            return False
        if any(shape[:-1] != rows[:-1] for shape, rows in zip(shapes, source, strict=True)):
            return False
    return True
