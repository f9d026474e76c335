"""A block of a transformer whose attention looks at windows of a map: where its rows leave the map and where they come back.

    x ─ LayerNorm ─ roll, partition ─ in-projection … attention … out-projection ─ reverse, roll ─ (LayerNorm) ─ + x …

The LayerNorm in front may be missing (Swin V2 has it behind).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.owning import reads_shape
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.recognize.origin import read_origin
from onnx_attn.site import AttentionSite
from onnx_attn.views.movement import index_map, moves
from onnx_attn.views.trace import Trace, trace
from onnx_attn.windows.partition import Partition, read_partition
from onnx_attn.windows.token_wise import row_index, row_operands

MOST_STEPS = 16
"""How many nodes may stand between P·V and its out-projection, or behind that in front of the movement back."""


@dataclass(frozen=True)
class Block:
    """One site's way out of the map and back.

    entry: x, in the map's order. norm: the LayerNorm between it and the movement, if there is one.
    windows: what the in-projection's products read, `(windows, tokens, C)` or the same rows in other axes; tokens first if
        `enters_first`.
    merged: what the out-projection reads, tokens first if `leaves_first`.
    tail: the token-wise nodes from there on; the last one's result is moved back.
    landed: that result in the map's order.
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
    shapes: tuple[tuple[gs.Node, gs.Tensor], ...]
    enters_first: bool = False
    leaves_first: bool = False

    @property
    def nodes(self) -> frozenset[int]:
        """The ids of the nodes that are this block's own."""
        return frozenset(id(node) for node in (self.norm, *self.tail) if node is not None)


Landings = Mapping[str, Sequence[tuple[gs.Tensor, Trace]]]
"""By name, where a moved value is read token by token again, and how it came there."""


def landings(view: GraphView) -> Landings:
    """For every value whose rows are moved, and then read by a token-wise node."""
    found: dict[str, dict[str, tuple[gs.Tensor, Trace]]] = {}
    for node in view.graph.nodes:
        for place in row_operands(view, node):
            tensor = node.inputs[place]
            above = view.producer(tensor)
            if above is not None and (above.op == "Concat" or moves(view, above, tensor)):
                way = trace(view, tensor)
                if way.steps and way.factor == 1.0:
                    found.setdefault(way.source.name, {})[tensor.name] = (tensor, way)
    return {name: tuple(ends.values()) for name, ends in found.items()}


def read_block(view: GraphView, site: AttentionSite, ends: Landings) -> Block | None:
    """The block around a site; None where its rows are not moved, or not read back, or somebody else reads what would go."""
    out = _out(view, site)
    into = _into(view, site)
    if out is None or into is None:
        return None
    merged, tail, shapes = out
    windows, way, partition, rows, enters_first = into
    result = tail[-1].outputs[0]
    back = ends.get(result.name, ())
    if len(back) > 1:
        return None
    landed, home = back[0] if back else (result, Trace(result, 1.0, ()))
    leaves_first = _comes_back(view, home, partition, rows)
    if leaves_first is None:
        return None
    left = _only_read(view, home, tail[-1:], [], (landed,))
    products = _products(view, site)
    for first, norm in _beginnings(view, way.source, partition):
        if not partition.moves and (norm is None or {shape[0] for shape in view.shapes(way.source) or ()} == {1}):
            continue  # Nothing to gain: tokens are first already, or the compiler has to copy them in any case.
        asked = _only_read(view, way, [] if first is None else [first], products, windows)
        if asked is not None and left is not None:
            entry = first.inputs[0] if first is not None else way.source
            shapes = [*asked, *shapes, *left]
            parts = (entry, norm, windows, merged, tail, landed, tuple(shapes))
            return Block(site, partition, *parts, enters_first, leaves_first)
    return None


def _beginnings(
    view: GraphView, source: gs.Tensor, partition: Partition
) -> list[tuple[gs.Node | None, gs.Node | None]]:
    """What may go with the movement, the farthest first: the padding in front of it, or the norm, or neither. As the node, and
    again if it is the norm: behind a norm, zeros are zeros no more, so in front of padding it stays where it is."""
    if any(partition.padding):
        return [(view.producer(source), None)]
    norm = _norm(view, source)
    return [(norm, norm), (None, None)] if norm is not None else [(None, None)]


