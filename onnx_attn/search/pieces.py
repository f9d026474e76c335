"""A piece of the model, or the whole, as a model to be compiled at the shapes that the user will build with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import numpy_helper

from onnx_attn.engine.profiles import Profile, Range, sizes_at
from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.world import World
from onnx_attn.prove.cut import Cut, Cutter
from onnx_attn.search.ask import Question


@dataclass(frozen=True)
class Pieces:
    """Cuts pieces out of a model. worlds: at the smallest, usual and largest sizes."""

    cutter: Cutter
    worlds: tuple[World, World, World]

    def question(self, outputs: Sequence[str], start: set[str], edit: SiteEdit | None) -> Question | None:
        """The piece from `start` to `outputs` as it is written by `edit`; None where a shape is not known."""
        cut = self.cutter.cut(outputs, start, edit)
        if not self._is_fixed:
            # What follows from sizes is computed in the piece itself: it varies. Where it follows from the shape of a value
            # outside, that value is an input.
            made = {name for node in cut.model.graph.node for name in node.output}
            cut = self.cutter.cut(outputs, start | (self._asked_for_shapes - made), edit, kinds="")
        return self._shaped(cut)

    def whole(self, edits: Sequence[SiteEdit]) -> Question | None:
        """The model as it is written by all these edits."""
        outputs = [value.name for value in self.cutter.view.proto.graph.output]
        return self._shaped(self.cutter.cut(outputs, set(), joined(edits) if edits else None, kinds=""))

    @cached_property
    def _asked_for_shapes(self) -> set[str]:
        return {node.input[0] for node in self.cutter.view.proto.graph.node if node.op_type == "Shape"}

    @property
    def _is_fixed(self) -> bool:
        return self.worlds[0] is self.worlds[2]

    def _shaped(self, cut: Cut) -> Question | None:
        model, shapes = cut.model, {}
        for name in cut.known:
            value = self.worlds[0].value(name)
            if value is None:
                return None
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        inputs = [value for value in model.graph.input if value.name not in cut.known]
        del model.graph.input[:]
        for value in inputs:
            found = [world.shape(value.name) for world in self.worlds]
            if any(shape is None for shape in found):
                return None
            smallest, usual, largest = [shape for shape in found if shape is not None]
            sizes = list(zip(smallest, usual, largest, strict=True))
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for three in sizes:
                # Sizes that vary alike are one size.
                named = onnx.TensorShapeProto.Dimension(dim_param="_".join(map(str, three)))
                dims.append(named if len({*three}) > 1 else onnx.TensorShapeProto.Dimension(dim_value=three[0]))
            if any(len({*three}) > 1 for three in sizes):
                shapes[value.name] = (smallest, usual, largest)
            model.graph.input.append(value)
        return Question(model, shapes)


def pieces_of(cutter: Cutter, profile: Profile) -> Pieces:
    """profile: the shapes of every input that varies."""
    proto = cutter.view.proto
    if not profile:
        world = cutter.view.worlds[0]
        return Pieces(cutter, (world, world, world))
    inference = Inference(proto)
    ranges: list[Range] = list(profile.values())
    if all(smallest == largest for smallest, _, largest in ranges):
        world = inference.run(sizes_at(proto, profile, 1))
        return Pieces(cutter, (world, world, world))
    first, second, third = (inference.run(sizes_at(proto, profile, place)) for place in range(3))
    return Pieces(cutter, (first, second, third))


def joined(edits: Sequence[SiteEdit]) -> SiteEdit:
    """Several edits as one."""
    return SiteEdit(
        "",
        tuple(splice for edit in edits for splice in edit.splices),
        tuple({tensor.name: tensor for edit in edits for tensor in edit.initializers}.values()),
        tuple({function.name: function for edit in edits for function in edit.functions}.values()),
        (),
        False,
    )
