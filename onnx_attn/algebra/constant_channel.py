"""A LayerNorm's redundant channel carries a constant 1, and so the projection's bias becomes a row of its weights.

LayerNorm's normalised output n sums to 0 over its channels, so n_c = −Σ_{j≠c} n_j for any channel c. With y = γ∘n + β,

    y·W + b = Σ_{j≠c} n_j·(γ_j·W_j − γ_c·W_c) + (b + β·W)

Give the LayerNorm γ' = 1 and β' = 0 but γ'_c = 0 and β'_c = 1, the product W'_j = γ_j·W_j − γ_c·W_c and W'_c = b + β·W, and no
bias is left. Nothing about softmax is used. The compiler then reads Q, K and V where the projection wrote them: 7 kernels a
ViT layer and not 8 (TensorRT for RTX 1.7.1).

It needs a LayerNorm that removes the mean, over whole rows of what the projection reads, which nobody else reads; between the
two rows may only be moved: what pads with zeros breaks Σ n = 0 and the constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.owning import reads_shape
from onnx_attn.forms.packing import Group
from onnx_attn.graph.rounding import row_slices
from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.views.movement import handed_on, is_identity
from onnx_attn.views.trace import FLOATS

MOST_NODES = 256
"""How many nodes may stand between the LayerNorm and the projection: a roll and a partition of windows take dozens."""


@dataclass(frozen=True)
class ConstantChannel:
    """The LayerNorm `norm`, and the nodes `path` (in graph order) that move its rows to the projection's source.

    shapes: readers of nothing but the shape of a value on the way.
    """

    norm: gs.Node
    path: tuple[gs.Node, ...]
    shapes: tuple[gs.Node, ...]

    @property
    def output(self) -> gs.Tensor:
        return self.norm.outputs[0]


def read_constant_channel(view: GraphView, group: Group) -> ConstantChannel | str:
    """The LayerNorm behind a group's source, if its rows reach the group's projection and nothing else; else why not."""
    found = _rows_above(view, group.source)
    if isinstance(found, str):
        return found
    norm, path = found
    reason = _unsuitable(view, norm)
    if reason is not None:
        return reason
    inside = {id(node) for node in path}
    for member in group.members:
        inside |= {id(step.node) for step in member.layer.moves} | {id(member.layer.product)}
    between = [step.node for member in group.members for step in member.layer.moves]
    shapes: list[gs.Node] = []
    for node in (norm, *path, *between):
        for tensor in node.outputs:
            if tensor.name in view.pinned:
                return f"'{tensor.name}' is read from outside"
            for reader in view.readers(tensor):
                if reads_shape(view, reader):
                    shapes.append(reader)
                elif id(reader) not in inside:
                    return f"'{label(reader)}' reads the normalised values too"
    # Rows that are moved further only to be multiplied there are read by nobody afterwards, unless their shape is asked for.
    path = tuple(sorted({id(node): node for node in (*path, *between)}.values(), key=view.position))
    return ConstantChannel(norm, path, tuple(shapes))


def _rows_above(view: GraphView, source: gs.Tensor) -> tuple[gs.Node, tuple[gs.Node, ...]] | str:
    """The one LayerNorm whose rows, whole and moved at most, `source` consists of."""
    queue = [source]
    norms: dict[int, gs.Node] = {}
    path: dict[int, gs.Node] = {}
    while queue:
        node = view.producer(queue.pop())
        if node is None or not view.in_main_graph(node) or len(path) > MOST_NODES:
            return "what is projected does not come from a LayerNorm alone"
        if node.op == "LayerNormalization" and node.domain in STANDARD:
            norms[id(node)] = node
        elif id(node) not in path:
            above = _moved_rows(view, node)
            if not above:
                return f"'{label(node)}' ({node.op}) stands between the projection and a LayerNorm"
            path[id(node)] = node
            queue.extend(above)
    if len(norms) != 1:
        return "what is projected comes from more than one LayerNorm"
    return next(iter(norms.values())), tuple(sorted(path.values(), key=view.position))


def _moved_rows(view: GraphView, node: gs.Node) -> list[gs.Tensor]:
    """The inputs whose rows a node's results consist of; empty if it is no movement of whole rows."""
    data = node.inputs[0] if node.inputs else None
    rank = view.rank(data) if data is not None else None
    if data is None or not rank or node.domain not in STANDARD:
        return []
    if is_identity(view, node):
        return [handed_on(view, node)]
    if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        width = view.static(data, -1)
        return [data] if width is not None and view.static(node.outputs[0], -1) == width else []
    if node.op == "Cast":
        return [data] if node.attrs["to"] in FLOATS else []
    if node.op == "Transpose":
        return [data] if (node.attrs.get("perm") or [0])[-1] == rank - 1 else []
    axis = node.attrs.get("axis", 0)
    if node.op in ("Concat", "Split", "Gather") and axis not in (-1, rank - 1):
        return list(node.inputs) if node.op == "Concat" else [data]
    if node.op == "Slice":
        axes = view.constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3].name else None
        return [data] if axes is not None and not {-1, rank - 1} & {int(a) for a in axes} else []
    return []


