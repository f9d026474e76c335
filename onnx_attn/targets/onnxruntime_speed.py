"""In which form ONNX Runtime runs a site fastest on the CPU: the way that was measured so for the blocks nearest to it in shape.

Source: `onnxruntime_speed.json`, measured by `tools/runtime_forms.py`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from onnx_attn.targets.facts import Facts

UNPACKED = "-unpacked"
"""Marks the ways in which Q, K and V stay projected each by itself."""
ITSELF = "itself"
"""The export, run beside itself."""
_WEIGHTS = (1.0, 1.0, 0.5)
"""Of the lengths of queries and keys, and of the number of score matrices, in how far two shapes are apart."""


@dataclass(frozen=True)
class Measured:
    """A block that was measured. shape: logarithms of the numbers of queries, keys and score matrices. dynamic: exported with
    sizes that vary, for which some forms compute shapes. ratios: by way, how long a run takes as a ratio to the export's."""

    mask: str
    dynamic: bool
    shape: tuple[float, float, float]
    ratios: dict[str, float]


@dataclass(frozen=True)
class Way:
    """A form, and whether the in-projection is packed."""

    form: str
    pack: bool


def fastest(facts: Facts) -> Iterator[Way]:
    """The ways that are no slower than to leave a site as it is, the fastest first, and at last the one that only says it in one
    node; none for other types than float32, which is what was measured. What is not known of a shape could be anything: a way
    must not be slower in any, and counts as what it does in the mean."""
    if facts.dtype != "float32":
        return
    near = _nearest(facts)
    ways = set.intersection(*(set(each.ratios) for each in near)) - {ITSELF}
    if near[0].dynamic and near[0].mask != "none":
        # These lay the mask out by nodes that depend on what it comes as: a small T5 took 1.09 of its time, unlike the blocks.
        ways = {way for way in ways if not way.startswith("contrib")}
    taken = {way: [each.ratios[way] for each in near] for way in ways}
    for way in sorted(ways, key=lambda way: (statistics.geometric_mean(taken[way]), way)):
        if max(taken[way]) <= 1.0 + noise():
            yield Way(way.removesuffix(UNPACKED), not way.endswith(UNPACKED))
    yield Way("function", pack=False)


def _nearest(facts: Facts) -> Sequence[Measured]:
    """Of the blocks with such a mask, those that are nearest in what is known of the shape."""
    shape = tuple(map(_logarithm, (facts.query_length, facts.key_length, facts.matrices)))
    mask, dynamic = _mask(facts), None in shape
    found: dict[float, list[Measured]] = {}
    for each in measured():
        if each.mask == mask and each.dynamic == dynamic:
            apart = sum(
                weight * abs(a - b) for weight, a, b in zip(_WEIGHTS, shape, each.shape, strict=True) if a is not None
            )
            found.setdefault(apart, []).append(each)
    return found[min(found)]


def _mask(facts: Facts) -> str:
    """Which of the measured masks comes nearest: a bias has a number for every query."""
    if facts.causal or facts.mask == "boolean":
        return "boolean"
    if facts.mask == "additive":
        return "additive" if facts.mask_queries == "one" else "bias"
    return "none"


def _logarithm(size: int | None) -> float | None:
    return math.log2(size) if size else None


@lru_cache
def data() -> dict[str, Any]:
    """What was measured, and where: `measured` and `shapes`."""
    found: dict[str, Any] = json.loads(
        resources.files(__package__).joinpath("onnxruntime_speed.json").read_text("utf-8")
    )
    return found


@lru_cache
def measured() -> tuple[Measured, ...]:
    """Every block that was measured."""
    return tuple(
        Measured(
            row["mask"],
            row["dynamic"],
            (math.log2(row["queries"]), math.log2(row["keys"]), math.log2(row["batch"] * row["heads"])),
            row["ratios"],
        )
        for row in data()["shapes"]
    )


@lru_cache
def noise() -> float:
    """How far an export was measured to be from itself at most."""
    return max(abs(row["ratios"][ITSELF] - 1.0) for row in data()["shapes"])
