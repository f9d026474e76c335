"""Run a model before and after the surgery on the same inputs, and say where the results first differ.

    python tools/compare.py model.onnx                        fuse it first, then compare
    python tools/compare.py model.onnx fused.onnx
    python tools/compare.py model.onnx fused.onnx --shapes input_ids:2x128 --seed 7 --iterations 4
    python tools/compare.py model.onnx fused.onnx --inputs values.npz --rtol 1e-3

Runs through polygraphy: ONNX Runtime on the CPU, always; TensorRT as well where it is installed and there is a GPU
(`--runner trt` or `trt-rtx` insists on it, `--runner onnxrt` leaves it out). In each, the fused model is held against the
original. Without --shapes and --inputs, dynamic inputs get sizes of the tool's choice, and values are seeded: tokens stay
inside their tables, masks leave something to see.

The last lines are the same comparison as commands of polygraphy and trtexec, to paste. Exit codes: 0 the same, 1 something
cannot be read or run, 2 wrong usage, 4 the outputs differ.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from _commands import (
    Parser,
    check_json,
    check_outputs,
    fused_name,
    line,
    polygraphy_comparison,
    run,
    table,
    trtexec_shapes,
    write_whole,
)
from _inputs import Values, cases_of, check_alike, ranges, sizes

from onnx_attn import api
from onnx_attn.engine.compile import compile_model, toolkits
from onnx_attn.engine.gpu import gpu
from onnx_attn.engine.profiles import Profile, at_usual
from onnx_attn.errors import InputError, OnnxAttnError, UsageError, one_line, printable
from onnx_attn.graph.load import load
from onnx_attn.prove.compare import Difference, difference
from onnx_attn.prove.whole import rtol_between

RUNNERS = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
"""Beside ONNX Runtime: what --runner takes, and the compiler behind it."""


@dataclass
class Found:
    """One output of one set of inputs: the difference, the values where it is largest, and the original's largest value."""

    difference: Difference
    where: str
    largest: float
    within: bool

    def __bool__(self) -> bool:
        return self.within


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if util.find_spec("polygraphy") is None:
        raise OnnxAttnError("polygraphy is not installed; install the extra: pip install '.[tensorrt]'")
    check_outputs([options.original, options.fused], options.output, options.save_inputs)
    check_json(options.save_inputs)
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(_tensorrt(options) == "tensorrt_rtx"))  # Read at its import.
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        fused, sites = options.fused, ""
        if fused is None:
            fused = options.output or Path(folder, fused_name(options.original))
            report = api.fuse(options.original, fused).report
            sites = f", {report['fused']} of {report['sites']} sites fused"
        first, second = load(options.original).proto, load(fused).proto
        check_alike(first, second, fused)
        cases = cases_of(first, options)
        rtol = rtol_between(first, second) if options.rtol is None else options.rtol
        runs = _runs(options, fused, cases, Path(folder))
        print(f"{options.original} against {options.fused or options.output or 'itself fused'}{sites}")
        print(f"inputs: {len(cases)} of {'; '.join(dict.fromkeys(sizes(case) for case in cases))}")
        found = {name: _compared(pair, cases, rtol, options.atol) for name, pair in runs.items()}
        if options.save_inputs:
            from polygraphy.json import to_json

            write_whole(options.save_inputs, to_json(cases))
        same = [_show(name, outputs, rtol, options.atol) for name, outputs in found.items()]
    print("\nThe same by hand:", *_by_hand(options, ranges(first, cases), next(iter(found.values())), rtol), sep="\n")
    return 0 if all(same) else 4


