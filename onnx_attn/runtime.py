"""ONNX Runtime on the CPU, as the judge: one way to open a model and run it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from ml_dtypes import bfloat16
from onnx import helper

from onnx_attn.bfloat16 import standing_in
from onnx_attn.domain import MICROSOFT
from onnx_attn.errors import InputError, one_line
from onnx_attn.graph.load import copied
from onnx_attn.graph.save import write
from onnx_attn.graph.weights import bring_in, is_apart, is_past

SEED = 20261122

MOST_BYTES = 2**27
"""Of a model that is handed over in memory, where it is copied twice: larger ones go through a file, which is mapped. Measured on
a site whose packed weights have 201 MB: the peak of its proof is 15 times that, where it was some 39 times."""


class CannotRun(InputError):
    """ONNX Runtime does not load or run the model."""


def refuse_crash(model: onnx.ModelProto, name: str) -> None:
    """Raise CannotRun for a model that would take the whole process down with it (ONNX Runtime 1.31.1)."""
    for node in model.graph.node:
        if node.op_type == "Attention" and node.domain == MICROSOFT and not "".join(node.input[2:3]):
            raise CannotRun(
                f"{name}: node '{node.name or node.output[0]}' is a com.microsoft.Attention without a bias, of which ONNX "
                f"Runtime dies; give it a bias of zeros, or pass --no-verify to rewrite without proof"
            )
        heads = [each for each in node.attribute if each.name in ("q_num_heads", "kv_num_heads")]
        if node.op_type == "Attention" and node.domain != MICROSOFT and any(each.i == 0 for each in heads):
            raise CannotRun(
                f"{name}: node '{node.name or node.output[0]}' is an Attention of no heads, of which ONNX Runtime dies; say how "
                f"many it has, or pass --no-verify to rewrite without proof"
            )


class Session:
    """A model that can be run. Graph optimizations are off: what is compared is what the file says, node by node.

    Where there is bfloat16, float32 that is rounded stands in for it; inputs are given as the model has them, and what comes
    out in bfloat16 comes out in float32.
    """

    def __init__(self, model: onnx.ModelProto | str | Path, name: str):
        self.name, self._model, self._spelled = name, model, False
        try:
            self._open(model)
        except CannotRun as error:
            substitute = self._without_bfloat16(error)
            if substitute is None:
                raise
            self._model = substitute
            self._open(substitute)

    def _open(self, model: onnx.ModelProto | str | Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        # A model is run once or twice: an arena and prepacked weights would cost memory (a third of the whole on a
        # half-precision ViT-B/16) and save nothing.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Threads that wait for the next run by spinning take the cores from whoever works beside.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(self._source(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own making, all of them direct Exceptions
            raise CannotRun(f"{self.name}: ONNX Runtime does not load the model: {one_line(error)}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def _source(self, model: onnx.ModelProto | str | Path) -> str | bytes:
        """What ONNX Runtime reads: a file, or a message; a large model is written to a file."""
        if not isinstance(model, onnx.ModelProto):
            return str(model)
        if not is_past(model, MOST_BYTES):
            return bytes(_whole(model).SerializeToString())
        # Its weights are mapped from there: the folder goes with the session.
        self._folder = tempfile.TemporaryDirectory(prefix="onnx-attn-")
        self._model = path = Path(self._folder.name, "model.onnx")
        write(copied(model), path, external=True)
        return str(path)

    def _without_bfloat16(self, error: CannotRun) -> onnx.ModelProto | None:
        try:
            return standing_in(self._model if isinstance(self._model, onnx.ModelProto) else onnx.load(self._model))
        except ValueError as reason:
            raise CannotRun(f"{error}; {one_line(reason)}") from error

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        given = {name: value.astype(np.float32) if value.dtype == bfloat16 else value for name, value in inputs.items()}
        try:
            return [np.asarray(value) for value in self._session.run(list(outputs) if outputs else None, given)]
        except Exception as error:
            if not self._spelled and self._spell_masks():
                return self.run(inputs, outputs)
            raise CannotRun(f"{self.name}: ONNX Runtime does not run the model: {one_line(error)}") from error

    def _spell_masks(self) -> bool:
        """Open the model with every row of its operators' masks spelled out; False if it has none."""
        self._spelled = True
        model = with_mask_rows(self._model if isinstance(self._model, onnx.ModelProto) else onnx.load(self._model))
        if model is None:
            return False
        self._open(model)
        return True


def _whole(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or a copy with the weights in it that lie apart."""
    if not any(map(is_apart, model.graph.initializer)):
        return model
    copy = copied(model)
    bring_in(copy.graph.initializer)
    return copy


def with_mask_rows(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy that says the same with a row in the mask for every query; None if no `Attention` node has a mask.

    Source: the operator's specification broadcasts the mask over queries; ONNX Runtime 1.31.1 rejects one that has one row.
    """
    if not any(map(_is_masked, model.graph.node)):
        return None
    copy = copied(model)
    nodes, number = [], 0
    one = "onnx_attn/one_column"
    copy.graph.initializer.append(helper.make_tensor(one, onnx.TensorProto.INT64, [1], [1]))
    for node in copy.graph.node:
        if _is_masked(node):
            rows, sizes, mask = (f"onnx_attn/{what}_{number}" for what in ("rows", "mask_sizes", "mask_rows"))
            nodes += [
                helper.make_node("Shape", [node.input[0]], [rows], start=-2, end=-1),
                helper.make_node("Concat", [rows, one], [sizes], axis=0),
                helper.make_node("Expand", [node.input[3], sizes], [mask]),
            ]
            node.input[3] = mask
            number += 1
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _is_masked(node: onnx.NodeProto) -> bool:
    return node.op_type == "Attention" and node.domain == "" and len(node.input) > 3 and bool(node.input[3])
