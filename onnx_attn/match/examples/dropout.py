"""Softmax → Dropout → MatMul: probabilities that an exporter left a Dropout on."""

from __future__ import annotations

from onnx_attn.match import HERE, chain, find, op, var
from onnx_attn.match.examples.run import run

PATTERN = chain(
    op("Softmax", var("scores")), op("Dropout", HERE, name="dropout"), op("MatMul", HERE, var("value"), name="product")
)


def lines(model: str) -> list[str]:
    found = []
    for match in find(PATTERN, model):
        dropout = match.node("dropout")
        found.append(f"{dropout.name or dropout.outputs[0].name} stands before the product with {match['value'].name}")
    return found


if __name__ == "__main__":
    run(PATTERN, lines)
