"""The report of `land` as a dict: what was built, where each site ended, and why not where it did not land."""

from __future__ import annotations

from typing import Any

from onnx_attn.engine.kernels import Kernel, TensorInfo
from onnx_attn.engine.landing import Landing
from onnx_attn.landing import Landed
from onnx_attn.report.drawn import with_drawings
from onnx_attn.report.reasons import warning, why_not


def landing_report(found: Landed, baseline: Landed | None = None) -> dict[str, Any]:
    """The JSON of `land`; `baseline` holds the same keys for the other model."""
    return {**_document(found), "baseline": _document(baseline) if baseline is not None else None}


def _document(found: Landed) -> dict[str, Any]:
    engine = found.engine
    sites = [_site(landing, found) for landing in found.landings]
    with_drawings(sites, found.drawings)
    known = engine.built and not engine.unread
    return {
        "model": found.name,
        "compiler": engine.compiler,
        "sm": engine.sm,
        "shapes": {name: [list(shape) for shape in every] for name, every in found.profile.items()},
        "built": engine.built,
        "sites": len(found.landings),
        "landed": found.landed,
        "kernels": len(engine.kernels) if known else None,
        "attention_kernels": len(engine.attention_kernels) if known else None,
        "moved_bytes": found.moved_bytes,
        "other_attention_kernels": _others(found) if known else None,
        "per_site": sites,
        "errors": list(engine.errors),
        "seconds": {phase: round(seconds, 4) for phase, seconds in found.seconds.items()},
        "layers": [_kernel(kernel, found.labels) for kernel in engine.kernels],
    }


def _others(found: Landed) -> int:
    """Attention kernels that no site is on: attention that was not recognised as such."""
    reached = {landing.kernel.name for landing in found.landings if landing.kernel is not None}
    return sum(kernel.name not in reached for kernel in found.engine.attention_kernels)


def _site(landing: Landing, found: Landed) -> dict[str, Any]:
    name = landing.candidate.name
    reason, remedy = why_not(landing, found)
    return {
        "site": found.labels.get(name, name),
        "scope": getattr(landing.candidate, "scope", "") or None,
        "kernel": landing.kernel.name if landing.kernel is not None else None,
        "landed": landing.landed,
        "reason": reason,
        "remedy": remedy,
        "warning": warning(landing, found),
        "merged_with": found.labels.get(landing.twin, landing.twin) if landing.twin else None,
    }


def _kernel(kernel: Kernel, labels: dict[str, str]) -> dict[str, Any]:
    sizes = [tensor.size for tensor in kernel.tensors]
    return {
        "name": kernel.name,
        "type": kernel.layer_type,
        "inputs": [_tensor(tensor) for tensor in kernel.inputs],
        "weights": [_tensor(tensor) for tensor in kernel.constants],
        "outputs": [_tensor(tensor) for tensor in kernel.outputs],
        "bytes": sum(size or 0 for size in sizes) if None not in sizes else None,
        "nodes": [_original(layer, labels) for layer in kernel.onnx_layers],
    }


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {"shape": list(tensor.dims), "type": tensor.datatype}


def _original(layer: str, labels: dict[str, str]) -> str:
    """The node's name as users know it, of a node of a body with the way to it."""
    inner, bar, way = layer.partition(" | ")
    return labels.get(inner, inner) + bar + way
