"""What the surgery costs, as ratios to what onnx-graphsurgeon's import and export of the same file cost, in one run.

    python tools/benchmark.py [MODEL ...] [--repeat N]

Without models: one attention block as torch exported it (tests/exports), stacked to graphs of 5,000, 10,000 and 20,000
nodes. Time is that of recognize + plan + apply; memory is the peak of a process that only rewrites, and of one that also
proves, against one that loads, imports, exports and saves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import compose

BLOCK = Path(__file__).parent.parent / "tests/exports/handwritten_no_bias.torchscript.17.static.onnx"

PLAIN = """
import json, resource, sys, time
import onnx, onnx_graphsurgeon as gs
model = onnx.load(sys.argv[1])
start = time.perf_counter()
exported = gs.export_onnx(gs.import_onnx(model))
seconds = time.perf_counter() - start
onnx.save(exported, sys.argv[2])
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""

FUSED = """
import json, resource, sys
import onnx_attn
report = onnx_attn.fuse(sys.argv[1], sys.argv[2], verify=sys.argv[3] == "prove").report
seconds = sum(report["seconds"][phase] for phase in ("recognize", "plan", "apply"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "peak": peak, "nodes": report["nodes_before"], "sites": report["fused"]}))
"""


def stacked(nodes: int, path: Path) -> Path:
    """The block `BLOCK`, output to input, until the graph has about so many nodes."""
    block = onnx.load(BLOCK)
    source, result = block.graph.input[0].name, block.graph.output[0].name
    stack = onnx.ModelProto()
    stack.CopyFrom(block)
    for field in ("node", "initializer", "value_info", "output"):
        stack.graph.ClearField(field)
    value = source
    for number in range(nodes // len(block.graph.node)):
        part = compose.add_prefix(block, f"layer{number}/").graph
        for node in part.node:
            node.input[:] = [value if name == f"layer{number}/{source}" else name for name in node.input]
        stack.graph.node.extend(part.node)
        stack.graph.initializer.extend(part.initializer)
        value = f"layer{number}/{result}"
    stack.graph.output.add().CopyFrom(block.graph.output[0])
    stack.graph.output[0].name = value
    onnx.save(stack, path)
    return path


def measured(script: str, *arguments: str | Path) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.strip().splitlines()[-1])


def best(script: str, repeat: int, *arguments: str | Path) -> dict[str, float]:
    return min((measured(script, *arguments) for _ in range(repeat)), key=lambda found: found["seconds"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of N runs counts")
    options = parser.parse_args()
    print(
        "model | nodes | sites | import+export s | recognize+plan+apply s | ratio | peak MB plain | rewriting | proving too"
    )
    print("---|---|---|---|---|---|---|---|---")
    with tempfile.TemporaryDirectory() as folder:
        models = options.models or [stacked(n, Path(folder) / f"stack-{n}.onnx") for n in (5_000, 10_000, 20_000)]
        out = Path(folder) / "out.onnx"
        for model in models:
            plain = best(PLAIN, options.repeat, model, out)
            fused = best(FUSED, options.repeat, model, out, "rewrite")
            proved = measured(FUSED, model, out, "prove")
            cells = [
                model.name,
                f"{fused['nodes']:.0f}",
                f"{fused['sites']:.0f}",
                f"{plain['seconds']:.2f}",
                f"{fused['seconds']:.2f}",
                f"{fused['seconds'] / plain['seconds']:.2f}",
                *(f"{found['peak']:.0f}" for found in (plain, fused, proved)),
            ]
            print(" | ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
