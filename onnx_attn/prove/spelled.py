"""The proof of one operator that is spelled out: it alone, and the plain nodes, on the same values in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_attn.domain import MICROSOFT
from onnx_attn.graph.world import World
from onnx_attn.operators.microsoft.table import Spelled
from onnx_attn.prove.compare import RTOL, difference
from onnx_attn.runtime import SEED, CannotRun, Session

CASES = 3
Given = Callable[[np.random.Generator, "Trial"], np.ndarray]
"""Whole numbers for one input of an operator, of which not all are legal."""


@dataclass(frozen=True)
class Trial:
    """One way to call a node: shape and type of every input by its place, and those values that are known."""

    node: onnx.NodeProto
    shapes: Mapping[int, tuple[int, ...]]
    types: Mapping[int, int]
    values: Mapping[int, np.ndarray]
    place: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input at `place`."""
        return self.shapes[self.place]

    @property
    def names(self) -> dict[str, int]:
        """Each input's name with the place where it stands first."""
        return {self.node.input[place]: place for place in sorted(self.shapes, reverse=True)}

    @property
    def float_type(self) -> str:
        found = [helper.tensor_dtype_to_np_dtype(elem_type).name for elem_type in self.types.values()]
        return next((name for name in found if name in RTOL), "float32")


def prove_spelled(opset: int) -> Callable[[onnx.NodeProto, Spelled, Sequence[World]], tuple[str, str] | None]:
    """The proof for a model of this opset: why a spelling is not taken, a code and in words; None where it does the same."""

    def proof(node: onnx.NodeProto, spelled: Spelled, worlds: Sequence[World]) -> tuple[str, str] | None:
        try:
            for number, trial in enumerate(_trials(node, worlds)):
                sessions = [Session(model, node.op_type) for model in _models(trial, spelled, opset)]
                for case in range(CASES):
                    inputs = _values(trial, np.random.default_rng([SEED, number, case]))
                    before, after = (session.run(inputs) for session in sessions)
                    for name, expected, actual in zip(sessions[0].outputs, before, after, strict=True):
                        found, rtol = difference(expected, actual), RTOL[trial.float_type]
                        if not found.within(rtol):
                            return "proof-failed", f"'{name}': {found.told(rtol)}"
        except CannotRun as error:
            return "unprovable-here", str(error)
        return None

    return proof


def _trials(node: onnx.NodeProto, worlds: Sequence[World]) -> Iterator[Trial]:
    """At the sizes of every world, or, where they vary and the operator does not take any, at sizes that it takes."""
    own = [_trial(node, world) for world in worlds]
    if node.op_type != "GroupQueryAttention" or len(worlds) == 1:
        yield from own
        return
    for trial in own:
        yield from _calls_of_decoder(trial, {name for name in "BSP" if len({_axis(each, name) for each in own}) > 1})


def _trial(node: onnx.NodeProto, world: World) -> Trial:
    places = [place for place, name in enumerate(node.input) if name]
    shapes = {place: world.shape(node.input[place]) for place in places}
    unknown = [node.input[place] for place, shape in shapes.items() if shape is None]
    if unknown:
        raise CannotRun(f"the shape of '{unknown[0]}' is not known")
    found = {place: world.value(node.input[place]) for place in places}
    values = {place: value for place, value in found.items() if value is not None}
    types = {place: world.elem_type(node.input[place]) for place in places}
    return Trial(node, {place: shape or () for place, shape in shapes.items()}, types, values)


_DECODER_AXES = {0: "BS.", 1: "BS.", 2: "BS.", 3: "B.P.", 4: "B.P.", 5: "B", 9: "BS", 10: "B.ST"}
"""GroupQueryAttention's inputs by their axes: batch, new keys, past, all keys."""


def _axis(trial: Trial, name: str) -> int:
    found = (
        shape[_DECODER_AXES[p].index(name)] for p, shape in trial.shapes.items() if name in _DECODER_AXES.get(p, "")
    )
    return next(found, 0)


def _calls_of_decoder(trial: Trial, varying: set[str]) -> Iterator[Trial]:
    """A first prompt, a step, and one sequence that is continued: the calls of GroupQueryAttention that ONNX Runtime takes."""
    for changed in ({"P": 0}, {"S": 1}, {"B": 1}):
        if not changed.keys() <= varying:
            continue
        sizes = {name: _axis(trial, name) for name in "BSP"} | changed
        sizes["T"] = sizes["S"] + sizes["P"]
        shapes = {
            place: tuple(
                sizes[axis] if axis in sizes and (size != 1 or place != 10) else size
                for axis, size in zip(_DECODER_AXES.get(place, "." * len(shape)), shape, strict=True)
            )
            for place, shape in trial.shapes.items()
        }
        values = {place: value for place, value in trial.values.items() if place in (7, 8)}
        yield replace(trial, shapes=shapes, values=values)


