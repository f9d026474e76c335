"""Which models are compared, and how much attention each truly has."""

from __future__ import annotations

import csv
import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from _bench.judge import load
from onnx_attn.errors import InputError, OnnxAttnError

_ROOT = Path(__file__).parents[2]
EXPORTS = _ROOT / "tests/exports"

REPRESENTATIVE = (
    "vit_b_16.torchscript.17.static",
    "vit_b_16.dynamo.18.dynamic",
    "deit_tiny_distilled.torchscript.17.static",
    "swin_v2_t.torchscript.17.dynamic",
    "swinv2_tiny_window8.dynamo.18.dynamic",
    "bert.torchscript.17.dynamic",
    "bert.dynamo.23.dynamic",
    "gpt2.torchscript.17.dynamic",
    "gpt2.dynamo.18.static.eager",
    "gpt2_decode.torchscript.17.dynamic",
    "t5_encoder.torchscript.17.dynamic",
    "clip_vision.torchscript.17.dynamic",
    "whisper_encoder.dynamo.20.dynamic",
    "llama.dynamo.18.dynamic.eager",
    "mha.torchscript.17.static",
    "mha_cross.torchscript.17.static",
    "decoder_layer.torchscript.17.static",
    "handwritten_no_bias.torchscript.17.static",
    "gqa_block.dynamo.18.static",
    "fastvit_t8.torchscript.17.static",
    "vit_b_16.torchscript.17.static.half",
    "swin_t.dynamo.18.static.half",
    "bert.dynamo.18.static.eager.half",
    "clip_vision.torchscript.17.static.eager.half",
    "t5_encoder.dynamo.18.static.eager.half",
    "whisper_encoder.dynamo.23.static.half",
    "gqa_block.dynamo.18.static.half",
    "mistral_decode.dynamo.18.static.half",
)
"""Of the exports under tests/exports: every exporter and every family, one without attention, and half precision of each kind."""


@dataclass(frozen=True)
class File:
    """A model. true_sites: None where nobody has said it."""

    path: Path
    true_sites: int | None = None

    @functools.cached_property
    def proto(self) -> onnx.ModelProto:
        try:
            return load(self.path)
        except Exception as error:  # onnx and protobuf raise classes of their own for what is no model.
            raise InputError(f"{self.path}: cannot be read as an ONNX model; give an .onnx file") from error

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".onnx")

    @property
    def is_half(self) -> bool:
        """Whether it computes in half precision, which TensorRT has attention kernels for."""
        return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in self.proto.graph.initializer) or any(
            value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in self.proto.graph.input
        )

    @property
    def is_static(self) -> bool:
        return all(
            dim.HasField("dim_value") for value in self.proto.graph.input for dim in value.type.tensor_type.shape.dim
        )


@functools.cache
def _made_by() -> dict[str, int]:
    with (EXPORTS / "made_by.tsv").open(encoding="utf-8") as table:
        return {row["file"]: int(row["true_sites"]) for row in csv.DictReader(table, delimiter="\t")}


def checked_in(every: bool = False) -> list[File]:
    """The small exports that the tests run on: the representative ones, or all of them."""
    names = list(_made_by()) if every else [f"{name}.onnx" for name in REPRESENTATIVE]
    return [File(EXPORTS / name, _made_by()[name]) for name in names]


def given(paths: Sequence[Path]) -> list[File]:
    """Files of the caller; the true sites are known of those that are checked in. Raises InputError."""
    files = [
        File(path.resolve(), _made_by().get(path.name) if path.resolve().parent == EXPORTS else None) for path in paths
    ]
    for file in files:
        file.proto  # noqa: B018 - before any work
    return files


def full_size(names: Sequence[str], folder: Path) -> Iterator[File]:
    """References of models/ at full size, by both exporters: in float32, and in half precision for TensorRT.

    Raises OnnxAttnError for what is not there to be exported. What torch cannot export is left out with a word.
    """
    for name in names:
        for exporter, opset in (("torchscript", 17), ("dynamo", 18)):
            for half in ((), ("--half",)):
                path = folder / f"{name}.{exporter}.{opset}.full{'.half' if half else ''}.onnx"
                words = ["-m", "models", "export", name, "--exporter", exporter, "--opset", str(opset), *half]
                done = subprocess.run(
                    [sys.executable, *words, "-o", str(path)], cwd=_ROOT, capture_output=True, text=True
                )
                told = re.search(r"true_sites=(\d+)", done.stdout)
                said = (done.stderr.strip().splitlines() or [""])[-1]
                if told is not None:
                    yield File(path, int(told[1]))
                elif "cannot export" in said:
                    print(f"{path.stem}: left out: {said}", flush=True)
                else:
                    raise OnnxAttnError(f"{name}: {said}")
