"""Ask TensorRT for RTX what it makes of a model; it compiles on the CPU, for any GPU, without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from onnx_attn.engine.kernels import Engine, Kernel, parse_layers
from onnx_attn.errors import InputError, OnnxAttnError

Shapes = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""Smallest, usual and largest shape of every input that varies, by its name."""

_MODULES = ("tensorrt_rtx", "polygraphy")
_ROOT = Path(__file__).parents[2]


def compiler() -> str:
    """Name and version of the compiler, as `tensorrt_rtx 1.7.1`.

    Raises OnnxAttnError, which names the extra to install, where it is not there.
    """
    missing = [name for name in _MODULES if util.find_spec(name) is None]
    if missing:
        raise OnnxAttnError(f"{' and '.join(missing)} not installed: pip install 'onnx-attn[tensorrt]'")
    version = metadata.version("tensorrt_rtx").split(".")
    return f"tensorrt_rtx {'.'.join(version[:3])}"


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
    errors = tuple(told["errors"])
    try:
        for message in told["layers"] if told["built"] else ():
            kernels += parse_layers(message)
    except ValueError as error:
        kernels, errors = (), (*errors, f"the log of {name} cannot be read: {error}")
    return Engine(name, sm, told["built"], kernels, errors)


def compile_model(path: str | Path, sm: int = 89, shapes: Shapes | None = None, timeout: float = 600) -> Engine:
    """Compile an ONNX file and return the engine's kernels; what does not build comes back with `built` False.

    `sm` is the compute capability times ten: 75, 80, 86, 89, 120 or 121. `shapes` gives, for each input with
    varying dimensions, the smallest, usual and largest shape (elements). `timeout` is in seconds. A crash of
    the compiler is an error of the engine, not of the caller: the build runs in a process of its own.

    Raises InputError where there is no such file, OnnxAttnError where the compiler is not installed. Source:
    the compiler's own log, see kernels.py.
    """
    name, model = compiler(), Path(path).resolve()
    if not model.is_file():
        raise InputError(f"{path}: no such file")
    plain = {key: [list(shape) for shape in every] for key, every in (shapes or {}).items()}
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(json.dumps({"model": str(model), "sm": sm, "shapes": plain}))
        wrong = _ask(request, answer, timeout)
        if wrong is not None:
            return Engine(name, sm, False, (), (wrong,))
        told = json.loads(answer.read_text())
    return _engine(name, sm, told)
