"""Follow the batch from the inputs to the outputs, node by node.

Where a node can be read in several ways (a Reshape at B = 1) the most natural one is tried; a node that does not let the batch
pass sends the walk back to the nearest such node above, to try another. Layers are alike: what was learned of one is tried first
in the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from onnx_attn.batch.place import FREE, SIZED, Batch, Blocked, Place
from onnx_attn.batch.reading import Reading
from onnx_attn.batch.rules import RULES
from onnx_attn.batch.sizes import grown
from onnx_attn.batch.step import Step
from onnx_attn.domain import DOMAIN
from onnx_attn.graph.edit import reads, subgraphs
from onnx_attn.graph.view import STANDARD

MOST_TURNS = 200
"""How often another reading is tried, in a whole graph."""


class Walk:
    """The steps of one reading of the graph, by position; None for nodes that do not follow from the batch."""

    def __init__(self, reading: Reading, inputs: Sequence[str]):
        self.reading = reading
        self.nodes = list(reading.view.proto.graph.node)
        self.steps: list[Step | None] = [None] * len(self.nodes)
        self.turns: dict[int, tuple[int, int]] = {}
        """Of a node that was visited: the reading that was tried first, and how many others were since."""
        self.learned: dict[object, int] = {}
        """By what a node looks like, the reading that was left after others had failed: layers are alike."""
        self.made_by = {name: position for position, node in enumerate(self.nodes) for name in node.output}
        reading.begin(inputs)

    def run(self) -> None:
        """Raises Blocked with the node that lets no reading pass."""
        position, turns, first = 0, 0, None
        while position <= len(self.nodes):
            try:
                if position == len(self.nodes):
                    self._check_outputs()
                else:
                    self._visit(position)
                position += 1
            except Blocked as blocked:
                first = first or self._named(blocked, position)
                turns += 1
                before = self._open_choice(position, blocked) if turns <= MOST_TURNS else None
                if before is None:
                    raise first from None
                position = before

    def _visit(self, position: int) -> None:
        node, reading = self.nodes[position], self.reading
        self.steps[position] = None
        places = [reading.place(name) for name in node.input if name]
        if any(True for _ in subgraphs(node)):
            if any(reading.place(name) is not FREE for name in reads(node)):
                raise Blocked("the batch enters its body, which is not looked into")
            return
        if all(place is FREE for place in places):
            return
        start, turn = self.turns.get(position, (self.learned.get(self._signature(node), 0), 0))
        self.turns[position] = start, turn
        self.steps[position] = step = Step(reading, node, start + turn)
        self._finish(step, self._place(step, places))

    def _place(self, step: Step, places: Sequence[Place]) -> Place:
        """What the node's rule says."""
        node = step.node
        if not any(isinstance(place, Batch) for place in places):
            return grown(step) if node.op_type in ("Expand", "ConstantOfShape") else SIZED
        if node.domain == DOMAIN:
            raise Blocked("it was fused before; fuse the model that it was made of")
        rule = RULES.get(node.op_type) if node.domain in STANDARD else None
        if rule is None:
            raise Blocked("it is not known to keep the entries of a batch apart")
        return rule(step)

    def _finish(self, step: Step, place: Place) -> None:
        reading = self.reading
        results = reading.infer(step.written())
        for number, name in enumerate(step.node.output):
            if not name:
                continue
            found = [result[number] if number < len(result) else None for result in results]
            reading.note(name, place, found)
            if place is SIZED and reading.is_same(name):
                reading.places[name] = FREE

    def _signature(self, node: onnx.NodeProto) -> object:
        if node.op_type != "Reshape":
            return None
        first = self.reading.at(node.input[0], 0)
        after = self.reading.view.worlds[0].shape(node.output[0])
        return first.shape if first is not None else None, self.reading.place(node.input[0]), after

    def _open_choice(self, position: int, blocked: Blocked) -> int | None:
        """The nearest node above that can be read another way, with that reading chosen; None if there is none."""
        for above in self._above(position, blocked):
            step = self.steps[above]
            start, turn = self.turns.get(above, (0, 0))
            if step is not None and turn + 1 < step.choices:
                self.turns = {each: tried for each, tried in self.turns.items() if each < above}
                self.turns[above] = start, turn + 1
                self.learned[self._signature(step.node)] = start + turn + 1
                return above
        return None

    def _above(self, position: int, blocked: Blocked) -> Iterable[int]:
        """The position of a node and those of all that it is made of, the last first."""
        if position == len(self.nodes):
            position = self.made_by.get(blocked.output, 0)
        stack, seen = [position], {position}
        while stack:
            for name in reads(self.nodes[stack.pop()]):
                if (
                    (above := self.made_by.get(name)) is not None
                    and above not in seen
                    and self.steps[above] is not None
                ):
                    seen.add(above)
                    stack.append(above)
        return sorted(seen, reverse=True)

    def _check_outputs(self) -> None:
        """Every output that follows from the batch has to have it outermost on an axis: that is what can be told of it."""
        reading, found = self.reading, 0
        for value in reading.view.proto.graph.output:
            place = reading.place(value.name)
            shape = reading.view.worlds[0].shape(value.name) or ()
            if isinstance(place, Batch):
                found += 1
                if not place.is_outermost or (place.axis != 0 and shape[0] == reading.batch == 1):
                    raise Blocked("the batch is not outermost in the model's output", output=value.name)
            elif place is SIZED:
                raise Blocked("the model's output says the size of the batch", output=value.name)
            elif shape and shape[0] == reading.batch > 1:
                raise Blocked(
                    "the model's output has the baked batch and follows from no input that has it", output=value.name
                )
        if not found:
            raise Blocked("no output follows from the inputs' first axis", output=value.name)

    def _named(self, blocked: Blocked, position: int) -> Blocked:
        """The refusal with its node's name."""
        if position == len(self.nodes):
            position = self.made_by.get(blocked.output, 0)
        node = self.nodes[position]
        blocked.node = node.name or next((name for name in node.output if name), node.op_type)
        blocked.op = node.op_type
        return blocked
