"""Run a model whose batch is fixed on more entries than it takes: so many at a time, and what it gives one behind the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_attn.runtime import Session


@dataclass(frozen=True)
class Slices:
    """How a model is run on slices: `size` entries at a time, along the first axis of `inputs`; outputs: the axis of each output
    that has an entry for each. Without inputs it is run on everything at once."""

    size: int = 1
    inputs: tuple[str, ...] = ()
    outputs: Mapping[str, int] = field(default_factory=dict)

    def run(self, session: Session, values: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """The outputs `names`. A last slice that is not full is filled up with the first entries, which are cut off again."""
        if not self.inputs:
            return session.run(values, names)
        count = len(values[self.inputs[0]])
        results = [session.run(part, names) for part in self._parts(values, count)]
        return [self._joined(name, parts, count) for name, parts in zip(names, zip(*results, strict=True), strict=True)]

    def _parts(self, values: Mapping[str, np.ndarray], count: int) -> Iterable[dict[str, np.ndarray]]:
        for start in range(0, count, self.size):
            entries = np.arange(start, start + self.size) % count
            yield {name: value[entries] if name in self.inputs else value for name, value in values.items()}

    def _joined(self, name: str, parts: Sequence[np.ndarray], count: int) -> np.ndarray:
        axis = self.outputs.get(name)
        if axis is None:
            return parts[0]
        joined = np.concatenate(parts, axis)
        return joined.take(np.arange(parts[0].shape[axis] // self.size * count), axis)


WHOLE = Slices()
