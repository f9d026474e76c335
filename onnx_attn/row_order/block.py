"""A block of a transformer whose attention looks at windows of a map: where its rows leave the map and where they come back.

    x ─ LayerNorm ─ roll, partition ─ in-projection … attention … out-projection ─ reverse, roll ─ (LayerNorm) ─ + x …

The LayerNorm in front may be missing (Swin V2 has it behind).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.owning import is_own, reads_shape
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.recognize.projection import products
from onnx_attn.row_order.partition import Partition, read_partition, read_roll
from onnx_attn.row_order.token_wise import keeps_rows, row_operands
from onnx_attn.row_order.way import Asked, Landings, all_through, below, nodes_of, only_read, rows_of
from onnx_attn.site import AttentionSite
from onnx_attn.views.movement import moves
from onnx_attn.views.trace import Trace, trace

MOST_STEPS = 16
"""How many nodes may stand between P·V and its out-projection, or behind that in front of the movement back."""
LAYERS = ("MatMul", "Gemm")
"""The products with weights in front of attention and behind it."""


@dataclass(frozen=True)
class Block:
    """One site's way out of the map and back.

    entry: x, in the map's order. norm: the LayerNorm between it and the movement, if there is one.
    windows: what the in-projection's products read, `(windows, tokens, C)` or the same rows in other axes; tokens first if
        `enters_first`.
    merged: what the out-projection reads, tokens first if `leaves_first`.
    tail: the token-wise nodes from there on; the last one's result is moved back.
    landed: that result in the map's order.
    moved: the nodes in between that only move rows.
    shapes: readers of nothing but the shape of values that go, each with the value.
    """

    site: AttentionSite
    partition: Partition
    entry: gs.Tensor
    norm: gs.Node | None
    windows: tuple[gs.Tensor, ...]
    merged: gs.Tensor
    tail: tuple[gs.Node, ...]
    landed: gs.Tensor
    moved: tuple[gs.Node, ...]
    shapes: tuple[tuple[gs.Node, gs.Tensor], ...]
    enters_first: bool = False
    leaves_first: bool = False

    @property
    def nodes(self) -> frozenset[int]:
        """The ids of the nodes that are this block's own."""
        return frozenset(id(node) for node in (self.norm, *self.tail, *self.moved) if node is not None)


def read_block(view: GraphView, site: AttentionSite, ends: Callable[[], Landings]) -> Block | None:
    """The block around a site; None where its rows are not moved, or not read back, or somebody else reads what would go."""
    out = _out(view, site)
    into = _into(view, site) if out is not None else None
    beginnings = list(_beginnings(view, site, into)) if into is not None else []
    if out is None or into is None or not beginnings:
        return None
    merged, tail, shapes = out
    result = tail[-1].outputs[0]
    back = ends().get(result.name, ())
    if len(back) > 1:
        return None
    landed, home = back[0] if back else (result, Trace(result, 1.0, ()))
    leaves_first = _comes_back(view, home, into.partition, into.rows)
    left = only_read(view, home, tail[-1:], [], (landed,))
    if leaves_first is None or left is None:
        return None
    for first, norm in beginnings:
        asked = _asked(view, into, first)
        if asked is not None:
            entry = into.ahead.source if into.ahead is not None else (first.inputs[0] if first else into.way.source)
            moved = (*nodes_of(into.way), *nodes_of(home))
            parts = (_first_of_its_rows(view, entry), norm, into.windows, merged, tail, landed, moved)
            return Block(site, into.partition, *parts, (*asked, *shapes, *left), into.first, leaves_first)
    return None


def _asked(view: GraphView, into: _Into, first: gs.Node | None) -> Asked | None:
    """Who asks for the shape of what goes on the way into windows; None where somebody reads more of it."""
    firsts = [] if first is None else [first]
    asked = only_read(view, into.way, firsts, into.products, into.windows)
    ahead = [] if into.ahead is None else only_read(view, into.ahead, [], firsts, ())
    return None if asked is None or ahead is None else [*asked, *ahead]


