"""ONNX Runtime on the CPU, as the judge: one way to open a model and run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnx_attn.errors import InputError, one_line

SEED = 20261122


class CannotRun(InputError):
    """ONNX Runtime does not load or run the model."""


class Session:
    """A model that can be run. Graph optimizations are off: what is compared is what the file says, node by node."""

    def __init__(self, model: onnx.ModelProto | str | Path, name: str):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        # A model is run once or twice: an arena and prepacked weights would cost memory (a third of the whole on a
        # half-precision ViT-B/16) and save nothing.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.name = name
        try:
            source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own making, all of them direct Exceptions
            raise CannotRun(f"{name}: ONNX Runtime does not load the model: {one_line(error)}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        try:
            return [np.asarray(value) for value in self._session.run(list(outputs) if outputs else None, dict(inputs))]
        except Exception as error:
            raise CannotRun(f"{self.name}: ONNX Runtime does not run the model: {one_line(error)}") from error
