"""The build itself, in a process of its own: `python -m onnx_attn.engine.child REQUEST.json ANSWER.json`.

The compiler can end its process by a segmentation fault, so nothing but `compile.py` should call this.

Polygraphy's loaders drive the compiler, since the same ones serve TensorRT for RTX and full TensorRT. Their logger passes
every message of the compiler on to Python's logging, which is where an engine built without a GPU is read; a message stays
whole there, apart from the indentation of the lines after the first.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from onnx_attn.engine.gpu import gpu
from onnx_attn.engine.log import HEADING, PATTERN

Request = dict[str, Any]


class _Recorder(logging.Handler):
    """Keeps the message about the kernels, the nodes taken for attention, and the errors."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.layers: list[str] = []
        self.pattern: dict[str, None] = {}
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message of the compiler or of polygraphy."""
        text = record.getMessage()
        if text.startswith(HEADING):
            self.layers.append(text)
        elif found := PATTERN.search(text):
            self.pattern[found["node"]] = None
        elif record.levelno >= logging.ERROR:
            self.errors.append(" ".join(text.split()))


class _Refused(Exception):
    """The request cannot be met by this compiler, whatever the model is."""


def _listen() -> _Recorder:
    from polygraphy.logger import G_LOGGER

    recorder = _Recorder()
    logger = logging.getLogger("Polygraphy")
    logger.addHandler(recorder)
    logger.setLevel(1)
    logger.propagate = False
    G_LOGGER.use_python_logging_system = True
    G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE
    G_LOGGER.colors = G_LOGGER.letter = False
    return recorder


def _config(asked: Request, profile: Any) -> Any:
    """How to build: for another GPU by TensorRT for RTX, for the one at hand by full TensorRT."""
    common = {"profiles": [profile] if asked["shapes"] else None, "builder_optimization_level": asked["level"]}
    if asked["toolkit"] == "tensorrt":
        import tensorrt as trt
        from polygraphy.backend.trt import CreateConfig

        detailed = trt.ProfilingVerbosity.DETAILED
        return CreateConfig(load_timing_cache=asked["timing_cache"], profiling_verbosity=detailed, **common)
    import tensorrt_rtx as rtx
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    known = [name.removeprefix("SM") for name in rtx.ComputeCapability.__members__ if name.startswith("SM")]
    if str(asked["sm"]) not in known:
        raise _Refused(f"no target SM {asked['sm']} in this compiler; choose one of {', '.join(known)}")
    detailed = rtx.ProfilingVerbosity.DETAILED
    return CreateConfigRTX(compute_capabilities=[divmod(asked["sm"], 10)], profiling_verbosity=detailed, **common)


def _unprofiled(network: Any, shapes: dict[str, Any]) -> str | None:
    for entry in (network.get_input(index) for index in range(network.num_inputs)):
        if any(dim < 0 for dim in entry.shape) and entry.name not in shapes:
            return f"input {entry.name!r} varies, its shape is {tuple(entry.shape)}: give its smallest, usual and largest shape"
    return None


def _build(asked: Request) -> dict[str, Any]:
    """Parse, build and save; returns what only an opened engine tells, raises what polygraphy raises."""
    from polygraphy.backend.trt import NetworkFromOnnxPath, Profile, engine_bytes_from_network

    profile = Profile()
    for name, (smallest, usual, largest) in asked["shapes"].items():
        profile.add(name, tuple(smallest), tuple(usual), tuple(largest))
    config = _config(asked, profile)
    full = asked["toolkit"] == "tensorrt"
    # Only types that are written in the graph count: TensorRT 11 and TensorRT for RTX know no other way.
    builder, network, parser = NetworkFromOnnxPath(asked["model"], strongly_typed=True if full else None)()
    if missing := _unprofiled(network, asked["shapes"]):
        raise ValueError(missing)
    engine = engine_bytes_from_network(
        (builder, network, parser), config=config, save_timing_cache=asked["timing_cache"] if full else None
    )
    if asked["engine"] is not None:
        Path(asked["engine"]).write_bytes(engine)
    return _opened(engine) if full else {}


def _opened(engine: Any) -> dict[str, Any]:
    """The inspector's JSON and the GPU's compute capability: with full TensorRT there is a GPU."""
    import tensorrt as trt
    from polygraphy.backend.trt import engine_from_bytes

    opened = engine_from_bytes(engine)
    text = opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return {"inspector": json.loads(text), "sm": gpu() or 0}


def main(request: str, answer: str) -> int:
    """Build what the request file asks for and write the answer file; 0 even where the build fails."""
    asked = json.loads(Path(request).read_text())
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(
        int(asked["toolkit"] != "tensorrt")
    )  # read when polygraphy is imported
    recorder = _listen()
    told: dict[str, Any] = {"built": False, "refused": None}
    try:
        told |= _build(asked)
        told["built"] = True
    except _Refused as error:
        told["refused"] = str(error)
    except Exception as error:  # whatever stops a build is an answer
        recorder.errors.append(" ".join(str(error).split()) or type(error).__name__)
    errors = list(dict.fromkeys(recorder.errors))
    told |= {"layers": recorder.layers, "errors": errors, "pattern": list(recorder.pattern)}
    Path(answer).write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
