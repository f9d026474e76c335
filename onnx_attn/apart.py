"""Attention taken apart: every site in plain operators, in one canonical form."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from onnx_attn.decision import Choice
from onnx_attn.given import Model, loaded_from
from onnx_attn.options import Address, Expansion, Options
from onnx_attn.reading import find_sites, site_of
from onnx_attn.result import Result, rewritten
from onnx_attn.targets.editions import parse_target


def expand(
    model: Model,
    output: str | PathLike[str] | None = None,
    *,
    opset: int | None = None,
    split_projection: bool = False,
    sites: Sequence[str] | None = None,
    verify: bool = True,
    verify_large: bool = False,
) -> Result:
    """Take attention apart into plain operators at the model's own opset (13 or later), prove it, and (with `output`) save it.

    Calls of our functions, `Attention` and `RotaryEmbedding`, and com.microsoft's attention operators become in-projection,
    heads, Q·Kᵀ, scale, masks, softmax, ·V; sites that are plain already are brought into the same order. `opset`: the model is
    brought to it as far as onnx's converter can. `split_projection`: Q, K and V are projected each by itself. `sites`: the ids of
    `inspect`, for some alone.

    Raises InputError, OutputError, UsageError, DifferenceError; nothing is written then.
    """
    target = parse_target("onnx")
    wanted = _wanted(model, sites) if sites is not None else None
    choice = Choice(
        "primitives",
        algebra=(),
        apply=sites is None,
        heads="kept",
        tokens_first=False,
        split=split_projection,
    )
    options = Options(target, choice, verify=verify, verify_large=verify_large, expansion=Expansion(wanted, opset))
    result = rewritten(model, output, options)
    result.report = _expansion_report(result.report, sites)
    return result


def _wanted(model: Model, sites: Sequence[str]) -> dict[Address, str]:
    """Where the sites of these ids lie, and their names. Raises UsageError for one that the model does not have."""
    all_sites = find_sites(loaded_from(model), parse_target("onnx"))
    found = [site_of(each, all_sites) for each in sites]
    return {each.address: each.name for each in found}


def _expansion_report(report: dict[str, Any], sites: Sequence[str] | None) -> dict[str, Any]:
    """The report of `fuse` with what was taken apart in place of what was fused; sites that were left out say nothing."""
    expanded = report.pop("fused")
    for key in ("target", "target_version", "search", "dynamic_batch"):
        report.pop(key)
    asked = sorted(set(sites), key=lambda site: int(site.removeprefix("site-"))) if sites is not None else None
    if asked is not None:
        report["candidates"] = [each for each in report["candidates"] if each["id"] in asked]
        report["refused"] = sum(each["status"] == "refused" for each in report["candidates"])
    return {**report, "expanded": expanded, "asked": asked}
