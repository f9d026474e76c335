"""The runtimes that a model can be written for, and the editions among whose versions the tables distinguish."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from onnx_attn.errors import UsageError

TRT_8_6, TRT_10_0, TRT_10_14, TRT_11 = "TensorRT 8.6", "TensorRT 10.0", "TensorRT 10.14", "TensorRT 11"
RTX = "TensorRT for RTX"
ONNX = "ONNX"
ORT_CPU, ORT_CUDA = "ONNX Runtime CPU", "ONNX Runtime CUDA"

RUNTIMES = {
    "tensorrt": (TRT_10_0, TRT_10_14, TRT_11, RTX),
    "onnx": (ONNX,),
    "onnxruntime": (ORT_CPU, ORT_CUDA),
}
"""The editions that a model has to suit where no version is given."""

EVERY = (TRT_8_6, TRT_10_0, TRT_10_14, TRT_11, RTX, ONNX, ORT_CPU, ORT_CUDA)

_SINCE = {(8, 6): TRT_8_6, (10, 0): TRT_10_0, (10, 14): TRT_10_14, (11, 0): TRT_11}
"""The first version of each edition; a version between two counts as the older."""
HIGHEST_OPSET = {TRT_10_0: 20}
"""Up to which opset an edition is documented to take models, where that is known: "TensorRT 10.0 supports operators in the
inclusive range of opset 9 to opset 20", still so at 10.8, https://github.com/NVIDIA/TensorRT/issues/4336. (10.15: 24.)"""
_DEFAULT_TENSORRT = "10.0"
_OLDEST, _UNKNOWN = (8, 6), (12, 0)


@dataclass(frozen=True)
class Target:
    """The runtime that will read the model, its version as it was asked for, and the editions that this stands for.

    version: "10.0" where none was asked for: 10.0 and everything after it.
    """

    name: str
    version: str | None
    editions: tuple[str, ...]

    def taking(self, opset: int) -> Target:
        """Where it stands for several editions, those of them that take models of this opset: what an edition does not claim
        to read need not suit it."""
        if len(self.editions) == 1:
            return self
        return replace(self, editions=tuple(e for e in self.editions if opset <= HIGHEST_OPSET.get(e, opset)))


def parse_target(name: str, version: str | None = None) -> Target:
    """Raises UsageError for a target or a version that the tables do not know."""
    if name not in RUNTIMES:
        raise UsageError(f"unknown target '{name}'; choose one of {', '.join(sorted(RUNTIMES))}")
    if name != "tensorrt":
        if version is not None:
            raise UsageError(f"--target-version is for tensorrt; target '{name}' has no versions here")
        return Target(name, None, RUNTIMES[name])
    if version is None:
        return Target(name, _DEFAULT_TENSORRT, RUNTIMES[name])
    if version == "rtx":
        return Target(name, version, (RTX,))
    if not isinstance(version, str):
        raise UsageError(
            f"target version {version!r} is no text; give it as '10.13' (as a number 10.1 and 10.10 are the same)"
        )
    match = re.fullmatch(r"([0-9]{1,2})(?:\.([0-9]{1,3}))?(?:\.[0-9.]+)?", version)
    key = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if not _OLDEST <= key < _UNKNOWN:
        raise UsageError(f"unknown TensorRT version '{version}'; give one from 8.6 to 11, such as 10.13, or rtx")
    return Target(name, version, (_SINCE[max(since for since in _SINCE if since <= key)],))
