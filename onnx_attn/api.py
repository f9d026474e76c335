"""The verbs as Python functions: what the commands do, on paths or on models in memory."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from onnx_attn.algebra.choose import IDENTITIES
from onnx_attn.arguments import Shapes, capability, profile_of, searched_for
from onnx_attn.bundle import write_bundle
from onnx_attn.counting.model import statistics
from onnx_attn.decision import Choice
from onnx_attn.engine.compile import choose_toolkit
from onnx_attn.engine.profiles import fitted
from onnx_attn.errors import ExpectationError, UsageError
from onnx_attn.forms.adaptation import ISLANDS
from onnx_attn.given import Model, loaded_from, own_copy
from onnx_attn.landing import Options as LandOptions
from onnx_attn.landing import land_model
from onnx_attn.options import Options
from onnx_attn.pipeline import inspect_model
from onnx_attn.plan_file import load_plan
from onnx_attn.progress import clock, stage
from onnx_attn.report.html.page import place_of_page, write_page
from onnx_attn.report.landed import landing_report
from onnx_attn.report.reasons import headline
from onnx_attn.result import Result, rewritten
from onnx_attn.targets.editions import parse_target


def inspect(
    model: Model,
    *,
    target: str = "tensorrt",
    target_version: str | None = None,
    bundle: str | PathLike[str] | None = None,
    html: str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """Find the attention in a model and say what can be done with each candidate. Changes nothing.

    `bundle`: also write a zip for a bug report: the model's structure without its weights, this report, and versions.
    `html`: also write the report as a page to look at, with drawings.

    Raises InputError for what cannot be read, UsageError for an unknown target, OutputError.
    """
    page = place_of_page(html, model, bundle)
    loaded, parsed = loaded_from(model), parse_target(target, target_version)
    report = write_page(inspect_model(loaded, parsed, draw=page is not None), page)
    if bundle is not None:
        write_bundle(loaded, report, Path(bundle))
    return report


def fuse(
    model: Model,
    output: str | PathLike[str] | None = None,
    *,
    target: str = "tensorrt",
    target_version: str | None = None,
    form: str = "auto",
    precision: str = "keep",
    pack: bool = True,
    algebra: bool = True,
    dynamic_batch: bool = False,
    allow_recompute: bool = False,
    quantize_probabilities: bool = False,
    search: bool = False,
    sm: int | None = None,
    shapes: Shapes | None = None,
    expect: int | None = None,
    verify: bool = True,
    prove_budget: float | None = None,
    verify_large: bool = False,
    plan: dict[str, Any] | str | PathLike[str] | None = None,
    land: bool = False,
    html: str | PathLike[str] | None = None,
) -> Result:
    """Rewrite every attention site in the form that the target takes, prove it, and (with `output`) save the model.

    `model` is never changed, and the result's is of its kind. `pack`: also pack Q/K/V projections into one. `algebra`: also take
    biases and scales out of packed projections by exact identities. `expect`: fail unless exactly so many sites are fused.
    `verify`: prove each site and the whole model in ONNX Runtime. `verify_large`: run the whole model even if it is past 2 GB,
    for which it has to be in memory; `report["proof_left"]` says so where it was not run.

    `prove_budget`: seconds for the proofs of sites. One site of each kind (the same operators, types and shapes) is proved in any
    case; when the time is over, others take the certificate of the one that is like them, which it names (`like`).

    `precision`: "fp16" or "bf16" puts a half-precision island around each site of float32 that has no attention kernel else.
    `quantize_probabilities`: where Q, K and V are quantised, round the probabilities too (1/127 for int8, 1/448 for fp8). That
    changes numbers; the certificate says by how much at most (`bound`).

    `dynamic_batch`: make a batch that is baked into the model a dimension with a name. The proof gives it more entries than the
    model took: it must make of them what the original makes of so many at a time. InputError where a node does not let it.

    `allow_recompute`: also fuse sites whose attention weights somebody else reads, for whom the original softmax stays.

    `search`: ask TensorRT's compiler about each distinct site, in every form and layout that the target takes, and take what
    has the fewest kernels, then the fewest bytes; never more than without. `sm` and `shapes`, as `land` has them: what the
    engine will be built for, since which is best depends on it.

    `plan`: an earlier result's plan, perhaps edited (its file or itself); it says how every site is written.

    `land`: also compile the model before and after, and put what `land` reports into the report. `html`: also write the report
    as a page to look at, with drawings of every site before and after.

    Raises InputError, OutputError, UsageError, ExpectationError, DifferenceError; nothing is written then.
    """
    if precision not in ("keep", *ISLANDS):
        raise UsageError(f"unknown precision {precision!r}; choose keep, {' or '.join(ISLANDS)}")
    choice = Choice(
        form,
        pack,
        IDENTITIES if algebra else (),
        precision=precision,
        quantize_probabilities=quantize_probabilities,
        recompute=allow_recompute,
    )
    if prove_budget is not None and not (verify and 0 <= prove_budget < float("inf")):
        raise UsageError("prove_budget is a number of seconds for the proof; leave it out where nothing is proved")
    if expect is not None and (isinstance(expect, bool) or not isinstance(expect, int)):
        raise UsageError(f"expect {expect!r} is no whole number; give the number of sites")
    page = place_of_page(html, model, output, plan)
    asked = searched_for(search, land, sm, shapes, target)
    if land:
        _check_landing(model, shapes, dynamic_batch)
    if plan is None:
        options = Options(
            parse_target(target, target_version),
            choice,
            expect,
            verify,
            search=asked,
            dynamic_batch=dynamic_batch,
        )
    else:
        given = load_plan(plan if isinstance(plan, dict) else Path(plan))
        wanted = parse_target(target, target_version)
        other = (target, target_version) != ("tensorrt", None) and wanted != given.target
        if choice != Choice() or asked is not None or other or dynamic_batch:
            raise UsageError(
                f"{given.name}: the plan says target, form, changes, packing, algebra and whether the batch is made dynamic; "
                f"leave these options out, and search"
            )
        options = Options(given.target, choice, expect, verify, plan=given, dynamic_batch=given.dynamic_batch)
    options = replace(options, prove_budget=prove_budget, verify_large=verify_large, draw=page is not None)
    result = rewritten(model, output, options)
    if land:
        written = output if output is not None else result.model
        with clock(result.report["seconds"], "land"):
            result.report["land"] = _landed(written, model, sm, shapes)
    result.report = write_page(result.report, page)
    return result


def _check_landing(model: Model, shapes: Shapes | None, dynamic_batch: bool) -> None:
    """Before any work: is there a compiler, and do the shapes fit?"""
    choose_toolkit(None)
    if dynamic_batch:
        raise UsageError(
            "land compiles before and after at the same shapes; leave it out, and land the result by itself"
        )
    loaded = loaded_from(model)
    fitted(loaded.proto, profile_of(shapes or {}), loaded.name)


def _landed(written: Model, original: Model, sm: int | None, shapes: Shapes | None) -> dict[str, Any]:
    return land(written, baseline=original, sm=sm, shapes=shapes)


def land(
    model: Model,
    *,
    baseline: Model | None = None,
    sm: int | None = None,
    shapes: Shapes | None = None,
    expect_all: bool = False,
    compiler: str | None = None,
    layer_info: str | PathLike[str] | None = None,
    timeout: float = 600.0,
    html: str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """Compile a model with TensorRT, which needs no GPU for that, and report the kernel of every attention site.

    baseline: another model to compile alike, such as the one before fusing.
    sm: compute capability of the GPU that is compiled for, times ten: 75, 80, 86, 89 (if left out), 120, 121.
    shapes: for each input that varies, one shape, two (smallest, largest) or three (smallest, usual, largest).
    expect_all: fail unless the model builds and every site lands.
    compiler: `tensorrt_rtx` or, on a machine with a GPU, `tensorrt`; the first that is installed if left out.
    layer_info: do not compile, but read what TensorRT wrote of the model's engine (`trtexec --exportLayerInfo`).
    timeout: seconds for each build.
    html: also write the report as a page to look at.

    A model that does not build is reported (`built` is false). Raises InputError, UsageError, ExpectationError, and
    OnnxAttnError where no compiler is installed.
    """
    if baseline is not None and layer_info is not None:
        raise UsageError("layer_info describes one engine; land the baseline by itself")
    capability(sm)
    if not timeout > 0:
        raise UsageError("timeout is in seconds; give a number above 0")
    page, info = place_of_page(html, model, baseline, layer_info), Path(layer_info) if layer_info else None
    options = LandOptions(sm, profile_of(shapes or {}), compiler, timeout, info, draw=page is not None)
    found = [
        land_model(own_copy(entry), Path(entry) if isinstance(entry, str | PathLike) else None, options)
        for entry in ([model] if baseline is None else [model, baseline])
    ]
    report = write_page(landing_report(*found), page)
    if expect_all:
        check_all_landed(report)
    return report


def stats(model: Model, *, shapes: Shapes | None = None) -> dict[str, Any]:
    """Count a model: nodes by operator and role, operations exposed per attention, FLOPs, parameters, and the bytes that live at
    a time, with attention written out and with it fused; by site and in total. Changes nothing.

    shapes: one shape for each input that varies. Without, what depends on a dimension that varies is a polynomial in its name,
    as text, or null where that cannot be said.

    Raises InputError for what cannot be read, UsageError for shapes that do not fit.
    """
    with stage("count"):
        return statistics(loaded_from(model), profile_of(shapes or {}))


def check_all_landed(report: dict[str, Any]) -> None:
    """Raise ExpectationError unless the model of a report of `land` builds and every site lands."""
    if not report["built"]:
        raise ExpectationError(f"{report['model']}: does not build: {headline(report['errors'])}", report)
    missing = [site["site"] for site in report["per_site"] if not site["landed"]]
    if missing:
        raise ExpectationError(
            f"{report['model']}: {report['landed']} of {report['sites']} sites landed, '{missing[0]}' did not; "
            f"the report says why",
            report,
        )
