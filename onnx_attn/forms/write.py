"""One decision of the plan becomes one record in the journal of edits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from onnx import helper

from onnx_attn.algebra.choose import KEY, VALUE, is_quantised
from onnx_attn.forms.adaptation import (
    adapted_site,
    cast_operands,
    changes_result,
    pad_operands,
    padded_packing,
    restore_result,
)
from onnx_attn.forms.attention import rests_on_constant, write_attention
from onnx_attn.forms.beside import write_beside
from onnx_attn.forms.contrib import packs_into_attention, write_multi_head_attention, write_packed_attention
from onnx_attn.forms.folded import write_folds
from onnx_attn.forms.function import write_function_call
from onnx_attn.forms.in_proj import InProj
from onnx_attn.forms.moves import write_moves
from onnx_attn.forms.operands import shares_heads, write_operands
from onnx_attn.forms.packed_gemm import write_packed
from onnx_attn.forms.packing import ROLES, Group, Packing
from onnx_attn.forms.placement import SPLIT
from onnx_attn.forms.primitives import write_primitives
from onnx_attn.forms.quantizers import added_scales
from onnx_attn.forms.rebalanced import write_constant_channel, write_out_projection
from onnx_attn.forms.repeat import own_heads, repeat_heads
from onnx_attn.forms.served import serves, write_served
from onnx_attn.forms.shapes import redirect_shapes
from onnx_attn.forms.way import PLAIN, Way
from onnx_attn.graph.edit import Names, RoundedScale, SiteEdit, Splice, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, ScoreTerm


def write_site(
    view: GraphView,
    names: Names,
    site: AttentionSite,
    way: Way,
    reserved: Set[str] = frozenset(),
) -> SiteEdit:
    """Write `site` in one way. reserved: the values that are made anew by this and the other sites.

    Raises RoundsBadlyError where what the algebra makes of the weights does not fit their type.
    """
    writer, packing, algebra = Writer(names, site.name, gives_up=not site.shared), way.packing, way.algebra
    whole = _packed_by_operator(view, site, way.form, packing) if not site.shared else None
    way = replace(way, packing=padded_packing(view, site, packing, way.adaptation) if packing is not None else None)
    begin = _write_in_projections(writer, view, site, way, whole)
    result = site.output.name if algebra.value_bias is None else names.value(f"{site.name}/attention_without_bias")
    attention = names.value(f"{site.name}/attention_heads") if site.result else result
    if whole is not None:
        body = _Body()
        write_packed_attention(writer, view, site, whole, algebra, 1.0 if algebra.scale else site.scale, attention)
    else:
        body = _write_body(writer, view, site, way, begin.operands, attention)
    if site.result:
        write_moves(writer, attention, site.result, "attention", result)
    splices = [*begin.splices, _splice(view, site, writer, (result,) if algebra.value_bias is None else ())]
    if packing is not None and algebra.value_bias is not None:
        moved = partial(InProj(view, site, packing.members[VALUE][0], algebra).moved_bias, VALUE)
        splices += write_out_projection(writer, view, algebra.value_bias, moved, {site.output.name: result})
    folds = write_folds(view, writer, site, reserved)
    splices = [*(redirect_shapes(view, writer, site, packing, begin.sources) if packing is not None else ()), *splices]
    return SiteEdit(
        site.name,
        (*folds, *splices),
        tuple(writer.initializers.values()),
        body.functions,
        begin.starts,
        way.packed,
        algebra.names,
        writer.exact,
        body.scale,
        tuple(name for fold in folds for name in fold.outputs),
        site.rests_on_mask or (way.form == "attention" and rests_on_constant(view, site)),
        way.adaptation.elem_type,
        added_scales(writer, adapted_site(view, site, way.adaptation, way.form)),
    )


def _splice(view: GraphView, site: AttentionSite, writer: Writer, outputs: tuple[str, ...]) -> Splice:
    producer = view.producer(site.output)
    assert producer is not None
    return Splice(view.position(producer), tuple(writer.nodes), outputs)


def _packed_by_operator(view: GraphView, site: AttentionSite, form: str, packing: Packing | None) -> Group | None:
    """The group that com.microsoft's Attention projects itself; none where steps of quantisation stand in between."""
    if form != "contrib" or packing is None or is_quantised(view, site, packing):
        return None
    return packs_into_attention(view, packing)


@dataclass(frozen=True)
class _Body:
    """The functions that a site calls, and its scale where that had to be rounded."""

    functions: tuple[onnx.FunctionProto, ...] = ()
    scale: RoundedScale | None = None


def _write_body(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    way: Way,
    projected: Mapping[int, str],
    output: str,
) -> _Body:
    """The attention itself, on the operands that are projected already (by role) and the others."""
    form, packing, adaptation = way.form, way.packing, way.adaptation
    rank = view.rank(site.query.tensor) or 0
    shared = form == "attention" and rank == 4 and shares_heads(view, site, packing)
    operands, scale = write_operands(writer, view, site, form, projected, shared, split=way.placement.scale == "split")
    scale = 1.0 if way.algebra.scale else scale
    operands = cast_operands(writer, view, site, adaptation, operands)
    if not shared:
        operands = _with_all_heads(writer, view, site, way, operands, rank)
    ready = [role for role in projected if packing and packing.members[role][1].heads.size == adaptation.head_dim]
    operands = pad_operands(writer, site, adaptation, operands, rank, ready)
    restored = changes_result(view, site, adaptation)
    result = writer.names.value(f"{site.name}/attention_adapted") if restored else output
    adapted = adapted_site(view, site, adaptation, form)
    body = _write_form(writer, view, adapted, way, operands, scale, rank, result)
    if restored:
        restore_result(writer, view, site, adaptation, result, output)
    return body


