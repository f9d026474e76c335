"""The command line: the same verbs as the Python functions, with the exit codes of the interface."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnx_attn import __version__, apart, api
from onnx_attn.cut_out import extract as extract_site
from onnx_attn.engine.profiles import read_shape, read_shapes
from onnx_attn.errors import DifferenceError, UsageError
from onnx_attn.report.landed_terminal import show_landing
from onnx_attn.report.stats_terminal import show_stats
from onnx_attn.report.terminal import show_expansion, show_extraction, show_fusion, show_inspection, show_verification
from onnx_attn.shell import check_json, console, errors, write_json

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find attention in exported ONNX models, rewrite it for fused kernels, and prove that nothing changed.",
)

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX model; never changed.")]
Target = Annotated[str, typer.Option(help="Runtime that will read the model: tensorrt, onnx or onnxruntime.")]
Version = Annotated[str | None, typer.Option(help="TensorRT version: 8.6, 10.0 … 11.x, or rtx.")]
Sm = Annotated[int | None, typer.Option(help="Compute capability × 10 of the GPU: 75, 80, 86, 89 (default), 120, 121.")]
VerifyLarge = Annotated[bool, typer.Option("--verify-large", help="Run the model whole even if it is past 2 GB.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="PATH", help="Write the report as a page, with drawings of the sites.")
]
Json = Annotated[str | None, typer.Option("--json", metavar="PATH|-", help="Write the report as JSON; - for stdout.")]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(f"onnx-attn {__version__}")
        raise typer.Exit


@app.command()
def inspect(
    model: ModelArgument,
    target: Target = "tensorrt",
    target_version: Version = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Write a zip for a bug report: the model's structure without its weights."),
    ] = None,
    json_path: Json = None,
    html: Html = None,
) -> None:
    """List every softmax and attention operator: site, refused (and why), or not attention (and why)."""
    with errors():
        check_json(json_path, model, *filter(None, (bundle, html)))
        report = api.inspect(model, target=target, target_version=target_version, bundle=bundle, html=html)
        if not write_json(report, json_path):
            show_inspection(report, console())


@app.command()
def fuse(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The fused model.")],
    target: Target = "tensorrt",
    target_version: Version = None,
    form: Annotated[str, typer.Option(help="auto, function, primitives, attention or (onnxruntime) contrib.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="keep, or fp16 / bf16: a half-precision island around float32 sites.")
    ] = "keep",
    no_pack: Annotated[bool, typer.Option("--no-pack", help="Leave the Q/K/V projections as they are.")] = False,
    no_algebra: Annotated[bool, typer.Option("--no-algebra", help="Leave biases and scales where they are.")] = False,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Make a batch that is baked into the model a dynamic dimension.")
    ] = False,
    quantize_probabilities: Annotated[
        bool,
        typer.Option(
            "--quantize-probabilities",
            help="Round the softmax's result too where Q, K and V are quantised; changes numbers.",
        ),
    ] = False,
    allow_recompute: Annotated[
        bool,
        typer.Option("--allow-recompute", help="Also fuse sites whose attention weights are read elsewhere."),
    ] = False,
    search: Annotated[
        bool,
        typer.Option("--search", help="Ask TensorRT's compiler for the best form and layout of each kind of site."),
    ] = False,
    sm: Sm = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="With --search or --land: NAME:1x3x224x224 for an input that varies, as in `land`."),
    ] = None,
    expect: Annotated[int | None, typer.Option(help="Exit 3 unless exactly N sites are fused.", metavar="N")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Rewrite without proof.")] = False,
    prove_budget: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For the proofs of sites; then one stands for all that are like it."),
    ] = None,
    verify_large: VerifyLarge = False,
    plan: Annotated[Path | None, typer.Option(metavar="IN.json", help="Do what this plan says.")] = None,
    write_plan: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write what was decided, to be edited and given to --plan.")
    ] = None,
    land: Annotated[
        bool, typer.Option("--land", help="Compile before and after with TensorRT, without a GPU, as `land` does.")
    ] = False,
    json_path: Json = None,
    html: Html = None,
) -> None:
    """Rewrite every attention site in the form that the target takes, prove it, and write the model."""
    with errors():
        check_json(json_path, model, output, *filter(None, (plan, write_plan, html)))
        check_json(
            str(write_plan) if write_plan else None, model, output, *filter(None, (html,)), option="--write-plan"
        )
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
        if not write_json(result.report, json_path):
            show_fusion(result.report, str(output), console())
            if land:
                show_landing(result.report["land"], console())


Sites = Annotated[list[str] | None, typer.Option("--site", metavar="ID", help="An id of `inspect`; may be repeated.")]


@app.command()
def expand(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The model in plain operators.")],
    opset: Annotated[int | None, typer.Option(metavar="N", help="Bring the model to this opset, if it can be.")] = None,
    split_projection: Annotated[
        bool, typer.Option("--split-projection", help="Project Q, K and V each by itself.")
    ] = False,
    site: Sites = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Take apart without proof.")] = False,
    verify_large: VerifyLarge = False,
    json_path: Json = None,
) -> None:
    """Take every attention apart into plain operators, in one canonical form, prove it, and write the model."""
    with errors():
        check_json(json_path, model, output)
        result = apart.expand(
            model,
            output,
            opset=opset,
            split_projection=split_projection,
            sites=site,
            verify=not no_verify,
            verify_large=verify_large,
        )
        if not write_json(result.report, json_path):
            show_expansion(result.report, str(output), console())


@app.command()
def extract(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The site as a model of its own.")],
    site: Annotated[str, typer.Option("--site", metavar="ID", help="An id of `inspect`.")],
    json_path: Json = None,
) -> None:
    """Cut one site out, with its projections, as a model that runs."""
    with errors():
        check_json(json_path, model, output)
        report = extract_site(model, site, output)
        if not write_json(report, json_path):
            show_extraction(report, str(output), console())


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    shapes: Annotated[list[str] | None, typer.Option(help="NAME:1x3x224x224, once an input.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="An .npz with a value for every input.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Largest max|a−b| / max|a|.")] = None,
    atol: Annotated[float, typer.Option(help="Largest max|a−b| that passes whatever the ratio.")] = 0.0,
    certificate: Annotated[
        Path | None, typer.Option(metavar="F", help="What `fuse --json` wrote: each site is checked again.")
    ] = None,
    json_path: Json = None,
) -> None:
    """Run two models on the same inputs; exit 4 if an output differs."""
    with errors():
        check_json(json_path, a, b, *([certificate] if certificate is not None else []))
        sizes = _parse_shapes(shapes) if shapes else None
        report = api.verify(a, b, shapes=sizes, inputs=inputs, rtol=rtol, atol=atol, certificate=certificate)
        if not write_json(report, json_path):
            show_verification(report, console())
        if not report["ok"]:
            failed = [each["site"] for each in report["certificates"] or () if each["ok"] is False]
            by = f"(max_rel {report['max_rel']:.1e}, allowed {report['rtol']:.0e})"
            at = f"at {', '.join(failed)}, whose certificate does not hold"
            raise DifferenceError(f"{b}: differs from {a} {at if failed else by}")


@app.command()
def land(
    model: ModelArgument,
    baseline: Annotated[Path | None, typer.Option(metavar="MODEL0", help="Compile this one too, and compare.")] = None,
    sm: Sm = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="NAME:1x3x224x224 for an input that varies; again for the largest, or usual and largest."),
    ] = None,
    expect_all: Annotated[
        bool, typer.Option("--expect-all", help="Exit 3 unless it builds and every site lands.")
    ] = False,
    compiler: Annotated[str | None, typer.Option(help="tensorrt_rtx (no GPU needed) or tensorrt.")] = None,
    layer_info: Annotated[
        Path | None, typer.Option(metavar="F", help="Read trtexec --exportLayerInfo of the engine; compile nothing.")
    ] = None,
    json_path: Json = None,
    html: Html = None,
) -> None:
    """Compile with TensorRT, without a GPU, and show the kernel that every attention site reached."""
    with errors():
        check_json(json_path, model, *filter(None, (baseline, layer_info, html)))
        report = api.land(
            model,
            baseline=baseline,
            sm=sm,
            shapes=read_shapes(shapes or []),
            compiler=compiler,
            layer_info=layer_info,
            html=html,
        )
        if not write_json(report, json_path):
            show_landing(report, console())
        if expect_all:
            api.check_all_landed(report)


@app.command()
def stats(
    model: ModelArgument,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="NAME:1x3x224x224, once for an input that varies; else in the dimensions' names."),
    ] = None,
    json_path: Json = None,
) -> None:
    """Count nodes by role, FLOPs, parameters and memory, with attention written out and with it fused."""
    with errors():
        check_json(json_path, model)
        report = api.stats(model, shapes=read_shapes(shapes or []))
        if not write_json(report, json_path):
            show_stats(report, console())


@app.command()
def demo() -> None:
    """Fuse a small real exported model that comes with the package, and show what happened."""
    from onnx_attn.demo import run_demo

    with errors():
        run_demo(console())


def _parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = dict(map(read_shape, texts))
    if len(shapes) < len(texts):
        raise UsageError("--shapes: an input is given two shapes; a comparison runs at one")
    return shapes
