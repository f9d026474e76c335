"""The command line: the same verbs as the Python functions, with the exit codes of the interface."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from onnx_attn import __version__, apart, api
from onnx_attn import cli_options as given
from onnx_attn.cut_out import extract as extract_site
from onnx_attn.engine.profiles import read_shape, read_shapes
from onnx_attn.errors import DifferenceError, UsageError
from onnx_attn.report.landed_terminal import show_landing
from onnx_attn.report.stats_terminal import show_stats
from onnx_attn.report.terminal import show_expansion, show_extraction, show_fusion, show_inspection
from onnx_attn.report.verified_terminal import show_verification
from onnx_attn.shell import Voice, check_json, errors, write_json
from onnx_attn.verification import verify as verify_models


def _example(*lines: str, head: str = "Example") -> str:
    """The end of a help text. Two line breaks are one there; one is none."""
    return "\n\n".join((f"[bold]{head}[/]", *lines))


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find attention in exported ONNX models, rewrite it for fused kernels, and prove that nothing changed.",
    epilog=_example(
        "onnx-attn inspect model.onnx",
        "onnx-attn fuse model.onnx -o fused.onnx",
        head="Where to begin: what is in a model, then the same model fused and proved",
    ),
)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(f"onnx-attn {__version__}")
        raise typer.Exit


@app.command(epilog=_example("onnx-attn inspect model.onnx --target-version 10.0 --verbose"))
def inspect(
    model: given.ModelPath,
    target: given.Target = "tensorrt",
    target_version: given.Version = None,
    bundle: given.Bundle = None,
    json_path: given.Json = None,
    html: given.Html = None,
    quiet: given.Quiet = False,
    verbose: given.Verbose = False,
) -> None:
    """List every softmax and attention operator: site, refused (and why), or not attention (and why)."""
    with errors():
        voice = Voice(quiet, verbose, json_path)
        check_json(json_path, model, *filter(None, (bundle, html)))
        with voice.working():
            report = api.inspect(model, target=target, target_version=target_version, bundle=bundle, html=html)
        voice.tell(report, show_inspection)


@app.command(
    epilog=_example(
        "onnx-attn fuse model.onnx -o fused.onnx --json report.json",
        "onnx-attn fuse model.onnx -o half.onnx --precision fp16 --target-version rtx",
    )
)
def fuse(
    model: given.ModelPath,
    output: given.Fused,
    target: given.Target = "tensorrt",
    target_version: given.Version = None,
    form: given.Form = "auto",
    precision: given.Precision = "keep",
    search: given.Search = False,
    sm: given.Sm = None,
    land: given.Land = False,
    shapes: given.SearchShapes = None,
    no_pack: given.NoPack = False,
    no_algebra: given.NoAlgebra = False,
    dynamic_batch: given.DynamicBatch = False,
    quantize_probabilities: given.QuantizeProbabilities = False,
    allow_recompute: given.AllowRecompute = False,
    expect: given.Expect = None,
    no_verify: given.NoVerify = False,
    prove_budget: given.ProveBudget = None,
    verify_large: given.VerifyLarge = False,
    plan: given.PlanPath = None,
    write_plan: given.WritePlan = None,
    json_path: given.Json = None,
    html: given.Html = None,
    quiet: given.Quiet = False,
    verbose: given.Verbose = False,
) -> None:
    """Rewrite every attention site in the form that the target takes, prove it, and write the model."""
    with errors():
        voice = Voice(quiet, verbose, json_path)
        pages = [html] if html is not None else []
        check_json(json_path, model, output, *filter(None, (plan, write_plan)), *pages)
        check_json(str(write_plan) if write_plan else None, model, output, *pages, option="--write-plan")
        with voice.working():
            result = api.fuse(
                model,
                output,
                target=target,
                target_version=target_version,
                form=form,
                precision=precision,
                pack=not no_pack,
                algebra=not no_algebra,
                dynamic_batch=dynamic_batch,
                quantize_probabilities=quantize_probabilities,
                allow_recompute=allow_recompute,
                search=search,
                sm=sm,
                shapes=read_shapes(shapes or []),
                expect=expect,
                verify=not no_verify,
                prove_budget=prove_budget,
                verify_large=verify_large,
                plan=plan,
                land=land,
                html=html,
            )
        if write_plan is not None:
            write_json(result.plan, str(write_plan))
        voice.tell(result.report, partial(show_fusion, output=str(output)))


@app.command(epilog=_example("onnx-attn expand fused.onnx -o plain.onnx --split-projection"))
def expand(
    model: given.ModelPath,
    output: given.Plain,
    opset: given.Opset = None,
    split_projection: given.SplitProjection = False,
    site: given.Sites = None,
    no_verify: given.NoVerify = False,
    verify_large: given.VerifyLarge = False,
    json_path: given.Json = None,
    quiet: given.Quiet = False,
    verbose: given.Verbose = False,
) -> None:
    """Take every attention apart into plain operators, in one canonical form, prove it, and write the model."""
    with errors():
        voice = Voice(quiet, verbose, json_path)
        check_json(json_path, model, output)
        with voice.working():
            result = apart.expand(
                model,
                output,
                opset=opset,
                split_projection=split_projection,
                sites=site,
                verify=not no_verify,
                verify_large=verify_large,
            )
        voice.tell(result.report, partial(show_expansion, output=str(output)))


@app.command(epilog=_example("onnx-attn extract model.onnx --site site-0 -o site.onnx"))
def extract(
    model: given.ModelPath,
    output: given.CutOut,
    site: given.Site,
    json_path: given.Json = None,
    quiet: given.Quiet = False,
    verbose: given.Verbose = False,
) -> None:
    """Cut one site out, with its projections, as a model that runs."""
    with errors():
        voice = Voice(quiet, verbose, json_path)
        check_json(json_path, model, output)
        with voice.working():
            report = extract_site(model, site, output)
        voice.tell(report, partial(show_extraction, output=str(output)))


@app.command(epilog=_example("onnx-attn verify model.onnx fused.onnx --certificate report.json"))
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The model that is right, such as the one before fusing.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The model that should do the same.")],
    shapes: given.RunShapes = None,
    inputs: given.Inputs = None,
    rtol: given.Rtol = None,
    atol: given.Atol = 0.0,
    certificate: given.CertificatePath = None,
    json_path: given.Json = None,
    quiet: given.Quiet = False,
    verbose: given.Verbose = False,
) -> None:
    """Run two models on the same inputs; exit 4 if an output differs."""
    with errors():
        voice = Voice(quiet, verbose, json_path)
        check_json(json_path, a, b, *([certificate] if certificate is not None else []))
        sizes = _parse_shapes(shapes) if shapes else None
        with voice.working():
            report = verify_models(a, b, shapes=sizes, inputs=inputs, rtol=rtol, atol=atol, certificate=certificate)
        voice.tell(report, show_verification)
        if not report["ok"]:
            failed = [each["site"] for each in report["certificates"] or () if each["ok"] is False]
            by = f"(max_rel {report['max_rel']:.1e}, allowed {report['rtol']:.0e})"
            at = f"at {', '.join(failed)}, whose certificate does not hold"
            raise DifferenceError(f"{b}: differs from {a} {at if failed else by}")


@app.command(epilog=_example("onnx-attn land fused.onnx --baseline model.onnx --sm 86"))
def land(
    model: given.ModelPath,
    baseline: given.Baseline = None,
    layer_info: given.LayerInfo = None,
    sm: given.Sm = None,
    shapes: given.Range = None,
    compiler: given.CompilerName = None,
    expect_all: given.ExpectAll = False,
    json_path: given.Json = None,
    html: given.Html = None,
    quiet: given.Quiet = False,
    verbose: given.Verbose = False,
) -> None:
    """Compile with TensorRT, without a GPU, and show the kernel that every attention site reached."""
    with errors():
        voice = Voice(quiet, verbose, json_path)
        check_json(json_path, model, *filter(None, (baseline, layer_info, html)))
        with voice.working():
            report = api.land(
                model,
                baseline=baseline,
                sm=sm,
                shapes=read_shapes(shapes or []),
                compiler=compiler,
                layer_info=layer_info,
                html=html,
            )
        voice.tell(report, show_landing)
        if expect_all:
            api.check_all_landed(report)


@app.command(epilog=_example("onnx-attn stats model.onnx --json stats.json"))
def stats(
    model: given.ModelPath,
    shapes: given.CountShapes = None,
    json_path: given.Json = None,
    quiet: given.Quiet = False,
    verbose: given.Verbose = False,
) -> None:
    """Count nodes by role, FLOPs, parameters and memory, with attention written out and with it fused."""
    with errors():
        voice = Voice(quiet, verbose, json_path)
        check_json(json_path, model)
        with voice.working():
            report = api.stats(model, shapes=read_shapes(shapes or []))
        voice.tell(report, show_stats)


@app.command(epilog=_example("onnx-attn demo"))
def demo(quiet: given.Quiet = False, verbose: given.Verbose = False) -> None:
    """Fuse a small real exported model that comes with the package, and show what happened."""
    from onnx_attn.demo import fuse_demo, show_demo

    with errors():
        voice = Voice(quiet, verbose)
        with voice.working():
            report = fuse_demo()
        voice.tell(report, show_demo)


def _parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = dict(map(read_shape, texts))
    if len(shapes) < len(texts):
        raise UsageError("--shapes: an input is given two shapes; a comparison runs at one")
    return shapes
