"""The data types a reference architecture is described and built with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Size: TypeAlias = Literal["full", "tiny"]
Attn: TypeAlias = Literal["eager", "sdpa"]
Exporter: TypeAlias = Literal["torchscript", "dynamo"]
Axes: TypeAlias = dict[int, str]

TINY_HEADS = 4
TINY_HEAD = 24
"""No square of a power of two: 1/sqrt(24) is rounded, and so is everything that a scale is folded into."""
TINY_WIDTH = TINY_HEADS * TINY_HEAD
TINY_INNER = 32
"""Width inside the feed-forward part, narrow to keep the files small."""

BATCH = "batch"
SEQUENCE = "sequence"
PAST = "past"
TOTAL = "total"
"""Of keys: the past and what is new."""
MEMORY = "memory"
"""Of an encoder's states."""


@dataclass(frozen=True)
class Setting:
    """The choices that a builder may look at."""

    size: Size = "full"
    attn: Attn = "sdpa"
    dynamic: bool = False

    @property
    def tiny(self) -> bool:
        """Whether the small variant is wanted."""
        return self.size == "tiny"

    @property
    def images(self) -> int:
        """Batch of an image model: one, or two where the batch must not be specialised to one."""
        return 2 if self.dynamic else 1

    @property
    def length(self) -> int:
        """Sequence length of the example inputs."""
        return 16 if self.tiny else 128


@dataclass(frozen=True)
class Built:
    """A module ready to export, with example inputs and the axes that may vary."""

    module: nn.Module
    args: tuple[Tensor, ...]
    input_names: list[str]
    output_names: list[str]
    input_axes: list[Axes]
    output_axes: list[Axes]

    @property
    def dynamic_axes(self) -> dict[str, Axes]:
        """The varying axes of inputs and outputs by name, as the TorchScript exporter takes them."""
        names = self.input_names + self.output_names
        every = zip(names, self.input_axes + self.output_axes, strict=True)
        return {name: axes for name, axes in every if axes}

    @property
    def dynamic_shapes(self) -> tuple[Axes | tuple[Axes, ...], ...]:
        """The varying axes of each positional input, as the dynamo exporter takes them: those of *arguments are one tuple."""
        axes = tuple(dict(axes) for axes in self.input_axes)
        kinds = [parameter.kind for parameter in inspect.signature(self.module.forward).parameters.values()]
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            return axes
        named = len(kinds) - 1
        return (*axes[:named], axes[named:])

    def half(self) -> Built:
        """The same with floating point parameters and inputs in half precision; integers as they are."""
        args = tuple(arg.half() if arg.is_floating_point() else arg for arg in self.args)
        return replace(self, module=self.module.half(), args=args)

    def run(self) -> tuple[Tensor, ...]:
        """The module's outputs on the example inputs, always as a tuple."""
        with torch.no_grad():
            result = self.module(*self.args)
        return (result,) if isinstance(result, Tensor) else tuple(result)


@dataclass(frozen=True)
class Reference:
    """A named architecture: what it is and how it is built.

    `leave_alone` says why its sites must not be replaced, where that is so. `fixed_sequence` lists the
    exporters whose dynamic file declares a varying sequence, yet runs at the example's length only. `both_ways`: its
    library offers plain products (eager) and the fused operator (sdpa); the others know one way.
    """

    name: str
    summary: str
    builder: Callable[[Setting], Built]
    leave_alone: str = ""
    fixed_sequence: tuple[Exporter, ...] = ()
    both_ways: bool = False
