"""The command line of the examples: what matched, and of what did not, how far it came."""

from __future__ import annotations

import sys
from collections.abc import Callable

from onnx_attn.errors import OnnxAttnError
from onnx_attn.match import Pattern, explain


def run(pattern: Pattern, lines: Callable[[str], list[str]]) -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m onnx_attn.match.examples.NAME MODEL")
    try:
        found, failures = lines(sys.argv[1]), explain(pattern, sys.argv[1])
    except OnnxAttnError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{len(found)} found")
    for line in found:
        print(f"  {line}")
    if failures and not found:
        print(f"nearest: {failures[0]}")
