"""Attention taken apart: every site in plain operators, in one canonical form."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from onnx_attn.deliver import fuse_file, fuse_proto
from onnx_attn.given import Model, Result, loaded_from, site_place
from onnx_attn.options import Expansion, Options
from onnx_attn.pipeline import inspect_model
from onnx_attn.plan import Choice
from onnx_attn.targets.editions import parse_target


def expand(
    model: Model,
    output: str | PathLike[str] | None = None,
    *,
    opset: int | None = None,
    split_projection: bool = False,
    sites: Sequence[str] | None = None,
    verify: bool = True,
) -> Result:
    """Take attention apart into plain operators at the model's own opset (13 or later), prove it, and (with `output`) save it.

    Calls of our functions, `Attention` and `RotaryEmbedding`, and com.microsoft's attention operators become in-projection,
    heads, Q·Kᵀ, scale, masks, softmax, ·V; sites that are plain already are brought into the same order. `opset`: the model is
    brought to it as far as onnx's converter can. `split_projection`: Q, K and V are projected each by itself. `sites`: the ids of
    `inspect`, for some alone.

    Raises InputError, OutputError, UsageError, DifferenceError; nothing is written then.
    """
    target = parse_target("onnx")
    places = _places(model, sites) if sites is not None else None
    choice = Choice(
        "primitives",
        algebra=(),
        apply=places is None,
        heads="kept",
        tokens_first=False,
        rotary=False,
        split=split_projection,
    )
    options = Options(target, choice, verify=verify, expansion=Expansion(places, opset))
    if isinstance(model, str | PathLike) and output is not None:
        report, document = fuse_file(Path(model), Path(output), options)
        return Result(_expansion_report(report, places), document, None, Path(output))
    loaded = loaded_from(model)
    report, document, proto = fuse_proto(loaded.proto, loaded.name, options)
    made = gs.import_onnx(proto) if isinstance(model, gs.Graph) else proto
    return Result(_expansion_report(report, places), document, made)


def _places(model: Model, sites: Sequence[str]) -> frozenset[int]:
    """Where the sites of these ids stand among all. Raises UsageError for one that the model does not have."""
    count = inspect_model(loaded_from(model), parse_target("onnx"))["sites"]
    return frozenset(site_place(each, count) for each in sites)


def _expansion_report(report: dict[str, Any], places: frozenset[int] | None) -> dict[str, Any]:
    """The report of `fuse` with what was taken apart in place of what was fused; sites that were left out say nothing."""
    expanded = report.pop("fused")
    for key in ("target", "target_version", "search", "dynamic_batch"):
        report.pop(key)
    asked = [f"site-{place}" for place in sorted(places)] if places is not None else None
    if asked is not None:
        report["candidates"] = [each for each in report["candidates"] if each["id"] in asked]
        report["refused"] = sum(each["status"] == "refused" for each in report["candidates"])
    return {**report, "expanded": expanded, "asked": asked}
