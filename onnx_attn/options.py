"""What `fuse` was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import onnx

from onnx_attn.decision import Choice
from onnx_attn.graph.weights import is_past_protobuf
from onnx_attn.plan_file import ReadPlan
from onnx_attn.search.search import Asked
from onnx_attn.targets.editions import Target, parse_target

Address: TypeAlias = tuple[int, ...]
"""Where an attention site lies: its place among those of the main graph; or the number of a body, and its address in there."""


@dataclass(frozen=True)
class Expansion:
    """What `expand` was asked for.

    sites: where those lie that are asked for, and their names; None for all. opset: what the model is to be brought to.
    """

    sites: Mapping[Address, str] | None = None
    opset: int | None = None

    @property
    def names(self) -> set[str] | None:
        """Of the sites that are asked for in this graph itself; None for all."""
        return {name for at, name in self.sites.items() if len(at) == 1} if self.sites is not None else None

    def inside(self, number: int) -> Expansion:
        """What is asked for in a body of this graph."""
        sites = self.sites
        own = (
            {at[1:]: name for at, name in sites.items() if at[0] == number and len(at) > 1}
            if sites is not None
            else None
        )
        return Expansion(own)


MOST_SCORES = 2**33
"""Bytes of a site's scores, and what stands beside them, up to which a model is run whole without being asked."""


@dataclass(frozen=True)
class Options:
    """What `fuse` was asked for."""

    target: Target = field(default_factory=lambda: parse_target("tensorrt"))
    choice: Choice = field(default_factory=Choice)
    expect: int | None = None
    verify: bool = True
    verify_large: bool = False
    """Also run a model whole that is past 2 GB, or whose scores are."""
    plan: ReadPlan | None = None
    search: Asked | None = None
    dynamic_batch: bool = False
    outer: frozenset[str] | None = None
    """Of a body: the names of the model around it."""
    prove_budget: float | None = None
    """Seconds for the proofs of sites; None for as many as they take."""
    draw: bool = False
    """Also make what the report to look at shows (`drawing/`)."""
    expansion: Expansion | None = None
    """Set where attention is to be taken apart, and not fused."""

    def why_left(self, model: onnx.ModelProto) -> str | None:
        """Why this model is not to be run whole; None if it is."""
        if not self.verify:
            return "no proof was asked for (--no-verify)"
        if not self.verify_large and is_past_protobuf(model):
            return "the model is past 2 GB, and would be run whole only with --verify-large; each site was proved by itself"
        return None

    def why_too_large(self, scores: int) -> str | None:
        """The same, by the bytes that the scores of one site take."""
        if self.verify_large or scores <= MOST_SCORES:
            return None
        return (
            f"the scores of one site take {scores / 1e9:.0f} GB as the model writes them out, and it would be run whole only "
            f"with --verify-large; each site was proved by itself"
        )

    @property
    def own_choices(self) -> Sequence[Choice | None]:
        """What a plan asks for each attention site by itself, in graph order."""
        if self.expansion is not None and self.expansion.sites is not None:
            sites, left = self.expansion.sites, replace(self.choice, apply=False)
            last = max((at[0] for at in sites if len(at) == 1), default=-1)
            return [replace(left, apply=(place,) in sites) for place in range(last + 1)]
        return self.plan.choices if self.plan is not None else ()

    @property
    def choices(self) -> list[Choice]:
        """What is asked for the sites that are to be written."""
        return [self.choice] if self.plan is None else [c for c in self.plan.choices if c is not None and c.apply]
