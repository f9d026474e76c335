"""The graph at several batch sizes at once: where the batch is in each value, and what is known of it at each size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_attn.batch.place import FREE, SIZED, Batch, Blocked, Place
from onnx_attn.graph.edit import Names, Writer
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Known, Shape, World


@dataclass(frozen=True)
class Trial:
    """One assignment of sizes: those of the view's world `base`, and a batch."""

    base: int
    batch: int


class Reading:
    """What is known so far. Values of which nothing is noted are FREE, and as the view's worlds have them.

    trials: each world of the view at the baked batch B, then all at 2·B, the first at 2·B + 1 too.
    """

    def __init__(self, view: GraphView, batch: int, names: Names):
        self.view, self.batch = view, batch
        bases = range(len(view.worlds))
        sizes = [(base, batch) for base in bases] + [(base, 2 * batch) for base in bases] + [(0, 2 * batch + 1)]
        self.trials = [Trial(*pair) for pair in sizes]
        self.inference = Inference(view.proto)
        self.places: dict[str, Place] = {}
        self.known: list[dict[str, Known]] = [{} for _ in self.trials]
        self.names = names
        self.first = Writer(names, "onnx_attn/batch")
        """What the whole graph shares: the batch as a vector of one number."""
        self.source = ""
        self._vector = ""

    def place(self, name: str) -> Place:
        return self.places.get(name, FREE) if name else FREE

    def at(self, name: str, trial: int) -> Known | None:
        found = self.known[trial].get(name)
        return found if found is not None else self.view.worlds[self.trials[trial].base].known.get(name)

    def shapes(self, name: str) -> list[Shape]:
        """The shape in every trial. Raises Blocked where it is not known."""
        found = [entry.shape if (entry := self.at(name, t)) is not None else None for t in range(len(self.trials))]
        if any(shape is None for shape in found):
            raise Blocked(f"the shape of '{name}' cannot be followed")
        return [shape for shape in found if shape is not None]

    def values(self, name: str) -> list[np.ndarray] | None:
        """The value in every trial, None where one of them does not know it."""
        found = [entry.value if (entry := self.at(name, t)) is not None else None for t in range(len(self.trials))]
        return None if any(value is None for value in found) else found  # type: ignore[return-value]

    def value(self, name: str) -> np.ndarray | None:
        """A value that is the same in every trial."""
        found = self.values(name)
        return found[0] if found is not None and all(np.array_equal(found[0], other) for other in found) else None

    def is_same(self, name: str) -> bool:
        """Whether a value is known and does not follow from the batch, though it may from other sizes."""
        found = self.values(name)
        if found is None:
            return False
        return all(np.array_equal(found[t.base], value) for t, value in zip(self.trials, found, strict=True))

    def per_world(self, found: Sequence[Shape]) -> list[Shape]:
        """Of one shape a trial, those at the baked batch: one a world of the view."""
        return list(found[: len(self.view.worlds)])

    def begin(self, inputs: Sequence[str]) -> None:
        """Say of inputs that their first axis is the batch."""
        self.source = inputs[0]
        for name in inputs:
            self.places[name] = Batch(0, (1,) * len(self.view.worlds))
            for known, trial in zip(self.known, self.trials, strict=True):
                before = self.view.worlds[trial.base].known[name]
                if before.shape is None:
                    raise Blocked(f"the shape of '{name}' cannot be followed")
                known[name] = Known(before.elem_type, (trial.batch, *before.shape[1:]))

    def infer(self, node: onnx.NodeProto) -> list[Sequence[Known | None]]:
        """What a node gives in every trial. Raises Blocked where it cannot run at one of them."""
        results = []
        for t, trial in enumerate(self.trials):
            scratch = World(self.view.worlds[trial.base].sizes)
            inputs = [self.at(name, t) if name else None for name in node.input]
            results.append(self.inference.outputs(node, inputs, scratch))
            if scratch.failures:
                raise Blocked(f"it cannot run at a batch of {trial.batch}")
        return results

    def note(self, name: str, place: Place, found: Sequence[Known | None]) -> None:
        """Remember a value: its place, and what is known of it in every trial. Raises Blocked where its sizes do not fit its
        place."""
        self.places[name] = place
        if isinstance(place, Batch) and any(entry is None or entry.shape is None for entry in found):
            found = self._annotated(name, place)
        for known, entry in zip(self.known, found, strict=True):
            if entry is not None:
                known[name] = entry
            else:
                known.pop(name, None)
        if isinstance(place, Batch) and not self.fits(place, self.shapes(name)):
            raise Blocked(f"'{name}' does not grow with the batch as it should")

    def _annotated(self, name: str, place: Batch) -> list[Known | None]:
        """Where onnx's inference has no word on an operator: what the model says of its result, grown with the batch."""
        grown: list[Known | None] = []
        for trial in self.trials:
            said = self.view.worlds[trial.base].known.get(name)
            if said is None or said.shape is None or place.axis >= len(said.shape):
                raise Blocked(f"the shape of '{name}' cannot be followed")
            sizes = list(said.shape)
            sizes[place.axis] = sizes[place.axis] // self.batch * trial.batch
            grown.append(Known(said.elem_type, tuple(sizes)))
        return grown

    def fits(self, place: Batch, shapes: Sequence[Shape]) -> bool:
        """Whether sizes are outer · n · inner on the batch's axis, and those of the baked batch on every other."""
        for trial, shape in zip(self.trials, shapes, strict=True):
            baked = shapes[trial.base]
            if len(shape) != len(baked) or not 0 <= place.axis < len(baked):
                return False
            unit = place.outer[trial.base] * self.batch
            if baked[place.axis] % unit or baked[place.axis] == 0:
                return False
            expected = list(baked)
            expected[place.axis] = baked[place.axis] // self.batch * trial.batch
            if tuple(expected) != shape:
                return False
        return True

    def inner(self, name: str, place: Batch) -> list[int]:
        """How many positions of the axis each entry has, behind one outer position: one number a world."""
        return self.inner_of([shape[place.axis] for shape in self.shapes(name)], place)

    def inner_of(self, sizes: Sequence[int], place: Batch) -> list[int]:
        return [size // (outer * self.batch) for size, outer in zip(sizes, place.outer, strict=False)]

    def vector(self) -> str:
        """The batch as a vector of one number, made once at the graph's beginning."""
        if not self._vector:
            writer = self.first
            if self.view.opset >= 15:
                name = writer.add("Shape", [self.source], "size", start=0, end=1)
            else:
                shape = writer.add("Shape", [self.source], "shape")
                name = writer.add("Gather", [shape, writer.shape(0)], "size", axis=0)
            self.places[name] = SIZED
            for known, trial in zip(self.known, self.trials, strict=True):
                known[name] = Known(onnx.TensorProto.INT64, (1,), np.asarray([trial.batch], np.int64))
            self._vector = name
        return self._vector
