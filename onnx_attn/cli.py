"""The command line: the same verbs as the Python functions, with the exit codes of the interface."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from onnx_attn import __version__, api
from onnx_attn.engine.profiles import read_shape, read_shapes
from onnx_attn.errors import DifferenceError, OnnxAttnError, OutputError, UsageError, one_line, printable
from onnx_attn.graph.save import data_path
from onnx_attn.report.landed_terminal import show_landing
from onnx_attn.report.stats_terminal import show_stats
from onnx_attn.report.terminal import show_fusion, show_inspection, show_verification

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
Json = Annotated[str | None, typer.Option("--json", metavar="PATH|-", help="Write the report as JSON; - for stdout.")]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(f"onnx-attn {__version__}")
        raise typer.Exit


@app.command()
def inspect(
    model: ModelArgument, target: Target = "tensorrt", target_version: Version = None, json_path: Json = None
) -> None:
    """List every softmax and attention operator: site, refused (and why), or not attention (and why)."""
    with _errors():
        _check_json(json_path, model)
        report = api.inspect(model, target=target, target_version=target_version)
        if not _write_json(report, json_path):
            show_inspection(report, _console())


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
        typer.Option(help="With --search: NAME:1x3x224x224 for an input that varies, as in `land`."),
    ] = None,
    expect: Annotated[int | None, typer.Option(help="Exit 3 unless exactly N sites are fused.", metavar="N")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Rewrite without proof.")] = False,
    plan: Annotated[Path | None, typer.Option(metavar="IN.json", help="Do what this plan says.")] = None,
    write_plan: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write what was decided, to be edited and given to --plan.")
    ] = None,
    json_path: Json = None,
) -> None:
    """Rewrite every attention site in the form that the target takes, prove it, and write the model."""
    with _errors():
        read = [plan] if plan is not None else []
        _check_json(json_path, model, output, data_path(output), *read, *([write_plan] if write_plan else []))
        _check_json(str(write_plan) if write_plan else None, model, output, data_path(output), option="--write-plan")
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
            plan=plan,
        )
        if write_plan is not None:
            _write_json(result.plan, str(write_plan))
        if not _write_json(result.report, json_path):
            show_fusion(result.report, str(output), _console())


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    shapes: Annotated[list[str] | None, typer.Option(help="NAME:1x3x224x224, once an input.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="An .npz with a value for every input.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Largest max|a−b| / max|a|.")] = None,
    atol: Annotated[float, typer.Option(help="Largest max|a−b| that passes whatever the ratio.")] = 0.0,
    json_path: Json = None,
) -> None:
    """Run two models on the same inputs; exit 4 if an output differs."""
    with _errors():
        _check_json(json_path, a, b)
        sizes = _parse_shapes(shapes) if shapes else None
        report = api.verify(a, b, shapes=sizes, inputs=inputs, rtol=rtol, atol=atol)
        if not _write_json(report, json_path):
            show_verification(report, _console())
        if not report["ok"]:
            raise DifferenceError(
                f"{b}: differs from {a} (max_rel {report['max_rel']:.1e}, allowed {report['rtol']:.0e})"
            )


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
) -> None:
    """Compile with TensorRT, without a GPU, and show the kernel that every attention site reached."""
    with _errors():
        _check_json(json_path, model, *[path for path in (baseline, layer_info) if path is not None])
        report = api.land(
            model,
            baseline=baseline,
            sm=sm,
            shapes=read_shapes(shapes or []),
            compiler=compiler,
            layer_info=layer_info,
        )
        if not _write_json(report, json_path):
            show_landing(report, _console())
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
    with _errors():
        _check_json(json_path, model)
        report = api.stats(model, shapes=read_shapes(shapes or []))
        if not _write_json(report, json_path):
            show_stats(report, _console())


@app.command()
def demo() -> None:
    """Fuse a small real exported model that comes with the package, and show what happened."""
    from onnx_attn.demo import run_demo

    with _errors():
        run_demo(_console())


@contextmanager
def _errors() -> Iterator[None]:
    """Every error of ours ends as one clear line on stderr and its own exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal without → or ᵀ is no reason to fail.
    try:
        yield
        sys.stdout.flush()
    except OnnxAttnError as error:
        _fail(str(error), error.exit_code, error)
    except BrokenPipeError as error:
        # The reader has gone, as `head` does; nothing is left to be said, at the interpreter's exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from error
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"stdout: cannot be written ({one_line(error)}); free some space, or write elsewhere", 1, error)


def _fail(message: str, code: int, cause: BaseException) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(printable(message))}", highlight=False)
    raise typer.Exit(code) from cause


def _console() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)


def _check_json(path: str | None, *taken: Path, option: str = "--json") -> None:
    """Before any work: the report must have a place, and not that of a model or of any file that is no report."""
    if path is None or path == "-":
        return
    place = Path(path)
    if place.resolve() in [other.resolve() for other in taken]:
        raise UsageError(f"{option} {path}: is one of the models; give the report a name of its own")
    try:
        if place.is_dir() or not place.parent.is_dir():
            raise OutputError(f"{path}: the report cannot be written there; name a file in a folder that exists")
        if place.is_file() and place.open("rb").read(1) not in (b"", b"{"):
            raise UsageError(
                f"{option} {path}: holds something that is no report and would be lost; choose another name"
            )
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written there ({one_line(error)})") from error


def _write_json(report: dict[str, Any], path: str | None) -> bool:
    """Write the report where it was asked for; True if that is stdout, which then holds nothing else."""
    if path is None:
        return False
    text = json.dumps(_strict(report), indent=2, allow_nan=False)
    if path == "-":
        print(text)
        return True
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written ({one_line(error)}); choose another place") from error
    return False


def _strict(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = dict(map(read_shape, texts))
    if len(shapes) < len(texts):
        raise UsageError("--shapes: an input is given two shapes; a comparison runs at one")
    return shapes
