"""Models that tell a wrong condition of the recogniser or of the algebra from the right one, and what is said of each.

`near_misses/` holds them: each is a test's graph, or one with a small edit (`near_edits`), that a mutant reads otherwise
(`tools/hunt.py`); its name begins with the function whose conditions it watches. `outcomes.json` is what the library says of it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

import onnx_attn
from onnx_attn import OnnxAttnError

FOLDER = Path(__file__).parent / "near_misses"
OUTCOMES = FOLDER / "outcomes.json"
FACTS = (
    "status",
    "code",
    "node",
    "heads",
    "kv_heads",
    "head_dim",
    "value_dim",
    "scale",
    "causal",
    "masks",
    "projection",
    "window",
    "rotary",
    "form",
    "packed",
    "algebra",
    "algebra_left",
    "changes",
    "changes_left",
    "folded",
)

Outcome = dict[str, Any]


def paths() -> list[Path]:
    return sorted(FOLDER.glob("*.onnx"))


def outcome(model: onnx.ModelProto) -> tuple[Outcome, onnx.ModelProto | None]:
    """What is said of a model, and which operators the fused one is made of; and that model, unless it is refused."""
    try:
        result = onnx_attn.fuse(model, verify=False)
    except OnnxAttnError as error:
        return {"refused": type(error).__name__}, None
    operators = Counter(node.op_type for node in result.model.graph.node)
    said = {"candidates": [_facts(each) for each in result.report["candidates"]], "operators": _listed(operators)}
    return json.loads(json.dumps(said)), result.model


def _facts(candidate: dict[str, Any]) -> Outcome:
    """What is told of a candidate but for wording: reasons have tests of their own."""
    facts = {key: candidate.get(key) for key in FACTS}
    facts |= {key: sorted(facts[key]) for key in ("algebra_left", "changes_left") if facts[key]}
    return {key: value for key, value in facts.items() if value not in (None, [], {}, False)}


def _listed(operators: Counter[str]) -> str:
    return " ".join(f"{name}×{number}" for name, number in sorted(operators.items()))


def table() -> dict[str, Outcome]:
    return json.loads(OUTCOMES.read_text())


def write_table() -> None:
    told = {path.stem: outcome(onnx.load(path))[0] for path in paths()}
    OUTCOMES.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":  # After a change that is meant: run this, and read the difference.
    write_table()