def _models(trial: Trial, spelled: Spelled, opset: int) -> list[onnx.ModelProto]:
    node = trial.node
    inputs = [
        helper.make_tensor_value_info(name, trial.types[place], trial.shapes[place])
        for name, place in trial.names.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    bodies: tuple[tuple[Sequence[onnx.NodeProto], list[onnx.TensorProto]], ...] = (
        ([node], []),
        (spelled.nodes, list(spelled.initializers.values())),
    )
    return [
        helper.make_model(
            helper.make_graph(list(nodes), "operator", inputs, outputs, stored), opset_imports=opsets, ir_version=8
        )
        for nodes, stored in bodies
    ]


def _values(trial: Trial, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What is known, and for the rest numbers of the right kind."""
    values = dict[str, np.ndarray]()
    for name, place in trial.names.items():
        shape, dtype = trial.shapes[place], helper.tensor_dtype_to_np_dtype(trial.types[place])
        legal = LEGAL.get((trial.node.op_type, place))
        if place in trial.values:
            values[name] = trial.values[place]
        elif trial.types[place] in _FLOATS:
            # Weights such that sums stay as large as what is summed: half precision would compare roundings alone.
            fan_in = shape[0] if len(shape) == 2 else 1
            values[name] = np.asarray(rng.standard_normal(shape) / np.sqrt(max(fan_in, 1)), dtype)
        elif legal is not None:
            values[name] = np.asarray(legal(rng, replace(trial, place=place)), dtype)
        else:
            values[name] = np.asarray(rng.integers(0, 100, shape), dtype)
    return values


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def _mask(keys: Callable[[Trial], int]) -> Given:
    """Zeros and ones, whole rows of zeros among them; of one axis ends of sequences, and perhaps starts."""

    def given(rng: np.random.Generator, trial: Trial) -> np.ndarray:
        if len(trial.shape) != 1:
            return rng.integers(0, 2, trial.shape)
        batch = trial.shapes[0][0]
        ends = rng.integers(1, keys(trial) + 1, batch)
        return ends if trial.shape[0] == batch else np.concatenate([ends, rng.integers(0, ends)])

    return given


def _table_rows(table: int) -> Given:
    """Numbers of the rows of the table that is another input."""
    return lambda rng, trial: rng.integers(0, max(trial.shapes[table][0], 1), trial.shape)


def _attention_keys(past: int) -> Callable[[Trial], int]:
    return lambda trial: trial.shapes[0][1] + (trial.shapes[past][3] if past in trial.shapes else 0)


def _multi_head_keys(trial: Trial) -> int:
    key = trial.shapes.get(1, trial.shapes[0])
    return key[2 if len(key) == 4 else 1] + (trial.shapes[6][2] if 6 in trial.shapes else 0)


def _grouped_total(trial: Trial) -> int:
    """All keys of the longest sequence: as it is known, or the past's with the new ones behind them."""
    if 6 in trial.values:
        return int(trial.values[6].reshape(-1)[0])
    return _axis(trial, "S") + _axis(trial, "P")


def _grouped_last_keys(rng: np.random.Generator, trial: Trial) -> np.ndarray:
    """seqlens_k: of the longest sequence all keys, of the others some; all of them in a first prompt."""
    new, total = _axis(trial, "S"), _grouped_total(trial)
    ends = np.full(trial.shape, total)
    if total != new:
        ends = rng.integers(min(new, total), total + 1, trial.shape)
        ends.reshape(-1)[0] = total
    return ends - 1


LEGAL: Mapping[tuple[str, int], Given] = {
    ("Attention", 3): _mask(_attention_keys(4)),
    ("QAttention", 5): _mask(_attention_keys(8)),
    ("MultiHeadAttention", 4): _mask(_multi_head_keys),
    ("GroupQueryAttention", 5): _grouped_last_keys,
    ("GroupQueryAttention", 6): lambda rng, trial: np.full(trial.shape, _grouped_total(trial)),
    ("GroupQueryAttention", 9): lambda rng, trial: rng.integers(
        0, max(trial.shapes[7][0] - _axis(trial, "S"), 1), trial.shape
    ),
    ("EmbedLayerNormalization", 0): _table_rows(2),
    ("EmbedLayerNormalization", 1): _table_rows(4),
    ("EmbedLayerNormalization", 7): lambda rng, trial: rng.integers(0, 2, trial.shape),
    ("EmbedLayerNormalization", 8): _table_rows(3),
}
"""By operator and input: whole numbers that it takes."""
