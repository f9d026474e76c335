"""Where the compiler knows a better way to write a site than the defaults: `fuse --search` over many models, as one table.

    python tools/search_defaults.py [MODEL ...] [--sm 89] [--precision keep|fp16|bf16] [--shapes NAME:1x3x224x224 ...]

Without models: the static half-precision exports under tests/exports. The defaults of `forms/packed_gemm.py` and the plan rest on
this table; a line in which the chosen way has fewer kernels than the default is a rule that is missing there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _commands import Parser, run

import onnx_attn
from onnx_attn.engine.profiles import read_shapes

EXPORTS = Path(__file__).parent.parent / "tests/exports"
COLUMNS = ("model", "kinds", "as exported", "by default", "chosen", "what is chosen otherwise")


def row(path: Path, options: dict[str, Any]) -> tuple[str, ...]:
    """One model: kernels and MB as exported, by default and as chosen, and how that differs from the default."""
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        found = onnx_attn.fuse(path, Path(folder, "fused.onnx"), search=True, **options)
        plain = onnx_attn.fuse(path, Path(folder, "plain.onnx"), precision=options["precision"], verify=False)
    told = found.report["search"]
    costs = [told[key] for key in ("export", "default", "chosen")]
    shown = [f"{cost['kernels']} / {cost['moved_bytes'] / 1e6:.4g}" if cost else "does not build" for cost in costs]
    ways = zip(plain.plan["sites"], found.plan["sites"], strict=True)
    return (
        path.stem,
        str(told["kinds"]),
        *shown,
        "; ".join(dict.fromkeys(filter(None, (_other(*pair) for pair in ways)))),
    )


def _other(default: dict[str, Any], chosen: dict[str, Any]) -> str:
    """What a plan says of a site that another one says otherwise."""
    keys = ("form", "pack", "algebra", "changes", "placement")
    return ", ".join(
        f"{key} {json.dumps(chosen[key])}" for key in keys if key in chosen and chosen[key] != default[key]
    )


def main(arguments: Sequence[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--sm", type=int)
    parser.add_argument("--precision", default="keep")
    parser.add_argument("--shapes", action="append", default=[])
    asked = parser.parse_args(arguments)
    options = {"sm": asked.sm, "precision": asked.precision, "shapes": read_shapes(asked.shapes)}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for path in asked.models or sorted(EXPORTS.glob("*.static*.half.onnx")):
        print(f"| {' | '.join(row(path, options))} |", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