def _beginnings(view: GraphView, site: AttentionSite, into: _Into) -> Iterator[tuple[gs.Node | None, gs.Node | None]]:
    """What may go with the movement, the farthest first: the padding in front of it, or the norm, or neither. As the node, and
    again if it is the norm: behind a norm, zeros are zeros no more, so in front of padding it stays where it is."""
    partition, source = into.partition, into.way.source
    if any(partition.padding):
        yield view.producer(source), None
        return
    norm = _norm(view, source)
    # Of one entry tokens are first already; without a norm that can carry biases the compiler copies them in any case, and where
    # the batch varies no norm carries any (ViT-B/16, batch 1 to 8: 102 kernels either way).
    # Presents are wanted entries first: from tokens first they are moved in kernels of their own (GPT-2, batch 2: 26, not 24).
    # So are Q and K where a rotary embedding works on them (two layers of Llama by RMSNormalization: 23 kernels, not 21).
    several = norm is not None and view.static(source, 0) not in (None, 1)
    pays = partition.moves or (several and _is_read_alone(view, site))
    if norm is not None and pays and not any(_goes_around(view, norm, tensor) for tensor in into.windows):
        yield norm, norm
    if partition.moves:
        yield None, None


def _is_read_alone(view: GraphView, site: AttentionSite) -> bool:
    """Whether what the layers in front of a site make is read by the site alone, and only moved on its way; a cache reads keys
    and values too."""
    operands = site.projection.operands if site.projection is not None else ()
    layers = [(role, each.layer) for role, each in enumerate(operands) if each is not None]
    return len(layers) == len(operands) and is_own(view, site, layers)


