"""What a compiled engine consists of: its kernels, their tensors, and the ONNX nodes that each computes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ATTENTION = re.compile(r"_*(mye\d+)?_?gem[mv]_mha")
"""How the name, or the tactic, of every multi-head-attention kernel begins: `_gemm_mha_v2`, `_gemm_mha_v1`, `_gemv_mha_v1`."""
GENERATED = "kgen"
"""The type of generated kernels, these among them; others are called after ONNX nodes, in whose names anything may stand."""

EVENTS = frozenset({"wait", "signal", "jmp", "cjmp", "TrainStation"})
"""Layer types that compute nothing: events of a stream, jumps of an If, waiting for a shape that is only known when the engine
runs. (`shape_call`, `copy` and `memset` count.)"""

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
"""Bits of an element by the name that the compiler gives its type."""


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
    """One step of an engine. `onnx_layers` names the nodes it computes, as the compiler writes them.

    `constants` are the weights it reads, which the compiler lists beside the inputs. `tactic` is the code it was compiled
    to; older layers of full TensorRT tell there, not in their name, what they are.
    """

    name: str
    layer_type: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    onnx_layers: tuple[str, ...]
    constants: tuple[TensorInfo, ...] = ()
    tactic: str = ""

    @property
    def is_attention(self) -> bool:
        """Whether this is one of the compiler's multi-head-attention kernels."""
        generated = self.layer_type == GENERATED and "_mha" in self.name
        return generated or any(ATTENTION.match(text) for text in (self.name, self.tactic))

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Everything it moves: inputs, weights, outputs."""
        return self.inputs + self.constants + self.outputs

    def computes(self, node: str) -> bool:
        """Whether the ONNX node is among what this kernel computes, by itself or as what holds what it computes.

        What lies in a function is written `INNER | CALLER (FUNCTION)`, what lies in a branch
        `INNER | GRAPH (then_branch) | IF (If)`, and so on outwards: inner names repeat, only the way in tells them apart.
        """
        holder = f" | {node} ("
        return any(layer == node or holder in layer for layer in self.onnx_layers)


@dataclass(frozen=True)
class Engine:
    """What the compiler made of a model, or why it made nothing (`built` is False, `errors` says it).

    compiler: name and version. sm: the compute capability times ten (89 is 8.9). pattern: nodes that the compiler said it
    took for attention, by their inner names, whether or not it had a kernel for them. unread: what in the compiler's report
    could not be read, so that nothing is known of the kernels.
    """

    compiler: str
    sm: int
    built: bool
    kernels: tuple[Kernel, ...]
    errors: tuple[str, ...]
    pattern: frozenset[str] = frozenset()
    unread: str | None = None

    @property
    def moved_bytes(self) -> int | None:
        """Bytes that a run moves: every kernel's inputs, weights and outputs. The same on any machine.

        None where one of them has no size: a sum over what is left would mean nothing.
        """
        if self.unread:
            return None
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

    def landed(self, node: str) -> bool:
        """Whether the site of this Softmax, `Attention` node or function call is in an attention kernel."""
        return any(kernel.computes(node) for kernel in self.attention_kernels)
