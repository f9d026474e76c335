"""What rewriting a model of many gigabytes takes: seconds, and memory against the largest group of weights that is packed.

    python tools/large.py [--size GB] [--width E] [--type float32|float16] [--folder DIR] [--options JSON]

An embedding and a stack of transformer blocks (LayerNorm, attention with three projections, LayerNorm, MLP) are written to a data
file, piece by piece, and rewritten by a process of its own, whose peak is what the system says (ru_maxrss). Prints JSON. `ratio`:
the peak without what the imports take and the graph without weights, to the largest packed group.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = 128
WORDS = 2**15

MAKE = "import sys; sys.path.insert(0, sys.argv[1]); import large; large.make(sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5])"

FUSE = """
import json, os, resource, sys, time
import onnx_attn.api
imports = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
start = time.perf_counter()
report = onnx_attn.fuse(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3])).report
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "phases": report["seconds"], "sites": report["sites"], "fused": report["fused"],
                  "proof": report["proof"], "proof_left": report["proof_left"], "peak": peak, "imports": imports}))
"""


def make(path: str, layers: int, width: int, kind: str) -> None:
    """Write the model: the graph to `path`, weights beside it. No more than one piece of them is ever in memory."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    dtype = np.dtype(kind)
    elem_type = helper.np_dtype_to_tensor_dtype(dtype)
    rng, place = np.random.default_rng(0), Path(path)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    with place.with_suffix(".bin").open("wb") as file:

        def weight(name: str, *dims: int) -> str:
            tensor = onnx.TensorProto(name=name, dims=dims, data_type=elem_type, data_location=TensorProto.EXTERNAL)
            count = int(np.prod(dims))
            entries = {
                "location": place.with_suffix(".bin").name,
                "offset": file.tell(),
                "length": count * dtype.itemsize,
            }
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            for first in range(0, count, 2**22):
                numbers = rng.random(min(2**22, count - first), np.float32) - np.float32(0.5)
                file.write((numbers * np.float32(2 / width**0.5)).astype(dtype).tobytes())
            stored.append(tensor)
            return name

        value = "embedded"
        nodes.append(helper.make_node("Gather", [weight("embedding", WORDS, width), "tokens"], [value], name="embed"))
        for layer in range(layers):
            value = _block(nodes, weight, value, f"layer{layer}", width)
    for name, numbers in {"heads": [0, 0, -1, HEAD], "joined": [0, 0, width]}.items():
        stored.append(helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers))
    stored.append(helper.make_tensor("scale", elem_type, [], [HEAD**-0.5]))
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "sequence"])
    result = helper.make_tensor_value_info(value, elem_type, ["batch", "sequence", width])
    graph = helper.make_graph(nodes, "large", [tokens], [result], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _block(nodes: list[Any], weight: Any, source: str, name: str, width: int) -> str:
    """A block as PyTorch has them, with the norm first."""
    from onnx import helper

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        made = f"{name}/{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [made], name=made, **attributes))
        return made

    def norm(value: str, which: str) -> str:
        parts = (weight(f"{name}/{which}.{part}", width) for part in ("gamma", "beta"))
        return add("LayerNormalization", value, *parts, axis=-1)

    def linear(value: str, which: str, rows: int, columns: int) -> str:
        product = add("MatMul", value, weight(f"{name}/{which}.weight", rows, columns))
        return add("Add", product, weight(f"{name}/{which}.bias", columns))

    def heads(value: str, perm: list[int]) -> str:
        return add("Transpose", add("Reshape", value, "heads"), perm=perm)

    normed = norm(source, "norm1")
    q, k, v = (linear(normed, which, width, width) for which in "qkv")
    scores = add("Mul", add("MatMul", heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1])), "scale")
    attended = add("MatMul", add("Softmax", scores, axis=-1), heads(v, [0, 2, 1, 3]))
    joined = add("Reshape", add("Transpose", attended, perm=[0, 2, 1, 3]), "joined")
    residual = add("Add", source, linear(joined, "out", width, width))
    wide = add("Relu", linear(norm(residual, "norm2"), "up", width, 4 * width))
    return add("Add", residual, linear(wide, "down", 4 * width, width))


def packed_groups(path: Path) -> Iterator[int]:
    """Bytes of each packed weight of a model that was written."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.name.endswith("in_proj_weight"):
            yield ExternalDataInfo(tensor).length or len(tensor.raw_data)


def run(script: str, *arguments: object) -> str:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=6.0, help="gigabytes of weights, about")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--type", choices=("float32", "float16"), default="float32")
    parser.add_argument("--folder", type=Path, help="where there is room for the model three times")
    parser.add_argument("--options", default='{"verify": false}', help="of onnx_attn.fuse, as JSON")
    options = parser.parse_args()
    itemsize = 4 if options.type == "float32" else 2
    layers = math.ceil(options.size * 1e9 / (12 * options.width**2 * itemsize))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model, fused = Path(folder, "model.onnx"), Path(folder, "fused.onnx")
        run(MAKE, Path(__file__).parent, model, layers, options.width, options.type)
        found = json.loads(run(FUSE, model, fused, options.options).splitlines()[-1])
        group = max(packed_groups(fused), default=0)
        graph, weights = model.stat().st_size, model.with_suffix(".bin").stat().st_size
        found |= {"layers": layers, "weights": weights, "graph": graph, "group": group}
        found["ratio"] = round((found["peak"] - found["imports"] - graph) / group, 3) if group else None
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