def _options(arguments: Sequence[str]) -> Any:
    parser = Parser(__doc__)
    parser.add_argument("original", metavar="ORIGINAL", type=Path)
    parser.add_argument("fused", metavar="FUSED", type=Path, nargs="?", help="left out: ORIGINAL is fused first")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="keep the model that was fused first")
    parser.add_argument("--shapes", metavar="NAME:1x3x224x224", action="append", default=[])
    parser.add_argument("--inputs", metavar="X.npz", type=Path, help="values for every input")
    parser.add_argument(
        "--save-inputs", metavar="F.json", type=Path, help="keep the inputs, for polygraphy's --load-inputs"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="other values than those that onnx-attn verify takes")
    parser.add_argument("--iterations", metavar="N", type=int, default=1, help="so many seeds")
    parser.add_argument("--rtol", metavar="R", type=float, help="largest max|a−b| / max|a|; by default by the type")
    parser.add_argument("--atol", metavar="A", type=float, default=0.0, help="largest max|a−b| that passes anyhow")
    parser.add_argument(
        "--runner", choices=["onnxrt", *RUNNERS], action="append", default=[], help="default: all that can run here"
    )
    options = parser.parse_args(arguments)
    if options.fused is not None and options.output is not None:
        raise UsageError("-o keeps what is fused here; leave it out, or FUSED")
    if options.inputs is not None and (options.shapes or options.seed is not None or options.iterations != 1):
        raise UsageError("--inputs fixes shapes and values; leave out --shapes, --seed and --iterations")
    if set(RUNNERS) <= set(options.runner):
        raise UsageError("one process runs TensorRT or TensorRT for RTX; use --runner trt and --runner trt-rtx in turn")
    if options.iterations < 1 or (options.rtol is not None and not options.rtol >= 0) or not options.atol >= 0:
        raise UsageError("--iterations starts at 1, --rtol and --atol are not negative; give other numbers")
    return options


def _runs(options: Any, fused: Path, cases: list[Values], folder: Path) -> dict[str, list[Any]]:
    """By runtime: the runners of the original and of the fused model."""
    import onnxruntime as ort
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    if "graph_optimization_level" not in inspect.signature(SessionFromOnnx.__init__).parameters:
        raise OnnxAttnError(
            "polygraphy is too old to run ONNX Runtime unoptimized; install a newer one: pip install -U polygraphy"
        )
    ort.set_default_logger_severity(4)
    models = (options.original, fused)
    off = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    runners = [
        OnnxrtRunner(SessionFromOnnx(str(path), graph_optimization_level=off), name=str(path)) for path in models
    ]
    found = {f"ONNX Runtime {ort.__version__}, CPU": runners}
    toolkit, sm = _tensorrt(options), gpu()
    if toolkit is not None and sm is not None:
        found[toolkit] = [
            _engine_runner(path, toolkit, sm, cases, folder / f"{n}.engine") for n, path in enumerate(models)
        ]
    return found


def _tensorrt(options: Any) -> str | None:
    """The TensorRT that runs beside ONNX Runtime: the one that was asked for, else the first that can run here.

    Raises OnnxAttnError where what was asked for cannot: a comparison that was not made must not look like one that was.
    """
    asked = [RUNNERS[name] for name in options.runner if name in RUNNERS]
    for toolkit in asked:
        if toolkit not in toolkits() or gpu() is None:
            lack = f"{toolkit} is not installed" if toolkit not in toolkits() else "this machine has no CUDA GPU"
            raise OnnxAttnError(f"--runner: {lack}; leave it out to compare in ONNX Runtime alone")
    usable = toolkits() if gpu() is not None and not options.runner else []
    return next(iter([*asked, *usable]), None)


def _engine_runner(path: Path, toolkit: str, sm: int, cases: list[Values], engine: Path) -> Any:
    """Built in a process of its own, which the compiler may crash."""
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    built = compile_model(path, sm, ranges(load(path).proto, cases), toolkit=toolkit, engine=engine)
    if not built.built:
        raise InputError(f"{path}: {built.compiler} does not build it: {one_line(RuntimeError(built.errors[0]))}")
    return TrtRunner(EngineFromBytes(BytesFromPath(str(engine))), name=f"{toolkit} {path}")