def _unsuitable(view: GraphView, norm: gs.Node) -> str | None:
    """Why this LayerNorm cannot carry a constant: it has to normalise whole rows, with weights that are in the model."""
    rank, width = view.rank(norm.inputs[0]), view.static(norm.inputs[0], -1)
    if rank is None or norm.attrs.get("axis", -1) not in (-1, rank - 1):
        return "the LayerNorm runs over more than one axis"
    if any(tensor.name and (view.readers(tensor) or view.is_output(tensor)) for tensor in norm.outputs[1:]):
        return "the LayerNorm's mean or deviation is read"
    if width is None or width < 2:
        return "the projection does not read whole rows of the LayerNorm"
    for tensor in norm.inputs[1:]:
        stored = isinstance(tensor, gs.Constant) and tensor.name not in view.pinned
        if tensor.name and (not stored or list(tensor.shape) != [width]):
            return "the LayerNorm's weights are not in the model"
    return None


def affine(view: GraphView, norm: gs.Node) -> tuple[np.ndarray, np.ndarray]:
    """γ and β `(E,)` in float64; zeros for a missing β."""
    gamma, *rest = [view.numbers(tensor.name).astype(np.float64) for tensor in norm.inputs[1:] if tensor.name]
    return gamma, rest[0] if rest else np.zeros_like(gamma)


def redundant_channel(gamma: np.ndarray, norms: np.ndarray) -> int:
    """The channel c that is to carry the constant, from γ and ‖W_j‖ `(E,)`: where |γ_c|·‖W_c‖ is least, what is subtracted from
    every other row is small, and rounds nothing away."""
    return int(np.argmin(np.abs(gamma) * norms))


def fold_bias(
    weight: Iterable[tuple[slice, np.ndarray]],
    row: np.ndarray,
    bias: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    gone: np.ndarray,
    channel: int,
) -> Iterator[tuple[slice, np.ndarray]]:
    """W' `(E, C)` by rows, from W `(E, C)` by rows, its row W_c, b `(C,)`, γ and β `(E,)`, all float64, and the channel c.

    gone: the channels `(C,)` of K and V whose biases, β·W included, are dropped or moved by other identities. Row c of W' comes
    last, with zeros in its place before.
    """
    for rows, numbers in weight:
        bias = bias + beta[rows] @ numbers
        yield rows, gamma[rows, None] * numbers - gamma[channel] * row
    yield slice(channel, channel + 1), np.where(gone, 0.0, bias)[None]


def whole_bias(bias: np.ndarray, weight: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """What a layer adds to every row once its LayerNorm has no β of its own: b + β·W, in float64; W `(E, C)` in its own type."""
    for part in row_slices(*weight.shape):
        bias = bias + beta[part] @ weight[part].astype(np.float64)
    return bias
