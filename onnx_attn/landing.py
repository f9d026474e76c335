"""load → recognize → compile → map: on which kernel of a compiled engine each site ended."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx_attn.drawing.site import Drawer, Drawn
from onnx_attn.engine.compile import choose_toolkit, compile_model
from onnx_attn.engine.inspector import parse_inspector
from onnx_attn.engine.kernels import Engine
from onnx_attn.engine.landing import Landing, find_landings
from onnx_attn.engine.names import as_written, make_readable
from onnx_attn.engine.profiles import Profile, at_usual, fitted, is_fixed
from onnx_attn.errors import InputError, one_line
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.save import write
from onnx_attn.graph.view import GraphView
from onnx_attn.progress import clock, step
from onnx_attn.prove.cut import Cutter
from onnx_attn.recognize.candidates import recognize

DEFAULT_SM = 89


@dataclass(frozen=True)
class Options:
    """What `land` was asked for.

    sm: 89 if left out. layer_info: the file of an engine built elsewhere, read instead of compiling.
    """

    sm: int | None = None
    shapes: Profile = field(default_factory=dict)
    toolkit: str | None = None
    timeout: float = 600.0
    layer_info: Path | None = None
    draw: bool = False
    """Also make what the report to look at shows of each site."""


@dataclass
class Landed:
    """What one run of `land` found.

    moved_bytes: of the engine; where its shapes vary, of one built for the usual shapes alone.
    labels: what users call the nodes that had to be renamed. drawings: by `landings`, where they were asked for.
    """

    name: str
    view: GraphView
    engine: Engine
    landings: list[Landing]
    moved_bytes: int | None
    profile: Profile
    labels: dict[str, str]
    seconds: dict[str, float]
    drawings: list[Drawn | None] = field(default_factory=list)

    @property
    def landed(self) -> int:
        return sum(landing.landed for landing in self.landings)


def land_model(loaded: Loaded, path: Path | None, options: Options) -> Landed:
    """Compile a model and find the kernel of each of its attention sites; the model in memory is given other names.

    path: the file that holds the model, which is then compiled as it is where all its names can be told apart.

    Raises UsageError for shapes that do not fit the model, OnnxAttnError where no compiler is installed, InputError for
    a file of layers that cannot be read. What does not build is no error.
    """
    seconds: dict[str, float] = {}
    if options.layer_info is None:
        choose_toolkit(options.toolkit)  # Before any work: is there one?
        profile = fitted(loaded.proto, options.shapes, loaded.name)
        with clock(seconds, "names"):
            labels = make_readable(loaded.proto)
        with clock(seconds, "compile"):
            engine, moved_bytes = _compile(loaded, None if labels else path, profile, options)
    else:
        profile, labels = {}, {}
        engine = read_layer_info(options.layer_info, options.sm or 0)
        _check_layers(engine, loaded, options.layer_info)
        moved_bytes = engine.moved_bytes
    with clock(seconds, "recognize"):
        view = GraphView(loaded.proto)
        candidates = recognize(view)
    with clock(seconds, "map"):
        landings = find_landings(loaded.proto, candidates, engine)
    found = Landed(loaded.name, view, engine, landings, moved_bytes, profile, labels, seconds)
    if options.draw:
        with clock(seconds, "draw"):
            drawer = Drawer(view, Cutter(view), labels)
            found.drawings = [drawer.standing(landing.candidate) for landing in landings]
    return found


def read_layer_info(path: Path, sm: int) -> Engine:
    """The engine that TensorRT's inspector, or trtexec, described in a JSON file. Raises InputError."""
    try:
        kernels = parse_inspector(json.loads(path.read_text(encoding="utf-8-sig", errors="replace")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as layer information ({one_line(error)}); write it with trtexec --exportLayerInfo"
        ) from error
    return Engine(f"layer information {path.name}", sm, True, kernels, ())


def _check_layers(engine: Engine, loaded: Loaded, path: Path) -> None:
    """Raise InputError for the layers of another model's engine, or of one that does not tell its nodes."""
    layers = [layer for kernel in engine.kernels for layer in kernel.onnx_layers]
    if not layers:
        raise InputError(f"{path}: names no ONNX node; build the engine with --profilingVerbosity=detailed")
    nodes = loaded.proto.graph.node
    known = {name for node in nodes for label in (node.name, *node.output) if label for name in as_written(label)}
    if not any(step.rpartition(" (")[0] in known or step in known for layer in layers for step in layer.split(" | ")):
        raise InputError(
            f"{path}: no kernel there computes a node of {loaded.name}; give the layers of an engine built from this very model"
        )


def _compile(loaded: Loaded, path: Path | None, profile: Profile, options: Options) -> tuple[Engine, int | None]:
    """The engine, and the bytes that it moves: tensors of an engine for varying shapes have no size, so for these a second
    one is built for the usual shapes alone."""
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        step(0, 0, loaded.name)
        source = path or _written(loaded, Path(folder, "model.onnx"))

        def build(shapes: Profile) -> Engine:
            return compile_model(source, options.sm or DEFAULT_SM, shapes, options.timeout, toolkit=options.toolkit)

        engine = build(profile)
        if not engine.built or is_fixed(profile):
            return engine, engine.moved_bytes if engine.built else None
        usual = build(at_usual(profile))
        if usual.built:
            return engine, usual.moved_bytes
        return replace(engine, errors=(*engine.errors, *usual.errors)), None


def _written(loaded: Loaded, path: Path) -> Path:
    write(loaded.copy().proto, path, loaded.external)  # The weights that go to a data file are given up.
    return path
