"""A model as plain operations in order: what is one node of the model stays together as a unit, to be counted as it stands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import onnx

from onnx_attn.graph.world import Known, Shape


@dataclass(slots=True)
class Unit:
    """One node as it stands. role: fixed where the node is said in several operations. site: its number, −1 for none."""

    kind: str
    label: str
    role: str = ""
    site: int = -1


@dataclass(slots=True)
class Op:
    """One operation. kind: the operator, with its domain where that is not the standard's. unit: of its flow's units.

    role, site: what it is for, and of which site of the flow; read by `counting.roles`. varies: whether it has something to do
        when the model runs.
    """

    node: onnx.NodeProto
    kind: str
    label: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    unit: int = 0
    role: str = ""
    site: int = -1
    bodies: Sequence[Flow] = ()
    varies: bool = True

    def at(self, unit: int) -> Op:
        """The same as part of another unit."""
        return Op(self.node, self.kind, self.label, self.inputs, self.outputs, unit, bodies=self.bodies)


@dataclass
class Flow:
    """The operations of the main graph, or of a body of If, Loop or Scan, in the order in which they stand.

    known: types and shapes by name. given: its inputs. regions: its sites (`counting.regions`).
    constant: values that are there before the model runs: weights, what is computed from them alone, and the sizes of what does
        not vary. free: these, and few whole numbers that follow from sizes.
    """

    ops: list[Op]
    units: list[Unit]
    known: Mapping[str, Known]
    given: set[str]
    outputs: set[str]
    constant: InitVar[set[str]]
    makers: dict[str, int] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    regions: list[Any] = field(default_factory=list)
    free: set[str] = field(default_factory=set)

    def __post_init__(self, constant: set[str]) -> None:
        self.free, known = set(constant), self.known
        for number, op in enumerate(self.ops):
            for name in op.outputs:
                self.makers[name] = number
                if name in known and known[name].value is not None:
                    self.free.add(name)
            for name in op.inputs:
                self.readers.setdefault(name, []).append(number)
            op.varies = not self.free.issuperset(op.outputs)

    @property
    def every(self) -> Iterator[Flow]:
        """Itself and the bodies in it, however deep."""
        yield self
        for op in self.ops:
            for body in op.bodies:
                yield from body.every

    def shape(self, name: str) -> Shape | None:
        entry = self.known.get(name)
        return entry.shape if entry is not None else None

    def busy_readers(self, name: str) -> list[int]:
        """Those that have something to do: others read a type or a size alone."""
        return [number for number in self.readers.get(name, ()) if self.ops[number].varies]

    def elements(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else math.prod(shape)

    @property
    def unknown(self) -> str | None:
        """A value that is computed when the model runs and whose size is not known."""
        for flow in self.every:
            for op in flow.ops:
                for name in op.outputs:
                    if flow.shape(name) is None:
                        return name
        return None
