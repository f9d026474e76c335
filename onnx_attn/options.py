"""What `fuse` was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx_attn.plan import Choice
from onnx_attn.plan_file import ReadPlan
from onnx_attn.search.search import Asked
from onnx_attn.targets.editions import Target, parse_target


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

    @property
    def own_choices(self) -> Sequence[Choice | None]:
        """What a plan asks for each attention site by itself, in graph order."""
        return self.plan.choices if self.plan is not None else ()

    @property
    def choices(self) -> list[Choice]:
        """What is asked for the sites that are to be written."""
        return [self.choice] if self.plan is None else [c for c in self.plan.choices if c is not None and c.apply]
