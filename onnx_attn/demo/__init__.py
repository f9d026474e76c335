"""The main job on a small real model that comes with the package: `onnx-attn demo`."""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from onnx_attn.api import fuse
from onnx_attn.report.terminal import show_fusion

MODEL = "vit_b_16_tiny.onnx"
"""torchvision's VisionTransformer, 2 layers, made by
`python -m models export vit_b_16 --size tiny --dynamic -o onnx_attn/demo/vit_b_16_tiny.onnx`."""
OUTPUT = "fused.onnx"


def fuse_demo() -> dict[str, Any]:
    """The report of the model, fused in a passing folder."""
    source = resources.files(__package__) / MODEL
    with tempfile.TemporaryDirectory(prefix="onnx-attn-demo-") as folder, resources.as_file(source) as path:
        return fuse(path, Path(folder, OUTPUT)).report


def show_demo(report: dict[str, Any], console: Console, verbose: bool = False) -> None:
    """The command that was run, and its report."""
    console.print(f"$ onnx-attn fuse {MODEL} -o {OUTPUT}\n")
    show_fusion({**report, "model": MODEL}, console, verbose, output=f"{OUTPUT}, in a folder that is gone again")
    console.print("\nnext: onnx-attn fuse on a model of yours, and onnx-attn land to see the kernels that it reaches")
