"""What a compiled engine consists of, and how to read it from the compiler's own log.

Source: at DETAILED profiling verbosity the builder of TensorRT for RTX logs one message that starts with
`Layers:` and has one line a kernel. Full TensorRT names its kernels the same way in its engine inspector.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

ATTENTION_MARK = "_mha"
"""Part of the name of every multi-head-attention kernel: `_gemm_mha_v2`, `_gemm_mha_v1`, `_gemv_mha_v1`."""

HEADING = "Layers:"
EVENTS = frozenset({"wait", "signal"})
"""Layer types that are stream events and compute nothing. (`shape_call`, in dynamic engines, counts.)"""

BITS = {
    "Bool": 8,
    "UInt8": 8,
    "Int4": 4,
    "Int8": 8,
    "Int32": 32,
    "Int64": 64,
    "FP4": 4,
    "FP8": 8,
    "Half": 16,
    "BFloat16": 16,
    "Float": 32,
    "Double": 64,
}
"""Bits of an element by the name that the log gives its type."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that a kernel reads or writes. `dims` counts elements; -1 is a dimension that varies."""

    name: str
    dims: tuple[int, ...]
    datatype: str

    @property
    def size(self) -> int | None:
        """Bytes of the tensor; None where a dimension varies or the type is not in BITS."""
        if any(dim < 0 for dim in self.dims) or self.datatype not in BITS:
            return None
        return math.ceil(math.prod(self.dims) * BITS[self.datatype] / 8)


@dataclass(frozen=True)
class Kernel:
    """One step of an engine. `onnx_layers` names the nodes it computes, as the log writes them.

    `constants` are the weights it reads, which the log lists beside the inputs.
    """

    name: str
    layer_type: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    onnx_layers: tuple[str, ...]
    constants: tuple[TensorInfo, ...] = ()

    @property
    def is_attention(self) -> bool:
        """Whether this is one of the compiler's multi-head-attention kernels."""
        return ATTENTION_MARK in self.name

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Everything it moves: inputs, weights, outputs."""
        return self.inputs + self.constants + self.outputs

    def computes(self, node: str) -> bool:
        """Whether the ONNX node is among what this kernel computes, by itself or as the call of a function.

        What lies in a function is written `INNER | CALLER (FUNCTION)`; two calls share the inner names, so
        that only the caller tells them apart.
        """
        call = f" | {node} ("
        return any(layer == node or call in layer for layer in self.onnx_layers)


@dataclass(frozen=True)
class Engine:
    """What the compiler made of a model, or why it made nothing (`built` is False, `errors` says it).

    `compiler` is the name and version, `sm` the compute capability times ten (89 is 8.9).
    """

    compiler: str
    sm: int
    built: bool
    kernels: tuple[Kernel, ...]
    errors: tuple[str, ...]

    @property
    def moved_bytes(self) -> int | None:
        """Bytes that a run moves: every kernel's inputs, weights and outputs. The same on any machine.

        None where one of them has no size: a sum over what is left would mean nothing.
        """
        sizes = [tensor.size for kernel in self.kernels for tensor in kernel.tensors]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def attention_kernels(self) -> tuple[Kernel, ...]:
        """The multi-head-attention kernels, in the order they run."""
        return tuple(kernel for kernel in self.kernels if kernel.is_attention)

    def kernel_of(self, node: str) -> Kernel | None:
        """The kernel that computes the ONNX node, an attention kernel before others; None if none tells."""
        found = [kernel for kernel in self.kernels if kernel.computes(node)]
        return next((kernel for kernel in found if kernel.is_attention), found[0] if found else None)

    def landed(self, softmax_name: str) -> bool:
        """Whether the site of this Softmax, `Attention` node or function call is in an attention kernel."""
        return any(kernel.computes(softmax_name) for kernel in self.attention_kernels)


_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<layer_type>\w+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], TacticName: .*?"
    r", StreamId: -?\d+(?:, Metadata:\s*(?P<metadata>.*))?$"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,\s]*)\].*?, Datatype: (?P<datatype>\w+)")
_EVENT = re.compile(rf"Name: .*?, LayerType: (?:{'|'.join(sorted(EVENTS))})\b")
_LAYER = "[ONNX Layer: "
_BETWEEN = re.compile(rf"\]\x1f?{re.escape(_LAYER)}")


def _tensors(text: str | None) -> Iterator[TensorInfo]:
    for found in _TENSOR.finditer(text or ""):
        dims = tuple(int(dim) for dim in found["dims"].split(",") if dim.strip())
        yield TensorInfo(found["name"], dims, found["datatype"])


def _layers(text: str | None) -> Iterator[str]:
    """The nodes of `[ONNX Layer: a]␟[ONNX Layer: b]`, each once. The unit separator does not show when printed."""
    inside = (text or "").strip().removeprefix(_LAYER).removesuffix("]")
    yield from dict.fromkeys(filter(None, _BETWEEN.split(inside)))


def parse_layers(text: str) -> tuple[Kernel, ...]:
    """The kernels of a `Layers:` message, stream events left out.

    Ends at the first empty line, where the compiler goes on with the engine's inputs and outputs. Raises
    ValueError for a line of another form, rather than count too few.
    """
    kernels = []
    for line in text.partition(HEADING)[2].strip().split("\n\n")[0].split("\n"):
        if not line.strip() or _EVENT.match(line.strip()):
            continue
        found = _LINE.match(line.strip())
        if found is None:
            raise ValueError(f"not a line about a kernel: {line[:120]!r}")
        inputs, outputs, constants = (tuple(_tensors(found[part])) for part in ("inputs", "outputs", "constants"))
        kernels.append(
            Kernel(found["name"], found["layer_type"], inputs, outputs, tuple(_layers(found["metadata"])), constants)
        )
    return tuple(kernels)
