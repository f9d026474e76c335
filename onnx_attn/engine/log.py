"""Read an engine from the compiler's own log, since an engine cannot be opened without a GPU.

Source, measured: at DETAILED profiling verbosity the builder of TensorRT for RTX logs one message that starts with
`Layers:` and has one line a kernel; before that, one line for each node that it takes for part of an attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from onnx_attn.engine.kernels import EVENTS, Kernel, TensorInfo

HEADING = "Layers:"
PATTERN = re.compile(r"Found (?P<node>.+) to be part of self-attention pattern\.")
"""What the compiler says of a MatMul or Softmax, or `Attention`, in which it sees attention."""

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<layer_type>\w+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\]"
    r"(?=, (?:TacticName|TacticValue|ParameterType|StreamId|Metadata): |$)(?P<rest>.*)$",
    re.DOTALL,
)
_TACTIC = re.compile(r", TacticName: (.*?)(?=, StreamId: |$)", re.DOTALL)
_METADATA = re.compile(r", Metadata:\s*(.*)$", re.DOTALL)
"""Not every layer has these: what moves a shape between host and device (`ShapeHostToDevice`) has no tactic, or
the number 0 for one."""
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?)(?:, Location: \w+)?, Dimensions: \[(?P<dims>[-\d,\s]*)\].*?, Datatype: (?P<datatype>\w+)"
)
_EVENT = re.compile(rf"Name: .*?, LayerType: (?:{'|'.join(sorted(EVENTS))})\b")
_LAYER = "[ONNX Layer: "
_BETWEEN = re.compile(rf"\][\x1e\x1f]?{re.escape(_LAYER)}")


def parse_layers(text: str) -> tuple[Kernel, ...]:
    """The kernels of a `Layers:` message; events and jumps are left out.

    Ends at the first empty line, where the compiler goes on with the engine's inputs and outputs. Raises
    ValueError for a line of another form, rather than count too few.
    """
    kernels = []
    for line in re.split(r"\n(?=\s*Name: )", text.partition(HEADING)[2].strip().split("\n\n")[0]):
        if not line.strip() or _EVENT.match(line.strip()):
            continue
        found = _LINE.match(line.strip())
        if found is None:
            raise ValueError(f"not a line about a kernel: {line[:120]!r}")
        inputs, outputs, constants = (tuple(_tensors(found[part])) for part in ("inputs", "outputs", "constants"))
        nodes = onnx_layers(_first(_METADATA, found["rest"]))
        tactic = _first(_TACTIC, found["rest"])
        kernels.append(Kernel(found["name"], found["layer_type"], inputs, outputs, nodes, constants, tactic))
    return tuple(kernels)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found is not None else ""


def onnx_layers(metadata: str | None) -> tuple[str, ...]:
    """The nodes of `[ONNX Layer: a]␟[ONNX Layer: b]`, each once. The separator does not show when printed; some have none."""
    inside = (metadata or "").strip().removeprefix(_LAYER).removesuffix("]")
    return tuple(dict.fromkeys(filter(None, _BETWEEN.split(inside))))


def _tensors(text: str | None) -> Iterator[TensorInfo]:
    for found in _TENSOR.finditer(text or ""):
        dims = tuple(int(dim) for dim in found["dims"].split(",") if dim.strip())
        yield TensorInfo(found["name"], dims, found["datatype"])
