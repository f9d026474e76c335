"""ONNX Runtime's own operators that are said in plain nodes, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import defs

from onnx_attn.domain import MICROSOFT
from onnx_attn.graph import inference
from onnx_attn.graph.edit import Names, Writer
from onnx_attn.graph.opset import LEAST_OPSET
from onnx_attn.graph.view import called
from onnx_attn.graph.world import Known
from onnx_attn.operators.microsoft import attention, grouped, multi_head, norms, pointwise
from onnx_attn.operators.microsoft.call import Call, ContradictionError, NotSpelled, Spell
from onnx_attn.operators.spelled import Spelled

ATTENTION: Mapping[str, Spell] = {
    "Attention": attention.attention,
    "QAttention": attention.quantised_attention,
    "MultiHeadAttention": multi_head.multi_head_attention,
    "GroupQueryAttention": grouped.grouped_attention,
}

SPELLINGS: Mapping[tuple[str, str], Spell] = {
    **{(MICROSOFT, name): spell for name, spell in ATTENTION.items()},
    (MICROSOFT, "SkipLayerNormalization"): norms.skip_layer_normalization,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): norms.skip_simplified_layer_normalization,
    (MICROSOFT, "EmbedLayerNormalization"): norms.embed_layer_normalization,
    ("", "SimplifiedLayerNormalization"): norms.simplified_layer_normalization,
    ("", "LayerNormalization"): norms.layer_normalization,
    (MICROSOFT, "Gelu"): pointwise.gelu,
    (MICROSOFT, "BiasGelu"): pointwise.bias_gelu,
    (MICROSOFT, "FastGelu"): pointwise.fast_gelu,
    (MICROSOFT, "QuickGelu"): pointwise.quick_gelu,
    (MICROSOFT, "FusedMatMul"): pointwise.fused_mat_mul,
    (MICROSOFT, "TransposeMatMul"): pointwise.fused_mat_mul,
}


def spell(
    names: Names, node: onnx.NodeProto, known: Sequence[tuple[Known, ...] | None], opset: int
) -> Spelled | str | None:
    """The node in plain nodes, or in words why it is not; None for an operator that is not of this table.

    known: of each input what every world knows of it.
    """
    write = spelling(node, opset)
    if write is None:
        return None
    if opset < LEAST_OPSET:
        return f"it is said in operators of opset {LEAST_OPSET}, and the model's is {opset}"
    if not node.input or not node.input[0]:
        return "without its first input"
    writer = Writer(names, called(node))
    try:
        write(Call(writer, node, known, opset))
    except NotSpelled as reason:
        return str(reason)
    except ContradictionError:
        raise
    except (IndexError, TypeError, ValueError):  # No schema of onnx's says what these take: nobody has looked before.
        return "its inputs or attributes are not what the operator takes"
    return Spelled(writer.nodes, dict(writer.initializers))


def spelling(node: onnx.NodeProto, opset: int) -> Spell | None:
    """How a node of a model of this opset is said in plain nodes; None for one that the standard has there, or nobody knows."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    known = SPELLINGS.get((domain, node.op_type))
    return known if known is not None and (domain or not defs.has(node.op_type, opset, "")) else None


def _body(node: onnx.NodeProto, inputs: Sequence[Known | None], opset: int) -> inference.Body | None:
    """What shape inference follows types and shapes through, in place of a schema that it does not have."""
    known = [(entry,) if entry is not None else None for entry in inputs]
    spelled = spell(Names(onnx.ModelProto()), node, known, opset)
    return (spelled.nodes, tuple(spelled.initializers.values())) if isinstance(spelled, Spelled) else None


inference.BODIES.update(dict.fromkeys(SPELLINGS, _body))
