"""The layers of Q, K and V side by side, where something works on Q or K before the scores: a rotary embedding, a norm, a cache.

What stands in between keeps the heads from being read off one product (`forms/packing.py`), but the products themselves have one
source: one product on their weights side by side, split on its last axis, makes the same numbers under the same names, and all
that comes after stays as it is.

Measured with TensorRT for RTX 1.7.1, fp16, two layers of Llama: 25 kernels as exported, 25 with the three products left as they
are, which the compiler joins itself and then copies each part of, 21 split here; its next token behind a past: 24, 25 and 22.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.owning import one_way
from onnx_attn.graph.edit import Splice, Writer
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.recognize.projection import products
from onnx_attn.site import AttentionSite
from onnx_attn.views.linear import weight_array, weight_tensor
from onnx_attn.views.trace import FLOATS

MOST_NODES = 256
"""How many nodes may read what one product makes, down to the site: a rotary embedding and a cache take a dozen."""
_MIXES = frozenset("MatMul Gemm Einsum Conv ConvTranspose Softmax Attention".split())
"""What would make something new of Q, K and V: of another site, or of something else."""


@dataclass(frozen=True)
class Beside:
    """Products `source · W`, in graph order; each with its weight `(E, C)`, and whether that is stored as `(C, E)`."""

    products: tuple[gs.Node, ...]
    weights: tuple[tuple[gs.Tensor, bool], ...]

    @property
    def source(self) -> gs.Tensor:
        return self.products[0].inputs[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(product.outputs[0].name for product in self.products)


def read_beside(view: GraphView, site: AttentionSite) -> Beside | None:
    """The site's products, two or three, all on one source and nobody else's in any part; None where they are not.

    Where nothing but movement stands behind them it is `plan_packing` that has the say (T5's first tokens, whose keys and values
    leave the model as they are: 44 kernels either way, and 5 % more bytes so).
    """
    if site.projection is None or None not in site.projection.operands:
        return None
    behind = products(view, site.operands, site.projection.operands)
    made = {id(each): each for each in behind if each is not None and each.op == "MatMul" and each.domain in STANDARD}
    found = sorted(made.values(), key=view.position)
    if len(found) < 2 or any(product.inputs[0] is not found[0].inputs[0] for product in found):
        return None
    weights = [weight_tensor(view, product.inputs[1]) for product in found]
    tensors = (*(product.inputs[1] for product in found), *(operand.tensor for operand in site.operands))
    types = {view.elem_type(tensor) for tensor in tensors}
    if len(types) != 1 or not types.issubset(FLOATS):
        return None  # (What is cast on its way is copied in any case: as many kernels, and 6 % more bytes.)
    for product, weight in zip(found, weights, strict=True):
        if weight is None or not _is_own(view, product, weight[0]) or not _serves_alone(view, site, product.outputs[0]):
            return None
    return Beside(tuple(found), tuple(weight for weight in weights if weight is not None))


def write_beside(writer: Writer, view: GraphView, beside: Beside) -> Splice:
    """One product on all weights, split into what the single ones made, at the first of them."""
    ahead = Writer(writer.names, writer.prefix, initializers=writer.initializers, exact=writer.exact)
    arrays = [_array(view, *weight) for weight in beside.weights]
    name = ahead.weight(np.concatenate(arrays, axis=1), "in_proj_weight")
    packed = ahead.add("MatMul", [beside.source.name, name], "in_proj")
    sizes = ahead.shape(*(array.shape[1] for array in arrays))
    ahead.add("Split", [packed, sizes], "in_proj_split", outputs=len(arrays), axis=-1)
    ahead.nodes[-1].output[:] = beside.outputs
    return Splice(view.position(beside.products[0]), tuple(ahead.nodes), beside.outputs)


def _is_own(view: GraphView, product: gs.Node, weight: gs.Tensor) -> bool:
    """Whether a product's weight is a stored matrix that is read for it alone: else it would be stored twice."""
    stored = isinstance(weight, gs.Constant) and view.is_weight(weight) and len(weight.shape) == 2
    return stored and one_way(view, weight, product.outputs[0], alone=True)


def _serves_alone(view: GraphView, site: AttentionSite, result: gs.Tensor) -> bool:
    """Whether everything that is made of a product's result comes to this site's products, or leaves the model as a cache."""
    ends, queue, seen = {id(site.product), id(site.value_product)}, [result], set[int]()
    while queue:
        for reader in view.readers(queue.pop()):
            if id(reader) in ends or id(reader) in seen:
                continue
            if reader.op in _MIXES or not view.in_main_graph(reader) or len(seen) > MOST_NODES:
                return False
            seen.add(id(reader))
            queue.extend(reader.outputs)
    return True


def _array(view: GraphView, weight: gs.Tensor, transposed: bool) -> np.ndarray:
    value = weight_array(view, weight)
    assert value is not None
    return value.T if transposed else value
