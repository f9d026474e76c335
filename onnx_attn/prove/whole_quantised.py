"""Two whole models with quantisation steps, whose numbers may fall to either side of a step, and do so from layer to layer.

Without their steps they must agree as any two models do. As they are they may then differ by what quantising moves the results of
the one and of the other: |b − a| ≤ |b − b'| + |b' − a'| + |a' − a|, the primed ones without steps. That each step is where it
was, is what the proof of each site says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnx_attn.prove.slices import WHOLE, Slices
from onnx_attn.prove.smooth import is_quantised, unrounded
from onnx_attn.prove.whole import Model, WholeProof, compare_models

Named = tuple[Model, str]


def compare_quantised(
    before: Named,
    after: Named,
    inputs: Sequence[Mapping[str, np.ndarray]],
    found: WholeProof,
    slices: tuple[Slices, Slices] = (WHOLE, WHOLE),
) -> WholeProof:
    """`found`, which is not ok, with the bound that quantised models have; as it is where that does not hold either."""
    protos = [_proto(model) for model, _ in (before, after)]
    if not found.worst.agrees or not any(map(is_quantised, protos)):
        return found
    plain = [(unrounded(proto), name) for proto, (_, name) in zip(protos, (before, after), strict=True)]
    if not compare_models(plain[0], plain[1], inputs, found.rtol, slices=slices).ok:
        return found
    moved = [
        compare_models(rounded, without, inputs, found.rtol, slices=(way, way)).outputs
        for rounded, without, way in zip((before, after), plain, slices, strict=True)
    ]
    bounds = [
        sum(outputs[name].max_abs for outputs in moved) * found.outputs[name].max_rel / found.outputs[name].max_abs
        for name in found.failing
    ]
    return replace(found, rtol=found.rtol + max(bounds))


def _proto(model: Model) -> onnx.ModelProto:
    return model if isinstance(model, onnx.ModelProto) else onnx.load(str(model))
