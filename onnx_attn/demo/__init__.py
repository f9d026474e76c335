"""The main job on a small real model that comes with the package: `onnx-attn demo`."""

from __future__ import annotations

import tempfile
from collections import Counter
from importlib import resources
from pathlib import Path

import onnx
from rich.console import Console
from rich.markup import escape

from onnx_attn.api import fuse
from onnx_attn.report.terminal import show_fusion

MODEL = "vit_b_16_tiny.onnx"
"""torchvision's VisionTransformer, 2 layers, made by
`python -m models export vit_b_16 --size tiny --dynamic -o onnx_attn/demo/vit_b_16_tiny.onnx`."""


def run_demo(console: Console) -> None:
    """Fuse the model in a passing folder, show the report, and what a viewer sees before and after."""
    source = resources.files(__package__) / MODEL
    with tempfile.TemporaryDirectory(prefix="onnx-attn-demo-") as folder, resources.as_file(source) as path:
        output = Path(folder, "fused.onnx")
        console.print(f"$ onnx-attn fuse {escape(path.name)} -o {output.name}\n")
        report = fuse(path, output).report
        before, after = onnx.load(str(path)), onnx.load(str(output))
    show_fusion(report, output.name, console)
    console.print("\nwhat a viewer shows")
    console.print(f"  before  {_histogram(before)}")
    console.print(f"  after   {_histogram(after)}")
    console.print("\nnext: onnx-attn fuse on a model of yours, and onnx-attn land to see the kernels that it reaches")


def _histogram(model: onnx.ModelProto) -> str:
    counts = Counter(node.op_type for node in model.graph.node)
    shown = [f"{count} {op}" for op, count in counts.most_common() if op != "Constant"]
    return ", ".join(shown)
