"""Nodes, attention operations, FLOPs and memory of models side by side, as exported, expanded and fused: a table in Markdown.

    python tools/count_table.py MODEL [MODEL ...] [--shapes NAME:1x128 ...]

Peaks are those of activations, by the liveness scan of `onnx-attn stats`, without weights and inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _commands import Parser, run

import onnx_attn
from onnx_attn.engine.profiles import read_shape

COLUMNS = (
    ("nodes", lambda s: s["nodes"]["total"]),
    ("attention operations", lambda s: sum(s["operations_exposed"])),
    ("movement", lambda s: s["nodes"]["by_role"]["movement"]),
    ("GFLOPs", lambda s: s["flops"]["products"] / 1e9),
    ("of attention", lambda s: s["flops"]["by_role"]["attention"] / 1e9),
    ("peak MB, written out", lambda s: s["memory"]["materialised"]["peak"] / 1e6),
    ("in a site", lambda s: s["memory"]["materialised"]["attention_peak"] / 1e6),
    ("peak MB, fused", lambda s: s["memory"]["fused"]["peak"] / 1e6),
    ("intermediates MB, written out", lambda s: s["memory"]["materialised"]["intermediates"] / 1e6),
    ("fused", lambda s: s["memory"]["fused"]["intermediates"] / 1e6),
    ("scores MB", lambda s: s["memory"]["scores"] / 1e6),
)


def main(words: Sequence[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--shapes", action="append", default=[], help="NAME:1x128, once for an input that varies")
    options = parser.parse_args(words)
    shapes = dict(map(read_shape, options.shapes))
    print(" | ".join(["model", *(name for name, _ in COLUMNS)]))
    print("|".join(["---"] * (len(COLUMNS) + 1)))
    for path in options.models:
        for name, made in (
            (path.name, lambda path: path),
            ("expanded", lambda path: onnx_attn.expand(path, verify=False).model),
            ("fused", lambda path: onnx_attn.fuse(path, verify=False).model),
        ):
            report = onnx_attn.stats(made(path), shapes=shapes)
            print(" | ".join([name, *(_cell(report, figure) for _, figure in COLUMNS)]), flush=True)
    return 0


def _cell(report: dict[str, Any], figure: Any) -> str:
    try:
        return f"{figure(report):.5g}"
    except (TypeError, KeyError):  # A figure that depends on sizes, or cannot be said.
        return "–"


if __name__ == "__main__":
    run(main)
