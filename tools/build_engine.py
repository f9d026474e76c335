"""Build a TensorRT engine from an ONNX model, with the surgery first if wanted, and say which kernels it has.

    python tools/build_engine.py model.onnx -o model.engine --fuse
    python tools/build_engine.py model.onnx -o model.engine --fuse --sm 86 --layer-info layers.json
    python tools/build_engine.py model.onnx -o model.engine --shapes input_ids:1x16 --shapes input_ids:32x512
    python tools/build_engine.py model.onnx -o model.engine --compiler tensorrt --timing-cache timings.bin

TensorRT for RTX (`tensorrt_rtx`) builds on the CPU for the GPU that --sm names; TensorRT (`tensorrt`) builds for the GPU at
hand. Either way types are those that the graph holds: convert the model first if you want half precision.

--shapes: once for an input is that shape and no other; twice is from the first to the second, tuned for the second; three
times is smallest, usual, largest. Inputs that share the dimensions' names need not be repeated.

--layer-info: the kernels in the form of TensorRT's engine inspector. Files appear whole or not at all. The last lines are
commands that do the same by hand. Exit codes: 0 built, 1 something cannot be read, built or written, 2 wrong usage.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _commands import (
    Parser,
    check_json,
    check_outputs,
    fused_name,
    line,
    polygraphy_shapes,
    run,
    trtexec_shapes,
    typed,
    write_whole,
)

from onnx_attn import api
from onnx_attn.engine.compile import TOOLKITS, choose_toolkit, compile_model, compiler
from onnx_attn.engine.gpu import gpu
from onnx_attn.engine.kernels import Engine, Kernel, TensorInfo
from onnx_attn.engine.profiles import Profile, fitted, read_shapes
from onnx_attn.errors import InputError, UsageError, one_line, printable
from onnx_attn.graph.load import load
from onnx_attn.graph.save import check_data, staged

DEFAULT_SM = 89


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    toolkit = choose_toolkit(options.compiler)
    version = compiler(toolkit).split()[1]
    _check(options, toolkit)
    loaded = load(options.model)
    for path in filter(None, (options.output, options.timing_cache)):
        check_data(path, loaded.data_files)
    shapes = fitted(loaded.proto, read_shapes(options.shapes), str(options.model))
    sm = options.sm or gpu() or DEFAULT_SM
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder, staged(options.output) as draft:
        model = Path(folder, options.model.name) if options.fuse else options.model
        target = "rtx" if toolkit == "tensorrt_rtx" else version
        report = _attention(options.model, model if options.fuse else None, target)
        built = compile_model(
            model,
            sm,
            shapes,
            options.timeout,
            toolkit=toolkit,
            engine=draft,
            timing_cache=options.timing_cache,
            optimization_level=options.optimization_level,
        )
        if not built.built:
            raise InputError(f"{options.model}: {_why(built, options)}")
        if options.layer_info is not None:
            write_whole(options.layer_info, json.dumps(layer_info(built), indent=1) + "\n")
        draft.replace(options.output)
    _show(options, built, report)
    print("\nThe same by hand:", *_by_hand(options, toolkit, version, sm, shapes), sep="\n")
    return 0


def _options(arguments: Sequence[str]) -> Any:
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("-o", "--output", metavar="ENGINE", type=Path, required=True)
    parser.add_argument("--fuse", action="store_true", help="rewrite the attention first, as onnx-attn fuse does")
    parser.add_argument("--compiler", choices=TOOLKITS, help="by default the first that is installed")
    parser.add_argument("--sm", metavar="89", type=int, help="the GPU to build for, its compute capability times ten")
    parser.add_argument("--shapes", metavar="NAME:1x3x224x224", action="append", default=[])
    parser.add_argument("--timing-cache", metavar="F", type=Path, help="read and updated (tensorrt only)")
    parser.add_argument("--layer-info", metavar="F.json", type=Path, help="write the engine's kernels there")
    parser.add_argument("--optimization-level", metavar="N", type=int, choices=range(6), help="0 to 5")
    parser.add_argument("--timeout", metavar="S", type=float, default=600.0, help="seconds; default 600")
    return parser.parse_args(arguments)


def _check(options: Any, toolkit: str) -> None:
    """What can be told before any work."""
    check_outputs([options.model], options.output, options.layer_info, options.timing_cache)
    check_json(options.layer_info)
    if toolkit == "tensorrt_rtx" and options.timing_cache is not None:
        raise UsageError(
            "--timing-cache: TensorRT for RTX times nothing when it builds and keeps no cache; leave it out"
        )
    if toolkit == "tensorrt" and options.sm is not None:
        raise UsageError("--sm: TensorRT builds for the GPU at hand; leave it out, or use --compiler tensorrt_rtx")
    if not options.timeout > 0:
        raise UsageError("--timeout is in seconds; give a number above 0")


def _attention(model: Path, fused: Path | None, version: str) -> dict[str, Any]:
    """The report of the surgery, which writes `fused`; without it, of what could be done."""
    if fused is None:
        return api.inspect(model, target_version=version)
    return api.fuse(model, fused, target_version=version).report


def _why(built: Engine, options: Any) -> str:
    """The compiler's words for a build that failed, and the way out."""
    words = printable(one_line(RuntimeError("\n".join(built.errors[:2])), 600))
    way_out = "see onnx-attn inspect for what stands in the way" if options.fuse else "try --fuse"
    return f"{built.compiler} does not build it: {words}; {way_out}, or give it more time with --timeout"


