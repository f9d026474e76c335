"""What `fuse` was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from onnx_attn.plan import Choice
from onnx_attn.plan_file import ReadPlan
from onnx_attn.search.search import Asked
from onnx_attn.targets.editions import Target, parse_target


@dataclass(frozen=True)
class Expansion:
    """What `expand` was asked for.

    sites: the places of attention sites in graph order; None for all. opset: what the model is to be brought to.
    """

    sites: frozenset[int] | None = None
    opset: int | None = None


@dataclass(frozen=True)
class Options:
    """What `fuse` was asked for."""

    target: Target = field(default_factory=lambda: parse_target("tensorrt"))
    choice: Choice = field(default_factory=Choice)
    expect: int | None = None
    verify: bool = True
    plan: ReadPlan | None = None
    search: Asked | None = None
    dynamic_batch: bool = False
    outer: frozenset[str] | None = None
    """Of a body: the names of the model around it."""
    expansion: Expansion | None = None
    """Set where attention is to be taken apart, and not fused."""

    @property
    def own_choices(self) -> Sequence[Choice | None]:
        """What a plan asks for each attention site by itself, in graph order."""
        if self.expansion is not None and self.expansion.sites is not None:
            last, left = max(self.expansion.sites, default=-1), replace(self.choice, apply=False)
            applied = replace(self.choice, apply=True)
            return [applied if place in self.expansion.sites else left for place in range(last + 1)]
        return self.plan.choices if self.plan is not None else ()

    @property
    def choices(self) -> list[Choice]:
        """What is asked for the sites that are to be written."""
        return [self.choice] if self.plan is None else [c for c in self.plan.choices if c is not None and c.apply]
