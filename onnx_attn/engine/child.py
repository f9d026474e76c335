"""The build itself, in a process of its own: `python -m onnx_attn.engine.child REQUEST.json ANSWER.json`.

The compiler can end its process by a segmentation fault, so nothing but `compile.py` should call this.

Polygraphy's loaders drive the compiler, since the same ones serve full TensorRT. Their logger passes every
message of the compiler on to Python's logging, which is where the `Layers:` message is caught; it stays
whole there, apart from the indentation of the lines after the first.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from onnx_attn.engine.kernels import HEADING


class _Recorder(logging.Handler):
    """Keeps the message about the kernels, and the errors."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.layers: list[str] = []
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message of the compiler or of polygraphy."""
        text = record.getMessage()
        if text.startswith(HEADING):
            self.layers.append(text)
        elif record.levelno >= logging.ERROR:
            self.errors.append(" ".join(text.split()))


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


def _unprofiled(network: Any, shapes: dict[str, Any]) -> list[str]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    return [
        f"input {entry.name!r} varies, its shape is {tuple(entry.shape)}: give its smallest, usual and largest shape"
        for entry in inputs
        if any(dim < 0 for dim in entry.shape) and entry.name not in shapes
    ]


def _build(path: str, sm: int, shapes: dict[str, Any]) -> list[str]:
    """Parse and build; returns what is wrong with the request, raises what polygraphy raises."""
    import tensorrt_rtx as trt
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import NetworkFromOnnxPath, Profile, engine_bytes_from_network

    builder, network, parser = NetworkFromOnnxPath(path)()
    if missing := _unprofiled(network, shapes):
        return missing
    profile = Profile()
    for name, (smallest, usual, largest) in shapes.items():
        profile.add(name, tuple(smallest), tuple(usual), tuple(largest))
    config = CreateConfigRTX(
        compute_capabilities=[divmod(sm, 10)],
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        profiles=[profile] if shapes else None,
    )
    engine_bytes_from_network((builder, network, parser), config=config)
    return []


def main(request: str, answer: str) -> int:
    """Build what the request file asks for and write the answer file; 0 even where the build fails."""
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read once, when polygraphy is imported
    asked = json.loads(Path(request).read_text())
    recorder = _listen()
    built = False
    try:
        wrong = _build(asked["model"], asked["sm"], asked["shapes"])
        recorder.errors.extend(wrong)
        built = not wrong
    except Exception as error:  # whatever stops a build is an answer
        recorder.errors.append(" ".join(str(error).split()) or type(error).__name__)
    errors = list(dict.fromkeys(recorder.errors))
    Path(answer).write_text(json.dumps({"built": built, "layers": recorder.layers, "errors": errors}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
