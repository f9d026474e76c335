"""MatMul → Scale → Softmax: the scores of attention, and by what number they are scaled."""

from __future__ import annotations

from onnx_attn.match import HERE, Match, chain, const, either, find, maybe, op, require, var
from onnx_attn.match.examples.run import run

SCALE = either(op("Mul", HERE, const(name="factor")), op("Div", HERE, const(name="divisor")))

PATTERN = chain(
    require(
        op("MatMul", var("query"), var("key")),
        lambda match: not match.view.is_weight(match["key"]),
        "the second operand is a weight: a linear layer, no scores",
    ),
    SCALE,
    maybe(op("Add", HERE, var("mask"))),
    op("Softmax", HERE, name="softmax"),
)


def scale(match: Match) -> float:
    return match.number("factor") if "factor" in match else 1.0 / match.number("divisor")


def lines(model: str) -> list[str]:
    return [f"{match.value.name}: scaled by {scale(match):.6g}" for match in find(PATTERN, model)]


if __name__ == "__main__":
    run(PATTERN, lines)