def _products(view: GraphView, site: AttentionSite) -> list[gs.Node]:
    """The products with weights behind Q, K and V; what works on each head in between (a norm, a scale) is no matter here."""
    found = []
    for operand, projected in zip(site.operands, site.projection.operands if site.projection else (), strict=False):
        origin = read_origin(view, operand.read) if projected is None else None
        product = projected.layer.product if projected is not None else origin.layer if origin is not None else None
        if product is None or product.op not in ("MatMul", "Gemm"):
            return []
        found.append(product)
    return found


def _into(
    view: GraphView, site: AttentionSite
) -> tuple[tuple[gs.Tensor, ...], Trace, Partition, tuple[np.ndarray, ...], bool] | None:
    """What the in-projection reads, how that came from the map, as a partition, its rows world by world, windows first, and
    whether they lie tokens first."""
    products, tokens = _products(view, site), view.static(site.query.tensor, -2)
    if len(products) != 3 or tokens is None:
        return None
    windows = tuple({product.inputs[0].name: product.inputs[0] for product in products}.values())
    ways = [trace(view, tensor) for tensor in windows]
    if any(way.source is not ways[0].source or way.factor != 1.0 for way in ways):
        return None
    found = [rows_of(view, way) for way in ways]
    if found[0] is None or any(each is None or not _same(each, found[0]) for each in found):
        return None
    rows, first = found[0], False
    partition = read_partition(view, ways[0].source, ways[0].steps, rows, tokens)
    if partition is None and all(each.size % tokens == 0 for each in rows):
        rows, first = tuple(each.reshape(tokens, -1).T.reshape(-1) for each in rows), True
        partition = read_partition(view, ways[0].source, ways[0].steps, rows, tokens)
    if partition is not None and (padding := _padding(view, ways[0].source)) is not None:
        fits = (
            len({shape[1:3] for shape in view.shapes(ways[0].source) or ()} | {(partition.height, partition.width)})
            == 1
        )
        partition = replace(partition, padding=padding) if fits else None
    return (windows, ways[0], partition, rows, first) if partition is not None else None


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


def rows_of(view: GraphView, way: Trace) -> tuple[np.ndarray, ...] | None:
    """World by world, the rows of a way's source that lie at its end; None if rows are not moved whole."""
    shapes = view.shapes(way.source)
    if shapes is None:
        return None
    key = ("rows", shapes, tuple(step.output.name for step in way.steps))
    if key not in view.layouts:
        found = []
        for world, shape in zip(view.worlds, shapes, strict=True):
            index = index_map(world, shape, way.steps)
            found.append(None if index is None else row_index(index, shape[-1]))
        view.layouts[key] = None if any(each is None for each in found) else tuple(found)
    rows: tuple[np.ndarray, ...] | None = view.layouts[key]
    return rows


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
        elif (
            node is not None
            and places == [0 if node.inputs[0] is tensor else 1]
            and (tail or node.op in ("MatMul", "Gemm"))
        ):
            merged = merged if merged is not None else tensor
            tail.append(node)
            tensor = node.outputs[0]
        else:
            break
    return (merged, tuple(tail), shapes) if merged is not None and tail else None


def _only_read(
    view: GraphView, way: Trace, first: Iterable[gs.Node], last: Iterable[gs.Node], ends: Sequence[gs.Tensor]
) -> list[tuple[gs.Node, gs.Tensor]] | None:
    """Who asks for the shape of what a way makes on its way, where nobody else reads it; None if somebody does.

    first: the nodes that make the way's source, if that goes too. last: may read what comes before the ends.
    """
    steps = [step for each in way.steps for step in each.whole]
    inside = {id(step.node) for step in steps} | {id(node) for node in last}
    kept = {tensor.name for tensor in ends}
    asking = []
    made = [node.outputs[0] for node in first]
    for tensor in (*made, *(step.output for step in steps)):
        if tensor.name in kept and tensor not in made:
            continue
        if tensor.name in view.pinned:
            return None
        for reader in view.readers(tensor):
            if id(reader) in inside:
                continue
            if not reads_shape(view, reader):
                return None
            asking.append((reader, tensor))
    return list({id(reader): (reader, tensor) for reader, tensor in asking}.values())