def layer_info(built: Engine) -> dict[str, Any]:
    """The kernels as TensorRT's engine inspector writes them, for the tools that read its JSON."""
    return {"Compiler": built.compiler, "SM": built.sm, "Layers": [_layer(kernel) for kernel in built.kernels]}


def _layer(kernel: Kernel) -> dict[str, Any]:
    def told(tensors: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
        return [{"Name": info.name, "Dimensions": list(info.dims), "Datatype": info.datatype} for info in tensors]

    return {
        "Name": kernel.name,
        "LayerType": kernel.layer_type,
        "Inputs": told(kernel.inputs),
        "Constants": told(kernel.constants),
        "Outputs": told(kernel.outputs),
        "Metadata": "\x1f".join(f"[ONNX Layer: {name}]" for name in kernel.onnx_layers),
    }


def _show(options: Any, built: Engine, report: dict[str, Any]) -> None:
    moved = (
        "not known where sizes vary; onnx-attn land tells it for the usual shapes"
        if built.moved_bytes is None
        else f"{built.moved_bytes / 1e6:.1f} MB"
    )
    sites = f"{report['fused']} of {report['sites']} sites fused" if options.fuse else f"sites found: {report['sites']}"
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, {built.compiler}, SM {built.sm or '?'}")
    print(f"kernels            {len(built.kernels)}")
    print(f"attention kernels  {len(built.attention_kernels)} ({sites})")
    print(f"moved in a run     {moved}")
    if len(built.attention_kernels) < report["sites"]:
        print("not every site has an attention kernel; onnx-attn land says which, and why")
    if options.layer_info is not None:
        print(f"{options.layer_info}: the kernels")


def _by_hand(options: Any, toolkit: str, version: str, sm: int, shapes: Profile) -> list[str]:
    """The build as commands: fuse, then the compiler's own tool, and for TensorRT for RTX polygraphy, which pip brings."""
    model, engine, level = options.model, options.output, options.optimization_level
    lines = []
    if options.fuse:
        model = Path(fused_name(options.model))
        target = "rtx" if toolkit == "tensorrt_rtx" else version
        lines.append(line("onnx-attn", "fuse", options.model, "-o", model, "--target-version", target))
    common = [f"--onnx={model}", f"--saveEngine={engine}", *trtexec_shapes(shapes), "--skipInference"]
    optimized = f"--builderOptimizationLevel={level}" if level is not None else None
    if toolkit == "tensorrt":
        cache = f"--timingCacheFile={options.timing_cache}" if options.timing_cache else None
        told = (
            ["--profilingVerbosity=detailed", f"--exportLayerInfo={options.layer_info}"] if options.layer_info else []
        )
        return [*lines, line("trtexec", *common, typed(toolkit, version), optimized, cache, *told)]
    words: list[str | Path] = ["polygraphy", "convert", model, "--convert-to", "trt"]
    words += ["--compute-capabilities", f"{sm // 10}.{sm % 10}", *polygraphy_shapes(shapes), "-o", engine]
    words += ["--builder-optimization-level", str(level)] if level is not None else []
    return [
        *lines,
        line(*words, POLYGRAPHY_USE_TENSORRT_RTX="1"),
        "# or, with the program of NVIDIA's TensorRT for RTX:",
        line("tensorrt_rtx", *common, f"--computeCapabilities={sm}", optimized),
    ]


if __name__ == "__main__":
    run(main)
