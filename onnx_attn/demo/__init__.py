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
    """Fuse the model into a folder of its own, show the report, and what a viewer sees before and after."""
    folder = Path(tempfile.mkdtemp(prefix="onnx-attn-demo-"))
    output = folder / "fused.onnx"
    with resources.as_file(resources.files(__package__) / MODEL) as path:
        console.print(f"$ onnx-attn fuse {escape(path.name)} -o {escape(str(output))}\n")
        report = fuse(path, output).report
        before = onnx.load(str(path))
    show_fusion(report, str(output), console)
    after = onnx.load(str(output))
    console.print("\nwhat a viewer shows")
    console.print(f"  before  {_histogram(before)}")
    console.print(f"  after   {_histogram(after)}")


def _histogram(model: onnx.ModelProto) -> str:
    counts = Counter(node.op_type for node in model.graph.node)
    shown = [f"{count} {op}" for op, count in counts.most_common() if op != "Constant"]
    return ", ".join(shown)
