"""The tools that are set side by side, and how each rewrites a model: through its public interface, with its defaults."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Done:
    """One rewriting. seconds: of the rewriting alone, without reading and writing files where the tool can do without."""

    seconds: float
    save: Callable[[Path], object]
    more: dict[str, Any] = field(default_factory=dict)


def _one_way() -> list[str]:
    return [""]


@dataclass(frozen=True)
class Tool:
    """A tool.

    packages: the distributions that bring it, of which one is enough. modules: what is imported before anything is measured.
    ways: what it has to be told about a model, of which the best counts; the first of them is the tool's own default.
    proved: seconds of the rewriting with its proof.
    """

    key: str
    label: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    rewrite: Callable[[Path, str], Done]
    ways: Callable[[], list[str]] = _one_way
    proved: Callable[[Path], float] | None = None
    is_ours: bool = False

    @property
    def version(self) -> str | None:
        """The installed version; None where it is not installed."""
        for package in self.packages:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return None


@contextmanager
def _statistics_timed() -> Iterator[list[float]]:
    """What the statistics of a report take by themselves: on their clock is the first reading of the model too."""
    import onnx_attn.pipeline
    import onnx_attn.prepared

    taken: list[float] = []
    original = onnx_attn.prepared.stats_of

    def timed(*given: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*given)
        finally:
            taken.append(time.perf_counter() - start)

    with (
        mock.patch.object(onnx_attn.prepared, "stats_of", timed),
        mock.patch.object(onnx_attn.pipeline, "stats_of", timed),
    ):
        yield taken


def _ours(target: str) -> tuple[Callable[[Path, str], Done], Callable[[Path], float]]:
    def rewrite(model: Path, _: str) -> Done:
        import onnx

        import onnx_attn

        with _statistics_timed() as statistics:
            start = time.perf_counter()
            result = onnx_attn.fuse(str(model), target=target, verify=False)
            call = time.perf_counter() - start
        phases = result.report["seconds"]
        seconds = sum(phases[phase] for phase in ("recognize", "plan", "apply", "stats")) - sum(statistics)
        told = {"call": call, "said": result.report["fused"], "phases": phases, "statistics": sum(statistics)}
        return Done(seconds, lambda out: onnx.save(result.model, out), told)

    def proved(model: Path) -> float:
        import onnx_attn

        start = time.perf_counter()
        onnx_attn.fuse(str(model), target=target)
        return time.perf_counter() - start

    return rewrite, proved


def _optimizer(model: Path, way: str) -> Done:
    from onnxruntime.transformers.optimizer import optimize_model

    logging.disable(logging.WARNING)
    start = time.perf_counter()
    optimized = optimize_model(str(model), model_type=way)
    return Done(time.perf_counter() - start, lambda out: optimized.save_model_to_file(str(out)))


def _model_types() -> list[str]:
    """The optimizer's model types, without those that do what another one does."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import MODEL_TYPES

    distinct: dict[tuple[object, ...], str] = {}
    for name, (kind, _, level) in sorted(MODEL_TYPES.items(), key=lambda item: item[0] != "bert"):
        options = sorted((key, str(value)) for key, value in vars(FusionOptions(name)).items())
        distinct.setdefault((kind, level, *options), name)
    return list(distinct.values())


def _session(model: Path, _: str) -> Done:
    import onnxruntime as ort

    folder = tempfile.TemporaryDirectory()
    written = Path(folder.name, "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(written)
    options.log_severity_level = 4
    start = time.perf_counter()
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start

    def save(out: Path) -> None:
        shutil.copyfile(written, out)
        folder.cleanup()

    return Done(seconds, save)


def _rewriter(model: Path, _: str) -> Done:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    loaded = onnx_ir.load(model)
    start = time.perf_counter()
    rewritten, _ = optimize_for_ort(loaded)
    return Done(time.perf_counter() - start, lambda out: onnx_ir.save(rewritten, out))


def _slim(model: Path, _: str) -> Done:
    import onnx
    import onnxslim

    loaded = onnx.load(model)
    start = time.perf_counter()
    slimmed = onnxslim.slim(loaded)
    return Done(time.perf_counter() - start, lambda out: onnx.save(slimmed, out))


def _simplifier(model: Path, _: str) -> Done:
    import onnx
    import onnxsim

    loaded = onnx.load(model)
    start = time.perf_counter()
    simplified, checked = onnxsim.simplify(loaded)
    if not checked:
        raise ValueError("its own check of the result failed")
    return Done(time.perf_counter() - start, lambda out: onnx.save(simplified, out))


def _graphsurgeon(model: Path, _: str) -> Done:
    import onnx
    import onnx_graphsurgeon as gs

    loaded = onnx.load(model)
    start = time.perf_counter()
    exported = gs.export_onnx(gs.import_onnx(loaded))
    return Done(time.perf_counter() - start, lambda out: onnx.save(exported, out))


_RUNTIME = ("onnxruntime-gpu", "onnxruntime")
_OUR_MODULES = ("onnx_attn.api", "onnx_attn.pipeline")

OURS, OURS_RUNTIME = "onnx_attn", "onnx_attn_onnxruntime"
OPTIMIZER, REWRITER = "ort_optimizer", "onnxscript"
YARDSTICK = "graphsurgeon"
"""No optimizer: what reading a graph into objects and writing it back costs."""


def _all() -> list[Tool]:
    rewrite, proved = _ours("tensorrt")
    for_runtime, _ = _ours("onnxruntime")
    ours = ("onnx-attn",)
    return [
        Tool(OURS, "onnx-attn", ours, _OUR_MODULES, rewrite, proved=proved, is_ours=True),
        Tool(OURS_RUNTIME, "onnx-attn (onnxruntime)", ours, _OUR_MODULES, for_runtime, is_ours=True),
        Tool(
            OPTIMIZER,
            "ORT optimizer",
            _RUNTIME,
            ("onnxruntime.transformers.optimizer",),
            _optimizer,
            ways=_model_types,
        ),
        Tool("ort_session", "ORT session", _RUNTIME, ("onnxruntime",), _session),
        Tool(REWRITER, "onnxscript", ("onnxscript",), ("onnxscript.rewriter.ort_fusions",), _rewriter),
        Tool("onnxslim", "onnxslim", ("onnxslim",), ("onnxslim",), _slim),
        Tool("onnxsim", "onnxsim", ("onnxsim",), ("onnxsim",), _simplifier),
        Tool(YARDSTICK, "graphsurgeon", ("onnx-graphsurgeon",), ("onnx_graphsurgeon",), _graphsurgeon),
    ]


TOOLS = {tool.key: tool for tool in _all()}
"""What is compared, ours first. graphsurgeon rewrites nothing: it imports the graph and exports it."""
