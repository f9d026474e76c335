"""The model with the blocks around attention computed tokens first, each proved by itself.

Where rows (tokens) of a map are put into windows for attention and back, what works row by row may be done in either order:
LayerNorm, residual sums, MLP. In the order of windows every row is moved once a block and not twice, and the LayerNorm in front
is computed where its result is read. Measured with TensorRT for RTX 1.7.1, fp16, four blocks of Swin (56 × 56 × 96): 33 kernels
and 81.1 MB before, 29 and 69.0 after; at batch 8 37 and 783, 29 and 551. The entries of a batch are windows too: the compiler
puts their tokens first, in a kernel of its own in each layer. ViT-B/16 at batch 8: 101 kernels and 1101 MB before, 89 and 955
after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

from onnx_attn.graph.compose import INITIALIZERS_ALONE_IR, compose
from onnx_attn.graph.edit import Names, SiteEdit
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.view import GraphView
from onnx_attn.progress import steps
from onnx_attn.prove.cut import Cutter
from onnx_attn.prove.piece import prove_piece
from onnx_attn.row_order.block import Block, read_block
from onnx_attn.row_order.functions import Movements
from onnx_attn.row_order.region import read_region
from onnx_attn.row_order.trips import Trip, without_round_trips
from onnx_attn.row_order.way import landings
from onnx_attn.row_order.write import CannotSay, write_block
from onnx_attn.site import AttentionSite, Candidate


@dataclass(frozen=True)
class Ordered:
    """What became of it: the sites, by the values that they make, whose blocks are computed so now; and why others are
    not that could be."""

    sites: frozenset[str] = frozenset()
    left: dict[str, str] = field(default_factory=dict)


def tokens_first(
    loaded: Loaded,
    view: GraphView,
    candidates: Sequence[Candidate],
    wanted: Collection[str],
    form_of: Callable[[AttentionSite], str | None],
    verify: bool,
) -> Ordered:
    """Rewrite the blocks around the sites in `wanted` (by the values that they make); the model of `loaded` is changed.

    form_of: the form that a site will have, None if it is left alone; partition and reverse become calls of functions as it
        does. verify: each block is run before and after.
    """
    blocks = _blocks(view, candidates, wanted)
    if not blocks:
        return Ordered()
    names, left, trips = Names(loaded.proto), dict[str, str](), list[Trip]()
    taken = {node for block in blocks for node in block.nodes}
    cutter, edits = Cutter(view), dict[str, SiteEdit]()
    for block in steps(blocks, lambda block: block.site.name):
        key, form = block.site.output.name, form_of(block.site)
        if form is None:
            continue
        if form == "function" and loaded.proto.ir_version < INITIALIZERS_ALONE_IR:
            left[key] = (
                "functions raise the IR, and weights that are listed among the inputs would be inputs from then on"
            )
            continue
        movements = Movements(names, view.opset if form == "function" else 0, trips)
        try:
            edit = write_block(view, names, block, read_region(view, block, taken - block.nodes), movements)
        except CannotSay as reason:
            left[key] = str(reason)
            continue
        failure = prove_piece(view, cutter, edit, block.site) if verify else None
        if failure is None:
            edits[key] = edit
        else:
            left[key] = failure
            names.unclaim(edit.nodes)
    compose(loaded.proto, list(without_round_trips(edits, trips).values()))
    return Ordered(frozenset(edits), left)


def _blocks(view: GraphView, candidates: Sequence[Candidate], wanted: Collection[str]) -> list[Block]:
    sites = [each for each in candidates if isinstance(each, AttentionSite) and each.output.name in wanted]
    ends = cache(partial(landings, view))  # Of the whole graph: few sites come so far that they are asked for.
    found = [read_block(view, site, ends) for site in sites]
    return [block for block in found if block is not None]