def _compared(runners: list[Any], cases: list[Values], rtol: float, atol: float) -> list[dict[str, Found]]:
    """Run both through polygraphy; for each set of inputs what was found for every output."""
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    def judge(a: Any, b: Any) -> dict[str, Found]:
        return {name: _judged(np.asarray(a[name]), np.asarray(b[name]), rtol, atol) for name in a}

    G_LOGGER.module_severity = 10 * G_LOGGER.CRITICAL
    try:
        results = Comparator.run(runners, data_loader=cases)
        pairs = Comparator.compare_accuracy(results, compare_func=judge)[0]
    except Exception as error:  # polygraphy passes on what its runtimes raise
        raise InputError(f"{runners[0].name}, {runners[1].name}: cannot be run: {one_line(error)}") from error
    return [dict(found) for found in next(iter(pairs.values()))]


def _judged(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> Found:
    found = difference(a, b)
    within = found.within(rtol, atol)
    if a.shape != b.shape or a.dtype != b.dtype or not a.size:
        return Found(found, f"{a.dtype} {a.shape} against {b.dtype} {b.shape}", 0.0, within)
    wide, other = a.astype(np.float64), b.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    off = np.subtract(wide, other, out=np.zeros_like(wide), where=~same)
    at = np.unravel_index(int(np.abs(np.nan_to_num(off, nan=np.inf)).argmax()), off.shape)
    where = f"{wide[at]:.6g} against {other[at]:.6g} at [{', '.join(map(str, at))}]"
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0.0) if a.dtype.kind not in "iub" else 0.0
    return Found(found, where, float(largest), within)


def _show(runtime: str, cases: list[dict[str, Found]], rtol: float, atol: float) -> bool:
    """Print each output's worst case over all inputs; True if all are within bounds."""
    worst = {name: max((case[name] for case in cases), key=_badness) for name in cases[0]}
    print(f"\n{runtime}; allowed: max_rel {rtol:.0e}" + (f" or max_abs {atol:.0e}" if atol else ""))
    rows = [
        {
            "output": printable(name),
            "max_abs": f"{found.difference.max_abs:.1e}",
            "max_rel": f"{found.difference.max_rel:.1e}",
            "": "same" if found else "DIFFERS",
        }
        for name, found in worst.items()
    ]
    print(table(rows))
    first = next((name for name, found in worst.items() if not found), None)
    if first is not None:
        found = worst[first]
        figures = f"max_abs {found.difference.max_abs:.3e}, max_rel {found.difference.max_rel:.3e}"
        print(f"first differing output: {printable(first)}: {figures}; {found.where}")
    return first is None


def _badness(found: Found) -> tuple[bool, bool, float]:
    return not found.within, not found.difference.agrees, found.difference.max_rel


def _by_hand(options: Any, shapes: Profile, found: list[dict[str, Found]], rtol: float) -> list[str]:
    """The comparison as commands: fuse, keep the inputs, run each model, compare; then each model's time in TensorRT."""
    original, fused = options.original, options.fused or options.output
    lines = []
    if fused is None:
        fused = Path(fused_name(original))
        lines.append(line("onnx-attn", "fuse", original, "-o", fused))
    inputs = options.save_inputs or Path(f"{original.stem}.inputs.json")
    if options.save_inputs is None:
        given = {"--inputs": options.inputs, "--seed": options.seed, "--iterations": options.iterations}
        words = [str(word) for item in given.items() if item[1] not in (None, 1) for word in item]
        words += [word for shape in options.shapes for word in ("--shapes", shape)]
        lines.append(line("python", Path(__file__), original, fused, *words, "--save-inputs", inputs))
    bounds = {name: max(options.atol, *(rtol * case[name].largest for case in found)) for name in found[0]}
    lines += polygraphy_comparison(original, fused, inputs, bounds)
    usual = trtexec_shapes(at_usual(shapes))
    timed = [line("trtexec", f"--onnx={path}", "--stronglyTyped", *usual) for path in (original, fused)]
    return [*lines, "# how long each takes, with trtexec of NVIDIA's TensorRT, on a GPU:", *timed]


if __name__ == "__main__":
    run(main)
