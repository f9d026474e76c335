"""A pattern language for graphs: a pattern reads as the maths, and a match that fails says how far it came.

from onnx_attn.match import HERE, chain, find, maybe, op, var

attention = chain(
    op("MatMul", var("query"), var("key_transposed")),
    maybe(op("Mul", HERE, var("scale"))),
    op("Softmax", HERE),
    op("MatMul", HERE, var("value")),
)
for match in find(attention, "model.onnx"):
    print(match["query"].name, match["value"].name)
"""

from onnx_attn.match.find import explain, find, follow, match_value
from onnx_attn.match.matcher import Failure, Match
from onnx_attn.match.pattern import (
    HERE,
    Pattern,
    PatternError,
    any_order,
    chain,
    const,
    either,
    fork,
    maybe,
    op,
    repeat,
    require,
    var,
)

__all__ = [
    "HERE",
    "Failure",
    "Match",
    "Pattern",
    "PatternError",
    "any_order",
    "chain",
    "const",
    "either",
    "explain",
    "find",
    "follow",
    "fork",
    "match_value",
    "maybe",
    "op",
    "repeat",
    "require",
    "var",
]
