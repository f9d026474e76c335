"""What recognisers read: graphsurgeon's graph with the worlds beside it, each node's place, and constants."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import named_outside
from onnx_attn.graph.inference import Memo
from onnx_attn.graph.opset import opset_of
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.graph.weights import to_array
from onnx_attn.graph.world import Shape, World, overridable


def label(node: gs.Node) -> str:
    """A node's name for people; the name of its first value stands in for a node without one."""
    return node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op)


def called(node: onnx.NodeProto) -> str:
    """What users call a node: its name, or that of its first value; empty where it has neither."""
    return node.name or next((name for name in node.output if name), "")


STANDARD = ("", "ai.onnx", None)
"""The names of the standard domain: an operator of another one may be called the same and be something else."""


class GraphView:
    """A model to read. Nothing here changes it: edits are recorded elsewhere (`graph.edit`) and composed at the end."""

    def __init__(self, proto: onnx.ModelProto, graph: gs.Graph | None = None, before: GraphView | None = None):
        """before: the view of another version of the model, of which much is the same: what is known of nodes and of movements by
        what they do, and not by name, is known here too."""
        self.proto = proto
        self.memo: Memo = {} if before is None else before.memo
        self.graph = graph if graph is not None else gs.import_onnx(proto)
        self.opset = opset_of(proto)
        self._shapes: dict[str, tuple[Shape, ...] | None] = {}
        self._constants: dict[str, np.ndarray | None] = {}
        self.found: dict[tuple[object, ...], Any] = {}
        """What readers found (`graph.remember`)."""
        self.layouts: dict[object, Any] = {} if before is None else before.layouts
        """What movements were found to do (`views.movement`)."""
        self.constancy: dict[int, bool] = {}
        """Whether the node at a position computes from weights alone (`views.folding`)."""
        self.folds: dict[str, onnx.TensorProto | None] = {}
        """The values of such nodes' results, None where they stay computed (`views.folding`)."""
        self.values: dict[frozenset[object], onnx.TensorProto | None] = {} if before is None else before.values
        """The same by all that decides them."""
        self.computed: dict[str, list[np.ndarray]] = {}
        """Masks at one world's sizes, by what a caller may give (`recognize.causality`)."""
        self.arranged: dict[str, Any] = {}
        """By name, what makes tensors that are read in other axes than the graph has them in (`views.arrange`)."""
        self.windows: dict[tuple[str, ...], Any] = {}
        """The windows of sites, by their operands (`recognize.window`)."""
        self.rotaries: dict[object, Any] = {}
        """The rotary embeddings of operands, by name and by what makes them (`recognize.rotary`)."""
        self.mask_kinds: dict[tuple[object, ...], Any] = {}
        """The kinds of sites' masks (`recognize.window_masks`)."""
        self._defaults = overridable(proto)
        self._output_ids = {id(tensor) for tensor in self.graph.outputs}
        self._position = {id(node): i for i, node in enumerate(self.graph.nodes)}

    @cached_property
    def worlds(self) -> tuple[World, ...]:
        """Inferred on first use: a graph without candidates never pays for it."""
        return worlds_of(self.proto, self.memo)

    def in_worlds(self, worlds: Iterable[World]) -> GraphView:
        """The same graph at other sizes."""
        other = copy.copy(self)
        other.__dict__["worlds"] = tuple(worlds)
        other._shapes, other._constants, other.found = {}, {}, {}
        return other

    @property
    def is_inferred(self) -> bool:
        """Whether the worlds are there already."""
        return "worlds" in self.__dict__

    @cached_property
    def _initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def initializer(self, name: str) -> onnx.TensorProto:
        """The stored tensor itself; graphsurgeon would keep a second copy of its numbers."""
        return self._initializers[name]

    def numbers(self, name: str) -> np.ndarray:
        """The numbers of a stored tensor, without a copy where the model holds them; else they are read from its data file."""
        return to_array(self._initializers[name])

    def position(self, node: gs.Node) -> int:
        """The node's index in the main graph of the original; KeyError for nodes of nested graphs."""
        return self._position[id(node)]

    def in_main_graph(self, node: gs.Node) -> bool:
        return id(node) in self._position

    def is_output(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self._output_ids

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        return tensor.inputs[0] if tensor.inputs else None

    def is_from_outside(self, tensor: gs.Tensor) -> bool:
        """Whether an input brings it: no node makes it, and no number is stored for it."""
        return self.producer(tensor) is None and not isinstance(tensor, gs.Constant)

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """The nodes that read a tensor, those of nested graphs included; a node that reads it twice stands twice."""
        return list(tensor.outputs)

    def shapes(self, tensor: gs.Tensor) -> tuple[Shape, ...] | None:
        """The tensor's shape in every world, or None if one of them does not know it."""
        name = tensor.name
        if name not in self._shapes:
            shapes = tuple(world.shape(name) for world in self.worlds)
            self._shapes[name] = None if None in shapes else shapes  # type: ignore[assignment]
        return self._shapes[name]

    def named_shape(self, tensor: gs.Tensor) -> list[int | str]:
        """The shape for a report: numbers where static, else the dimension's name, or "?" if it has none."""
        shapes, declared = self.shapes(tensor), tensor.shape
        if shapes is None:
            return list(declared) if declared is not None else []
        names = declared if declared is not None and len(declared) == len(shapes[0]) else ["?"] * len(shapes[0])
        return [
            sizes[0] if len(set(sizes)) == 1 else (name if isinstance(name, str) and name else "?")
            for name, sizes in zip(names, zip(*shapes, strict=True), strict=True)
        ]

    def rank(self, tensor: gs.Tensor) -> int | None:
        shapes = self.shapes(tensor)
        return len(shapes[0]) if shapes else None

    def elem_type(self, tensor: gs.Tensor) -> int:
        return self.worlds[0].elem_type(tensor.name)

    def static(self, tensor: gs.Tensor, axis: int) -> int | None:
        """The size of one dimension if it is the same in every world; None too where there is no such dimension."""
        shapes = self.shapes(tensor)
        if shapes is None or not all(-len(shape) <= axis < len(shape) for shape in shapes):
            return None
        return shapes[0][axis] if len({shape[axis] for shape in shapes}) == 1 else None

    def constant(self, tensor: gs.Tensor) -> np.ndarray | None:
        """A small value that is the same in every world: a constant, or computed from nothing but static sizes."""
        return self.constant_of(tensor.name)

    def constant_of(self, name: str) -> np.ndarray | None:
        """The same by a value's name."""
        if name not in self._constants:
            first, *others = (world.value(name) for world in self.worlds)
            same = first is not None and all(value is not None and np.array_equal(value, first) for value in others)
            self._constants[name] = first if same else None
        return self._constants[name]

    @cached_property
    def tensors(self) -> dict[str, gs.Tensor]:
        """The tensors of the main graph by name."""
        found: dict[str, gs.Tensor] = self.graph.tensors()
        return found

    def scalar(self, tensor: gs.Tensor) -> float | None:
        """A constant of one element, as a float64."""
        value = self.constant(tensor)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    @cached_property
    def pinned(self) -> set[str]:
        """Values that something outside the nodes names: they must stay as they are. Inputs' defaults, outputs, what
        training info binds, and the scales of quantization annotations."""
        graph = self.proto.graph
        return overridable(self.proto) | {value.name for value in graph.output} | named_outside(self.proto)

    def is_weight(self, tensor: gs.Tensor) -> bool:
        """True for an initializer that no caller can replace, or the result of a Constant node, whatever its size."""
        if tensor.name in self._defaults:
            return False
        producer = self.producer(tensor)
        return isinstance(tensor, gs.Constant) or (
            producer is not None and producer.op == "Constant" and producer.domain in STANDARD
        )