def _write_form(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    way: Way,
    operands: tuple[str, str, str],
    scale: float,
    rank: int,
    output: str,
) -> _Body:
    behind = way.placement.scale == "scores"
    if way.placement.scale == "split" and way.form in PLAIN:
        root = math.sqrt(SPLIT)
        dtype = helper.tensor_dtype_to_np_dtype(way.adaptation.elem_type or view.elem_type(site.key.tensor))
        key = writer.add("Mul", [operands[1], writer.constant(np.asarray(1 / root, dtype), "half")], "key_scaled")
        operands, scale = (operands[0], key, operands[2]), scale / root
        site = replace(site, terms=(ScoreTerm("scale", fill=SPLIT), *site.terms))
    elem_type = way.adaptation.elem_type or view.elem_type(site.query.tensor)
    with np.errstate(over="ignore"):
        stored = float(np.asarray(scale, helper.tensor_dtype_to_np_dtype(elem_type)))
    rounded = np.float32(stored) != np.float32(scale)  # By more than the attributes of any node do.
    if way.form == "function":
        function = write_function_call(writer, site, operands, stored, rank, output, view, behind)
        return _Body((function,), RoundedScale(scale) if rounded else None)
    if way.form == "primitives":
        constant = write_primitives(writer, view, site, operands, stored, rank, output, elem_type, behind)
        return _Body(scale=RoundedScale(scale, constant) if rounded else None)
    if way.form == "attention":
        write_attention(writer, view, site, operands, scale, rank, output, elem_type if way.additive else 0)
    else:
        write_multi_head_attention(writer, view, site, operands, scale, output)
    return _Body()


@dataclass(frozen=True)
class _Begin:
    """The packed projections of a site: their operands and what each is projected from, by role; and what had to be written
    before them. starts: the values that the site's edit begins with."""

    operands: dict[int, str]
    sources: dict[int, str]
    splices: list[Splice]
    starts: tuple[str, ...]


def _write_in_projections(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    way: Way,
    left: Group | None = None,
) -> _Begin:
    """`left`: the group that an operator projects itself."""
    begin, packing, algebra, placement = _Begin({}, {}, [], ()), way.packing, way.algebra, way.placement
    if way.adaptation.elem_type and placement.split == "auto":
        # What is cast is copied in any case: then once for Q, K and V together, and not once each (ViT: 23 kernels, 27).
        placement = replace(placement, split="heads")
    starts: list[str] = []
    if packing is None:
        made = way.beside.outputs if way.beside is not None else ()
        starts = [name for operand in site.operands if (name := operand.whole.source.name) not in made]
        if way.beside is not None:
            begin.splices.append(write_beside(writer, view, way.beside))
            starts.append(way.beside.source.name)
        return replace(begin, starts=tuple(starts))
    for group in packing.groups:
        renamed: dict[str, str] = {}
        in_proj, constant = InProj(view, site, group, algebra), algebra.constant(group)
        if constant is not None:
            begin.splices.extend(write_constant_channel(writer, view, constant, in_proj.channel, renamed))
        source = renamed.get(group.source.name, group.source.name)
        projected = ""
        if site.shared and not group.reuses_output:
            splice, projected = write_served(writer, view, group, in_proj)
            begin.splices.append(splice)
        if group is not left:
            # Where somebody else takes it apart on its last axis too, so do we (forms/served.py).
            also = placement.split == "auto" and (bool(projected) or serves(view, site, group))
            place = replace(placement, split="last") if also else placement
            packed = write_packed(writer, view, packing, group, in_proj, source, place, projected)
            begin.operands.update(packed)
        begin.sources.update(dict.fromkeys(group.roles, source))
        starts.append(group.source.name if constant is None else constant.norm.inputs[0].name)
    starts += [operand.whole.source.name for role, operand in enumerate(site.operands) if role not in packing.members]
    return replace(begin, starts=tuple(dict.fromkeys(starts)))


def _with_all_heads(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    way: Way,
    operands: tuple[str, str, str],
    rank: int,
) -> tuple[str, str, str]:
    """K and V with a head for each of Q's, or with one for all of them where that is left to MatMul."""
    packing, least = way.packing, 1 if way.broadcast and way.form in PLAIN else 0
    members = packing.members if packing is not None else {}
    names, sizes = list(operands), [site.head_dim or 0, site.head_dim or 0, site.value_dim or 0]
    for role, (_, member) in members.items():
        sizes[role] = member.heads.size
    heads = packing.heads if packing is not None else view.static(site.query.tensor, -3) if rank > 2 else 1
    for role in (KEY, VALUE):
        count = members[role][1].heads.count if role in members else own_heads(view, site, site.operands[role].tensor)
        if count is not None and heads is not None and count > least:
            names[role] = repeat_heads(writer, names[role], rank, heads, count, sizes[role], ROLES[role])
    return names[0], names[1], names[2]
