"""What each runtime takes of a RotaryEmbedding operator, the standard's and ONNX Runtime's own, and where it pays to write it.

Measured with TensorRT for RTX 1.7.1 in half precision, as plain nodes and as the operator: two blocks of Llama (12 heads of 64,
128 tokens) take 18 kernels and 40.25 MB with either on SM80, SM89 and SM120. Whole models whose batch varies, kernels / MB:
Llama 23 / 77.3 and 23 / 77.4, Cohere (rotated in float32) 20 / 75.4 and 20 / 77.7, DINOv3 113 / 386 and 113 / 395. Of static
sizes: EVA-02 124 / 146 with either, Llama 27 / 80.1 and 26 / 80.2, Cohere 22 / 75.6 and 21 / 77.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnx_attn.domain import MICROSOFT
from onnx_attn.targets.editions import (
    EVERY,
    ONNX,
    ORT_CPU,
    ORT_CUDA,
    RTX,
    TRT_8_6,
    TRT_10_0,
    TRT_10_14,
    TRT_11,
    Target,
)
from onnx_attn.targets.facts import Value
from onnx_attn.targets.onnxruntime import RAN
from onnx_attn.targets.rows import Below, Condition, Documented, Is, Measured
from onnx_attn.targets.standard import CHECKED
from onnx_attn.targets.tensorrt import ASKED
from onnx_attn.targets.tensorrt_versions import CHANGELOG

OPSET = 23
"""The first with the standard operator."""
STANDARD = "ai.onnx"
CONTRIB = Documented(
    "https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding"
)
KERNELS = Documented(
    "https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/providers/cuda/llm/rotary_embedding.cc"
)


@dataclass(frozen=True)
class RotaryFacts:
    """domain: of the operator, STANDARD or MICROSOFT. rank: of x. counted: it says num_heads. positions: "none", one for "each"
    token, or the one at the "start". tables: an entry for "each" in the batch, or "one"."""

    domain: str = STANDARD
    opset: int = OPSET
    dtype: str = "float16"
    rank: int = 4
    counted: bool = False
    positions: str = "none"
    tables: str = "each"
    interleaved: bool = False
    partial: bool = False


@dataclass(frozen=True)
class RotaryRow:
    """Under `when`, an operator has this outcome with the runtimes `editions`. runs: taken. costs: taken, at more bytes than
    plain nodes. rejected: parsing, building or loading fails."""

    name: str
    editions: tuple[str, ...]
    when: Mapping[str, Condition]
    outcome: Literal["runs", "costs", "rejected"]
    evidence: Measured | Documented
    reason: str = ""
    presumed: tuple[str, ...] = ()
    examples: tuple[Mapping[str, Value], ...] = field(default=())

    def matches(self, facts: RotaryFacts) -> bool:
        return all(condition.holds(getattr(facts, fact)) for fact, condition in self.when.items())


_OWN = {"domain": MICROSOFT, "positions": "each"}
_SHAPES: tuple[Mapping[str, Value], ...] = (
    {},
    {"interleaved": True},
    {"partial": True},
    {"rank": 3, "counted": True},
    {"positions": "each"},
    {"dtype": "float32"},
)

ROTARY: tuple[RotaryRow, ...] = (
    RotaryRow(
        "rotary-opset",
        EVERY,
        {"domain": Is(STANDARD), "opset": Below(OPSET)},
        "rejected",
        CHECKED,
        "the standard has the RotaryEmbedding operator from opset 23 on",
        examples=({"opset": 22},),
    ),
    RotaryRow(
        "rotary-versions",
        (TRT_8_6, TRT_10_0, TRT_10_14),
        {},
        "rejected",
        CHANGELOG,
        "TensorRT parses the RotaryEmbedding operator from 10.15 on",
    ),
    RotaryRow(
        "rotary-microsoft-elsewhere",
        (ONNX, TRT_11),
        {"domain": Is(MICROSOFT)},
        "rejected",
        CONTRIB,
        "the operator is ONNX Runtime's own",
    ),
    RotaryRow(
        "rotary-microsoft-uncounted",
        (RTX,),
        {"domain": Is(MICROSOFT), "rank": Is(3), "counted": Is(False)},
        "rejected",
        ASKED,
        "of three axes it has to say num_heads",
        examples=({**_OWN, "rank": 3},),
    ),
    RotaryRow(
        "rotary-microsoft-start",
        (RTX,),
        {"domain": Is(MICROSOFT), "positions": Is("start")},
        "rejected",
        ASKED,
        "there has to be a position for each token",
        examples=({**_OWN, "positions": "start"},),
    ),
    RotaryRow(
        "rotary-tables-of-one-rtx",
        (RTX,),
        {"domain": Is(STANDARD), "tables": Is("one"), "positions": Is("none")},
        "rejected",
        ASKED,
        "the tables have to have an entry for each in the batch",
        presumed=(TRT_11,),
        examples=({"tables": "one"},),
    ),
    RotaryRow(
        "rotary-tables-of-one",
        (ORT_CPU,),
        {"domain": Is(STANDARD), "tables": Is("one"), "positions": Is("none")},
        "rejected",
        RAN,
        "the tables have to have an entry for each in the batch",
        presumed=(ORT_CUDA,),
        examples=({"tables": "one"},),
    ),
    RotaryRow(
        "rotary-float64",
        (ORT_CPU,),
        {"dtype": Is("float64")},
        "rejected",
        RAN,
        "there is no operator of float64",
        examples=({"dtype": "float64"},),
    ),
    RotaryRow(
        "rotary-costs",
        (RTX,),
        {},
        "costs",
        ASKED,
        "whole models move up to 7 % more bytes than with plain nodes, at as many kernels or one fewer",
        presumed=(TRT_11,),
        examples=_SHAPES,
    ),
    RotaryRow("rotary-cpu", (ORT_CPU,), {}, "runs", RAN, examples=(*_SHAPES, _OWN, {**_OWN, "positions": "start"})),
    RotaryRow("rotary-cuda", (ORT_CUDA,), {}, "runs", KERNELS),
    RotaryRow("rotary-onnx", (ONNX,), {"domain": Is(STANDARD)}, "runs", CHECKED, examples=_SHAPES),
)


def takes_rotary(target: Target, facts: RotaryFacts) -> bool:
    """Whether every runtime that a target stands for takes an operator as it is."""
    return not any(row.outcome == "rejected" for row in _matching(target, facts))


def gains_by_rotary(target: Target, facts: RotaryFacts) -> bool:
    """Whether it is worth writing: taken, and nowhere at more than plain nodes cost."""
    return all(row.outcome == "runs" for row in _matching(target, facts))


def _matching(target: Target, facts: RotaryFacts) -> list[RotaryRow]:
    editions = set(target.editions)
    return [row for row in ROTARY if editions & {*row.editions, *row.presumed} and row.matches(facts)]
