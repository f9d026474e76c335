"""Drawings travel with a report's candidates to the page, and are no part of the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_attn.drawing.site import Drawn


def with_drawings(candidates: Sequence[dict[str, Any]], drawings: Sequence[Drawn | None]) -> None:
    """Give each entry of a report its drawing, where there are any."""
    for entry, drawn in zip(candidates, drawings, strict=False):
        entry["drawing"] = drawn


def without_drawings(report: dict[str, Any]) -> dict[str, Any]:
    """The report as JSON has it. The entries themselves are changed."""
    for entry in (*report.get("candidates", ()), *report.get("per_site", ())):
        entry.pop("drawing", None)
    for figures in (report.get("stats") or {}).values():
        figures.pop("outline", None)
    return report
