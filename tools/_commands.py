"""What the scripts share: errors as one line and an exit code, files whole or not at all, and command lines to paste."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from onnx_attn.engine.profiles import Profile, is_fixed
from onnx_attn.errors import OnnxAttnError, OutputError, UsageError, one_line, printable
from onnx_attn.graph.save import check_output


class Parser(argparse.ArgumentParser):
    """argparse, its errors in the one line that every command of this project prints."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a script; what a caller can mend ends as `error: …` on stderr and the project's exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr] # A terminal without → is no reason to fail.
    try:
        sys.exit(main(sys.argv[1:]))
    except OnnxAttnError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # The reader has gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        print(f"error: {printable(one_line(error))}; free some space, or write elsewhere", file=sys.stderr)
        sys.exit(1)


def check_outputs(inputs: Iterable[Path | None], *outputs: Path | None) -> None:
    """Before any work: each output has a place of its own, and none is an input's. Raises OutputError, UsageError."""
    asked = [path for path in outputs if path is not None]
    for path in asked:
        for model in inputs:
            check_output(path, model)
    if len({path.resolve() for path in asked}) < len(asked):
        raise UsageError(f"{asked[-1]}: is asked for twice; give each output a name of its own")


def check_json(path: Path | None) -> None:
    """What stands where JSON will be written is JSON already, and no weights or other file that would be lost."""
    try:
        if path is not None and path.exists() and path.open("rb").read(1) not in (b"", b"{", b"["):
            raise UsageError(f"{path}: holds something that is no JSON and would be lost; choose another name")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({one_line(error)}); choose another place") from error


def write_whole(path: Path, content: str) -> None:
    """Write a text file beside its place, then rename it. Raises OutputError."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({one_line(error)}); choose another place") from error


def fused_name(model: Path) -> str:
    """How the printed commands call the fused model where the caller has not named it."""
    return f"{model.stem}.fused.onnx"


def line(*words: str | Path | None, **environment: str) -> str:
    """A shell's command line of these words; None is left out."""
    settings = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
    return " ".join([*settings, shlex.join(str(word) for word in words if word is not None)])


def trtexec_shapes(shapes: Profile) -> list[str]:
    """`--shapes`, or `--minShapes`, `--optShapes` and `--maxShapes`, as trtexec and tensorrt_rtx write them."""
    if not shapes:
        return []
    kinds = {"shapes": 1} if is_fixed(shapes) else {"minShapes": 0, "optShapes": 1, "maxShapes": 2}
    return [f"--{kind}={_written(shapes, place)}" for kind, place in kinds.items()]


def _written(shapes: Profile, place: int) -> str:
    """Names that hold a `:` or `,` stand in quotes of their own there."""
    names = {name: name if re.fullmatch(r"[^:,']+", name) else f"'{name}'" for name in shapes}
    return ",".join(f"{names[name]}:{'x'.join(map(str, three[place]))}" for name, three in shapes.items())


def polygraphy_shapes(shapes: Profile) -> list[str]:
    """The same for polygraphy."""
    words = []
    for place, kind in enumerate(("min", "opt", "max") if shapes else ()):
        values = [f"{name}:[{','.join(map(str, three[place]))}]" for name, three in shapes.items()]
        words += [f"--trt-{kind}-shapes", *values]
    return words


def polygraphy_comparison(original: Path, fused: Path, inputs: Path, bounds: Mapping[str, float]) -> list[str]:
    """Two runs of polygraphy, the second of which compares. polygraphy bounds max|a − b| of an output, and takes NaN for a
    difference wherever it stands.
    """
    outputs = Path(f"{original.stem}.outputs.json")
    runtime = ["--onnxrt", "--graph-optimization-level", "ORT_DISABLE_ALL", "--load-inputs", str(inputs)]
    judged = [
        "--check-error-stat",
        "max",
        "--rtol",
        "0",
        "--atol",
        *(f"{key}:{size:.9g}" for key, size in bounds.items()),
    ]
    return [
        line("polygraphy", "run", original, *runtime, "--save-outputs", outputs),
        line("polygraphy", "run", fused, *runtime, "--load-outputs", outputs, *judged),
    ]


def typed(toolkit: str, version: str) -> str | None:
    """trtexec's flag for types as the graph has them: TensorRT 11 and TensorRT for RTX know no other way, 8 not this one."""
    major = int(version.partition(".")[0])
    return "--stronglyTyped" if toolkit == "tensorrt" and 9 <= major < 11 else None


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of one set of columns, aligned."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  " + "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in lines
    )
