"""Parallel linear layers on one source: what could be one product with packed weights."""

from __future__ import annotations

from onnx_attn.match import Match, Pattern, find, fork, op, require, var
from onnx_attn.match.examples.run import run


def _layer(number: int) -> Pattern:
    def stored(match: Match) -> bool:
        return match.view.is_weight(match[f"weight_{number}"])

    product = op("MatMul|Gemm", var("source"), var(f"weight_{number}"), name=f"layer_{number}")
    return require(product, stored, "the second operand is no weight")


PATTERN = fork(var("source"), _layer(1), _layer(2), _layer(3))


def lines(model: str) -> list[str]:
    found = []
    for match in find(PATTERN, model):
        weights = ", ".join(match[f"weight_{number}"].name for number in (1, 2, 3))
        found.append(f"{match['source'].name} feeds three layers: {weights}")
    return found


if __name__ == "__main__":
    run(PATTERN, lines)