def _goes_around(view: GraphView, norm: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether a norm's own result, which the products read, is read by somebody else too: a residual behind the norm."""
    if tensor is not norm.outputs[0]:
        return False
    return any(reader.op not in LAYERS and not reads_shape(view, reader) for reader in view.readers(tensor))


def _first_of_its_rows(view: GraphView, tensor: gs.Tensor) -> gs.Tensor:
    """The value that has a tensor's rows first: what the residual reads, if the block reads them in other axes."""
    while (node := view.producer(tensor)) is not None and keeps_rows(view, node):
        tensor = node.inputs[0]
    return tensor


def _products(view: GraphView, site: AttentionSite) -> list[gs.Node]:
    """The products with weights behind Q, K and V; none where one of them comes from something else."""
    found = products(view, site.operands, site.projection.operands) if site.projection is not None else []
    layers = [product for product in found if product is not None and product.op in LAYERS]
    return layers if len(layers) == len(found) else []


@dataclass(frozen=True)
class _Into:
    """How rows come into windows.

    products: of the in-projection. windows: what these read. way: from the map to there.
    ahead: in front of the padding that the way begins with, the way of a map that is rolled first.
    rows: those of the map, world by world, windows first. first: they lie tokens first.
    """

    products: tuple[gs.Node, ...]
    windows: tuple[gs.Tensor, ...]
    way: Trace
    ahead: Trace | None
    partition: Partition
    rows: tuple[np.ndarray, ...]
    first: bool


def _into(view: GraphView, site: AttentionSite) -> _Into | None:
    products, tokens = _products(view, site), view.static(site.query.tensor, -2)
    if len(products) != 3 or not tokens:
        return None
    windows = tuple({product.inputs[0].name: product.inputs[0] for product in products}.values())
    ways = [trace(view, tensor) for tensor in windows]
    if any(way.source is not ways[0].source or way.factor != 1.0 for way in ways):
        return None
    for source in (ways[0].source, *all_through(ways[0].source, nodes_of(ways[0]))):
        rest = [below(way, source) for way in ways]
        found = [rows_of(view, way) if way is not None else None for way in rest]
        way, rows = rest[0], found[0]
        if way is None or rows is None or any(each is None or not _same(each, rows) for each in found):
            continue  # Not of whole rows from here: a map with channels first is turned on its way.
        partition, first = read_partition(view, source, way.steps, rows, tokens), False
        if partition is None and all(each.size % tokens == 0 for each in rows):
            rows, first = tuple(each.reshape(tokens, -1).T.reshape(-1) for each in rows), True
            partition = read_partition(view, source, way.steps, rows, tokens)
        ahead = None
        if partition is not None and (padding := _padding(view, source)) is not None:
            edges = {shape[1:3] for shape in view.shapes(source) or ()}
            if edges != {(partition.height, partition.width)}:
                return None
            partition = replace(partition, padding=padding)
            ahead, partition = _rolled_ahead(view, source, partition)
        return _Into(tuple(products), windows, way, ahead, partition, rows, first) if partition is not None else None
    return None


def _rolled_ahead(view: GraphView, padded: gs.Tensor, partition: Partition) -> tuple[Trace | None, Partition]:
    """The way in front of the padding, where it is one roll, and the partition with that."""
    pad = view.producer(padded)
    assert pad is not None
    way, shapes = trace(view, pad.inputs[0]), view.shapes(pad.inputs[0])
    rows = rows_of(view, way) if way.factor == 1.0 and way.steps else None
    if rows is None or shapes is None:
        return None, partition
    rolls = {read_roll(shape, each) for shape, each in zip(shapes, rows, strict=True)}
    roll = rolls.pop() if len(rolls) == 1 else None
    return (way, replace(partition, rolled=roll)) if roll not in (None, (0, 0)) else (None, partition)


def _padding(view: GraphView, tensor: gs.Tensor) -> tuple[int, int, int, int] | None:
    """Before and after height, before and after width, where a tensor is a map `(B, height, width, C)` with zeros around it."""
    node = view.producer(tensor)
    if (
        node is None
        or node.op != "Pad"
        or node.domain not in STANDARD
        or node.attrs.get("mode", "constant") != "constant"
    ):
        return None
    pads = view.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    value = view.scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else 0.0
    some_axes = len(node.inputs) > 3 and bool(node.inputs[3].name)
    if pads is None or pads.size != 8 or value != 0.0 or some_axes:
        return None
    batch, top, left, channel, *after = (int(pad) for pad in pads.reshape(-1))
    around = (top, after[1], left, after[2])
    return around if not any((batch, channel, after[0], after[3])) and min(around) >= 0 and any(around) else None


def _same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _comes_back(view: GraphView, home: Trace, partition: Partition, rows: Sequence[np.ndarray]) -> bool | None:
    """Whether rows come back tokens first, where the way back puts every row where it was on the map; None where it does not."""
    found = rows_of(view, home)
    if found is None:
        return None
    whole, own = partition.height * partition.width, partition.kept
    fits = [True, True]
    for there, back in zip(rows, found, strict=True):
        maps = np.arange(there.size // whole)[:, None] * whole
        for first in (False, True):
            # Where each row of the map, padding included, lies among the windows.
            inverse = np.argsort(partition.token_first(there) if first else there)
            fits[first] = fits[first] and np.array_equal(back, inverse[(maps + own).reshape(-1)])
    return None if not any(fits) else not fits[False]


def _norm(view: GraphView, tensor: gs.Tensor) -> gs.Node | None:
    """The norm over channels that makes a tensor."""
    node = view.producer(tensor)
    if node is None or node.op not in ("LayerNormalization", "RMSNormalization"):
        return None
    return node if row_operands(view, node) == [0] and tensor is node.outputs[0] else None


def _out(
    view: GraphView, site: AttentionSite
) -> tuple[gs.Tensor, tuple[gs.Node, ...], list[tuple[gs.Node, gs.Tensor]]] | None:
    """What the out-projection reads, the token-wise nodes from it on, and who asks for the shape of what they make."""
    tensor, merged = site.output, None
    tail: list[gs.Node] = []
    shapes: list[tuple[gs.Node, gs.Tensor]] = []
    for _ in range(MOST_STEPS):
        readers = view.readers(tensor)
        asking = [reader for reader in readers if reads_shape(view, reader)]
        others = [reader for reader in readers if not reads_shape(view, reader)]
        shapes += [(reader, tensor) for reader in asking] if tail else []
        if tensor.name in view.pinned:
            return None
        node = others[0] if len(others) == 1 else None
        places = row_operands(view, node) if node is not None else []
        if node is not None and merged is None and node.domain in STANDARD and moves(view, node, node.outputs[0]):
            tensor = node.outputs[0]
        elif node is not None and places == [0 if node.inputs[0] is tensor else 1] and (tail or node.op in LAYERS):
            merged = merged if merged is not None else tensor
            tail.append(node)
            tensor = node.outputs[0]
        else:
            break
    while tail and moves(view, tail[-1], tail[-1].outputs[0]):  # An identity: of the way back.
        tail.pop()
    return (merged, tuple(tail), shapes) if merged is not None and tail else None
