"""Ask TensorRT what it makes of a model. TensorRT for RTX compiles on the CPU, for any GPU, without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from onnx_attn.engine.inspector import parse_inspector
from onnx_attn.engine.kernels import Engine, Kernel
from onnx_attn.engine.log import parse_layers
from onnx_attn.engine.profiles import Profile
from onnx_attn.errors import InputError, OnnxAttnError, OutputError, UsageError, one_line

TOOLKITS = ("tensorrt_rtx", "tensorrt")
"""The compilers by their module: TensorRT for RTX, which needs no GPU, and full TensorRT, which builds for the GPU at hand."""

_ROOT = Path(__file__).parents[2]


def toolkits() -> list[str]:
    """The compilers that are installed here, the preferred one first; none without polygraphy, which drives them."""
    return [name for name in TOOLKITS if util.find_spec(name) and util.find_spec("polygraphy")]


def choose_toolkit(asked: str | None = None) -> str:
    """The compiler that was asked for, else the first that is installed.

    Raises UsageError for one that does not exist, OnnxAttnError, which names the extra to install, where it is not there.
    """
    if asked is not None and asked not in TOOLKITS:
        raise UsageError(f"unknown compiler '{asked}'; choose {' or '.join(TOOLKITS)}")
    found = toolkits()
    if asked == "tensorrt" and asked not in found:
        raise OnnxAttnError(
            "tensorrt and polygraphy are not both installed; install them: pip install tensorrt polygraphy"
        )
    if not found or (asked is not None and asked not in found):
        missing = [name for name in ("tensorrt_rtx", "polygraphy") if util.find_spec(name) is None]
        raise OnnxAttnError(
            f"{' and '.join(missing)} not installed; install the extra: pip install 'onnx-attn[tensorrt]', "
            f"in a clone '.[tensorrt]'"
        )
    return asked or found[0]


def compiler(toolkit: str | None = None) -> str:
    """Name and version of the compiler, as `tensorrt_rtx 1.7.1`. Raises as `choose_toolkit`."""
    chosen = choose_toolkit(toolkit)
    version = metadata.version(chosen).split(".")
    return f"{chosen} {'.'.join(version[:3])}"


def _death(status: int, noise: str) -> str:
    """How the child ended, where it gave no answer."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        return f"the compiler crashed with signal {name}"
    lines = [line.strip() for line in noise.splitlines() if line.strip()]
    return f"the compiler's process ended with status {status}: {lines[-1] if lines else 'no message'}"


def _ask(request: Path, answer: Path, timeout: float) -> str | None:
    """Run the child; returns what went wrong, None if there is an answer."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "onnx_attn.engine.child", str(request), str(answer)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        run = subprocess.run(command, env=environment, capture_output=True, timeout=timeout, cwd=request.parent)
    except subprocess.TimeoutExpired:
        return f"the compiler was stopped after {timeout:g} seconds"
    if answer.exists() and run.returncode >= 0:
        return None
    return _death(run.returncode, run.stderr.decode(errors="replace"))


def _engine(name: str, sm: int, told: dict[str, Any]) -> Engine:
    kernels: tuple[Kernel, ...] = ()
    errors, unread = tuple(told["errors"]), None
    try:
        if told.get("inspector") is not None:
            kernels = parse_inspector(told["inspector"])
        else:
            for message in told["layers"] if told["built"] else ():
                kernels += parse_layers(message)
    except ValueError as error:
        unread = f"the report of {name} cannot be read: {error}"
        kernels, errors = (), (*errors, unread)
    return Engine(name, told.get("sm", sm), told["built"], kernels, errors, frozenset(told["pattern"]), unread)


def _keep(draft: Path, engine: Path) -> None:
    """Put the engine in its place: whole or not at all."""
    beside = engine.with_name(f"{engine.name}.part")
    try:
        beside.write_bytes(draft.read_bytes())
        beside.replace(engine)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OutputError(
            f"{engine}: the engine cannot be written ({one_line(error)}); choose another place"
        ) from error


def compile_model(
    path: str | Path,
    sm: int = 89,
    shapes: Profile | None = None,
    timeout: float = 600,
    *,
    toolkit: str | None = None,
    engine: Path | None = None,
    timing_cache: Path | None = None,
    optimization_level: int | None = None,
) -> Engine:
    """Compile an ONNX file and return the engine's kernels; what does not build comes back with `built` False.

    sm: the compute capability times ten: 75, 80, 86, 89, 120, 121. Full TensorRT builds for the GPU at hand instead.
    shapes: for each input with varying dimensions the smallest, usual and largest shape (elements).
    timeout: in seconds.
    toolkit: `tensorrt_rtx` or `tensorrt`; the first that is installed if left out.
    engine: where the serialized engine goes, if it is wanted.
    timing_cache: read and updated; of full TensorRT only.
    A crash of the compiler is an error of the engine, not of the caller: the build runs in a process of its own.

    Raises InputError where there is no such file, UsageError for a target or an option that the compiler does not have,
    OutputError where the engine cannot be written, OnnxAttnError where the compiler is not installed. Source: the
    compiler's own log (log.py), for full TensorRT its engine inspector (inspector.py).
    """
    chosen = choose_toolkit(toolkit)
    name, model = compiler(chosen), Path(path).resolve()
    if not model.is_file():
        raise InputError(f"{path}: no such file; pass the path of an ONNX model")
    if timing_cache is not None and chosen != "tensorrt":
        raise UsageError(
            "a timing cache is for full TensorRT; TensorRT for RTX times nothing when it builds; leave it out"
        )
    asked = {
        "toolkit": chosen,
        "model": str(model),
        "sm": sm,
        "shapes": {key: _plain(every) for key, every in (shapes or {}).items()},
        "timing_cache": str(timing_cache.resolve()) if timing_cache is not None else None,
        "level": optimization_level,
    }
    told = _told(asked, timeout, engine)
    return Engine(name, sm, False, (), (told,)) if isinstance(told, str) else _engine(name, sm, told)


def _told(asked: dict[str, Any], timeout: float, engine: Path | None) -> dict[str, Any] | str:
    """The child's answer, its engine put where it is wanted; what went wrong where there is none."""
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        request, answer, draft = (Path(folder, name) for name in ("request.json", "answer.json", "model.engine"))
        request.write_text(json.dumps(asked | {"engine": str(draft) if engine is not None else None}))
        wrong = _ask(request, answer, timeout)
        if wrong is not None:
            return wrong
        told: dict[str, Any] = json.loads(answer.read_text())
        if told["refused"]:
            raise UsageError(told["refused"])
        if engine is not None and told["built"]:
            _keep(draft, engine)
    return told


def _plain(every: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[int(size) for size in shape] for shape in every]
