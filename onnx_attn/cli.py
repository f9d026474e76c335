"""The command line: the same verbs as the Python functions, with the exit codes of the interface."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from onnx_attn import __version__, api
from onnx_attn.errors import DifferenceError, InputError, OnnxAttnError, OutputError, UsageError, one_line
from onnx_attn.report.terminal import show_fusion, show_inspection, show_verification

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find attention in exported ONNX models, rewrite it for fused kernels, and prove that nothing changed.",
)

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX model; never changed.")]
Target = Annotated[str, typer.Option(help="Runtime that will read the model: tensorrt, onnx or onnxruntime.")]
Version = Annotated[str | None, typer.Option(help="TensorRT version: 8.6, 10.0 … 11.x, or rtx.")]
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
        report = api.inspect(model, target=target, target_version=target_version)
        if not _write_json(report, json_path):
            show_inspection(report, _console())


@app.command()
def fuse(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="The fused model.")],
    target: Target = "tensorrt",
    target_version: Version = None,
    form: Annotated[str, typer.Option(help="auto, function or primitives.")] = "auto",
    no_pack: Annotated[bool, typer.Option("--no-pack", help="Leave the Q/K/V projections as they are.")] = False,
    expect: Annotated[int | None, typer.Option(help="Exit 3 unless exactly N sites are fused.", metavar="N")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Rewrite without proof.")] = False,
    json_path: Json = None,
) -> None:
    """Rewrite every attention site in the form that the target takes, prove it, and write the model."""
    with _errors():
        result = api.fuse(
            model,
            output,
            target=target,
            target_version=target_version,
            form=form,
            pack=not no_pack,
            expect=expect,
            verify=not no_verify,
        )
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
        values = _read_inputs(inputs) if inputs is not None else None
        sizes = _parse_shapes(shapes) if shapes else None
        report = api.verify(a, b, shapes=sizes, inputs=values, rtol=rtol, atol=atol)
        if not _write_json(report, json_path):
            show_verification(report, _console())
        if not report["ok"]:
            raise DifferenceError(
                f"{b}: differs from {a} (max_rel {report['max_rel']:.1e}, allowed {report['rtol']:.0e})"
            )


@app.command()
def demo() -> None:
    """Fuse a small real exported model that comes with the package, and show what happened."""
    from onnx_attn.demo import run_demo

    with _errors():
        run_demo(_console())


@contextmanager
def _errors() -> Iterator[None]:
    """Every error of ours ends as one clear line on stderr and its own exit code."""
    try:
        yield
    except OnnxAttnError as error:
        message = "".join(char if char.isprintable() else "�" for char in str(error))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
        raise typer.Exit(error.exit_code) from error


def _console() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)


def _write_json(report: dict[str, Any], path: str | None) -> bool:
    """Write the report where it was asked for; True if that is stdout, which then holds nothing else."""
    if path is None:
        return False
    text = json.dumps(report, indent=2, default=_plain)
    if path == "-":
        print(text)
        return True
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written ({one_line(error)})") from error
    return False


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a report")


def _read_inputs(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as .npz ({one_line(error)})") from error


def _parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        match = re.fullmatch(r"(.+):(\d+(?:x\d+)*)", text)
        if match is None:
            raise UsageError(f"--shapes '{text}': write NAME:1x3x224x224")
        shapes[match[1]] = tuple(int(size) for size in match[2].split("x"))
    return shapes
