"""Write the in-projection of a site as one product on packed weights, in the layout that lands best.

The layout is a compiler fact (TensorRT for RTX 1.7.1, ViT block): without biases, a split on the last axis lets the MHA
kernel read Q, K and V where the projection wrote them (7 kernels a layer); with a bias, the split on the head axis after
`reshape [B, S, 3·N, H]` and one transpose costs least (8 kernels, 10 as exported).
"""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from onnx_attn.forms.dims import reshape_target, write_reshape, write_shape_vector
from onnx_attn.forms.packing import HEAD, Packing, reuses_output, reuses_weight
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView


def write_packed(writer: Writer, view: GraphView, packing: Packing) -> tuple[str, str, str]:
    """Append the packed projection and the split; returns Q, K and V `(…, N, S, H)`."""
    projected, biased = _write_projection(writer, view, packing)
    counts = [heads.columns.shape[0] for heads in packing.heads]
    sizes = [heads.columns.shape[1] for heads in packing.heads]
    leading = packing.rank - 2
    # Axes of the reshaped projection are (source axes…, N, H); the operands want `order` and then H.
    order = packing.heads[0].order
    perm = [leading if axis == HEAD else axis for axis in order] + [leading + 1]

    def turned(tensor: str, count: int, size: int, hint: str) -> str:
        tensor = write_reshape(writer, tensor, [0] * leading + [count, size], f"{hint}_heads")
        return tensor if perm == sorted(perm) else writer.add("Transpose", [tensor], hint, perm=perm)

    if biased and len(set(sizes)) == 1:
        packed = turned(projected, sum(counts), sizes[0], "query_key_value")
        return tuple(_split(writer, packed, counts, order.index(HEAD)))  # type: ignore[return-value]
    parts = _split(writer, projected, [n * h for n, h in zip(counts, sizes, strict=True)], -1)
    roles = ("query", "key", "value")
    return tuple(turned(*part) for part in zip(parts, counts, sizes, roles, strict=True))  # type: ignore[return-value]


def _split(writer: Writer, tensor: str, sizes: list[int], axis: int) -> list[str]:
    return writer.add("Split", [tensor, writer.shape(*sizes)], "in_proj_split", outputs=3, axis=axis)


def _write_projection(writer: Writer, view: GraphView, packing: Packing) -> tuple[str, bool]:
    """`source·W + b` as MatMul and Add: the compiler packs Gemm only by turning it back into these."""
    layers = packing.projection.layers
    biased = any(layer.bias is not None for layer in layers)
    source = packing.projection.source
    layer = layers[0]
    if reuses_output(packing):
        return layer.output.name, biased
    if reuses_weight(packing):
        weight, bias = layer.weight.name, layer.bias.name if layer.bias is not None else ""
    else:
        weight = writer.weight(_packed_weight(view, packing), "in_proj_weight")
        bias = writer.weight(_packed_bias(view, packing), "in_proj_bias") if biased else ""
    projected = writer.add("MatMul", [source.name, weight], "in_proj" if not biased else "in_proj_product")
    return (writer.add("Add", [projected, bias], "in_proj") if biased else projected), biased


def _packed_weight(view: GraphView, packing: Packing) -> np.ndarray:
    """`(E, C)`: the columns of Q, K and V side by side, alpha folded in."""
    parts = []
    for layer, heads in zip(packing.projection.layers, packing.heads, strict=True):
        weight = _array(view, layer.weight.name)
        columns = heads.columns.reshape(-1)
        part = weight[columns].T if layer.transposed else weight[:, columns]
        parts.append(part if layer.alpha == 1.0 else (part.astype(np.float64) * layer.alpha).astype(weight.dtype))
    return np.concatenate(parts, axis=1)


def _packed_bias(view: GraphView, packing: Packing) -> np.ndarray:
    """`(C,)`: biases side by side, zeros where a layer has none, beta folded in."""
    dtype = next(_array(view, layer.bias.name).dtype for layer in packing.projection.layers if layer.bias is not None)
    parts = []
    for layer, heads in zip(packing.projection.layers, packing.heads, strict=True):
        if layer.bias is None:
            parts.append(np.zeros(heads.columns.size, dtype))
            continue
        part = _array(view, layer.bias.name).reshape(-1)[heads.columns.reshape(-1)]
        parts.append(part if layer.beta == 1.0 else (part.astype(np.float64) * layer.beta).astype(dtype))
    return np.concatenate(parts)


def _array(view: GraphView, name: str) -> np.ndarray:
    """A weight as numpy sees it, without a copy where the file keeps raw bytes."""
    return numpy_helper.to_array(view.initializer(name))


def write_merged(writer: Writer, packing: Packing, attention: str, output: str) -> None:
    """Bring the site's output `(…, N, S, H)` back to the original's axes, as `output`."""
    assert packing.merged is not None
    target = reshape_target(packing.canonical, packing.merged)
    if target is not None:
        write_reshape(writer, attention, target, "attention_merged", output)
        return
    sizes = writer.names.value(f"{writer.prefix}/merged_shape")
    write_shape_vector(writer, packing.projection.source.name, packing.merged, sizes)
    writer.add("Reshape", [attention, sizes], "attention_merged", output=output)
