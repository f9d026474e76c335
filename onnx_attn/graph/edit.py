"""Edits are recorded, not done: a journal of what each site's rewriting puts in, composed into the model at the end.

To roll a site back is to leave its record out. What no record touches is never copied through another library's data
model, so nothing can be lost from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_attn.domain import DOMAIN
from onnx_attn.graph.rounding import Exact, Pieces, assembled, rounded
from onnx_attn.graph.weights import SMALLEST_EXTERNAL, put_apart

MOST_STORED = 64 * 2**20
"""Bytes of constants that one rewriting adds."""


@dataclass(frozen=True)
class Splice:
    """New nodes that stand where the original's node at `position` stood, and take over the values `outputs`; without
    any they stand before that node, which stays."""

    position: int
    nodes: tuple[onnx.NodeProto, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class RoundedScale:
    """A scale that the operands' type does not hold. exact: as it was before it was rounded. constant: the name of what holds it,
    or "" where it is the attribute `scale` of a function's call."""

    exact: float
    constant: str = ""


@dataclass(frozen=True)
class SiteEdit:
    """All that the rewriting of one site puts into the model. Original nodes that nobody needs any more go by themselves.

    sources: the values that the site's edit begins with, before and after.
    packed: Q, K and V, or K and V, come from one projection afterwards.
    algebra: the exact identities that were applied.
    exact: weights in float64, before they were rounded to be written, by name.
    scale: set where the scale had to be rounded to be written in the operands' type.
    folded: values that were computed and are stored now.
    rests_on_mask: the numbers of a constant mask decided how the site is written.
    added: the scales of quantisation steps that the site did not have.
    island: the half-precision type that the site is computed in now, where it was in a wider one; else 0.
    """

    site: str
    splices: tuple[Splice, ...]
    initializers: tuple[onnx.TensorProto, ...]
    functions: tuple[onnx.FunctionProto, ...]
    sources: tuple[str, ...]
    packed: bool
    algebra: tuple[str, ...] = ()
    exact: Mapping[str, Exact] = field(default_factory=dict)
    scale: RoundedScale | None = None
    folded: tuple[str, ...] = ()
    rests_on_mask: bool = False
    island: int = 0
    added: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(name for splice in self.splices for name in splice.outputs)

    @property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        return tuple(node for splice in self.splices for node in splice.nodes)


class Names:
    """Hands out names that the model does not use yet; values and nodes each in their own space."""

    def __init__(self, model: onnx.ModelProto, taken: Iterable[str] = (), made: Path | None = None):
        """taken: names of an enclosing model, which a body must not use for values of its own. made: a file for weights that are
        made, so that they need not be held."""
        self._made = made
        self._values = {*_value_names(model.graph), *taken}
        self._nodes = {node.name for node in model.graph.node}
        self.functions: dict[str, onnx.FunctionProto] = {}
        """The local functions of this rewriting, by name: sites of one signature share theirs."""
        self.present = {f.name: f for f in model.functions if f.domain == DOMAIN}
        """Functions of our domain that the model has already."""
        self._claimed: dict[str, None] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._stored = 0

    def value(self, hint: str) -> str:
        return _unique(hint, self._values)

    def node(self, hint: str) -> str:
        return _unique(hint, self._nodes)

    def function(self, made: onnx.FunctionProto) -> onnx.FunctionProto:
        """A function of ours under its own name, or with a number behind it where another has that; made once for all."""
        wanted, number = made.name, 1
        while (known := self.functions.get(made.name) or self.present.get(made.name)) is not None and known != made:
            number += 1
            made.name = f"{wanted}_{number}"
        return self.functions.setdefault(made.name, made)

    def claim(self, name: str) -> str:
        """A name that an original node gives up, for its successor; made unique where two nodes had it."""
        if name in self._claimed:
            name = self.node(name)
        self._claimed[name] = None
        return name

    @property
    def claims(self) -> int:
        """How many names were claimed."""
        return len(self._claimed)

    def unclaim(self, nodes: Iterable[onnx.NodeProto] = (), since: int | None = None) -> None:
        """Give back the names of nodes that will not be used after all, or all that were claimed since there were so many."""
        for node in nodes:
            self._claimed.pop(node.name, None)
        while since is not None and len(self._claimed) > since:
            self._claimed.popitem()

    def constant(self, array: np.ndarray, hint: str) -> onnx.TensorProto:
        """One initializer for all constants of the same type, shape and content: they are stored once."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, self.value(hint))
            self._stored += array.nbytes
        return self._constants[key]

    def stored(self, array: np.ndarray, name: str) -> onnx.TensorProto:
        """A weight with these numbers: in memory, or in a file where there is one."""
        if self._made is None or array.nbytes < SMALLEST_EXTERNAL:
            return numpy_helper.from_array(np.ascontiguousarray(array), name)
        return put_apart(array, name, self._made)

    def has_room(self, value: onnx.TensorProto) -> bool:
        """Whether a constant that could as well be left to be computed may be stored: a rewriting must not swell the file."""
        return self._stored + len(value.raw_data) <= MOST_STORED


@dataclass
class Writer:
    """Builds the nodes of one site's rewriting, in order. gives_up: the original's node of the site's name goes with it."""

    names: Names
    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    exact: dict[str, Exact] = field(default_factory=dict)
    gives_up: bool = True

    def site_name(self) -> str:
        """The name of the node that is the site: the original's, where that gives it up."""
        return self.names.claim(self.prefix) if self.gives_up else self.names.node(f"{self.prefix}/recomputed")

    def add(
        self,
        op: str,
        inputs: Iterable[str],
        hint: str,
        *,
        outputs: int = 1,
        output: str | None = None,
        name: str | None = None,
        domain: str = "",
        doc: str = "",
        attributes: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """Append a node and return its output's name (a list of names for several). `output` gives the name to take over."""
        produced = [output] if output else [self.names.value(f"{self.prefix}/{hint}") for _ in range(outputs)]
        node_name = name if name is not None else self.names.node(f"{self.prefix}/{hint}")
        node = helper.make_node(
            op,
            list(inputs),
            produced,
            name=node_name,
            domain=domain or None,
            doc_string=doc or None,
            **(attributes or {}),
            **more,
        )
        self.nodes.append(node)
        return produced[0] if outputs == 1 else produced

    def constant(self, array: np.ndarray, hint: str) -> str:
        """A small constant, shared with every equal one of this rewriting."""
        tensor = self.names.constant(array, f"onnx_attn/{hint}")
        self.initializers[tensor.name] = tensor
        return tensor.name

    def shape(self, *dims: int) -> str:
        return self.constant(np.asarray(dims, np.int64), "shape")

    def weight(self, array: np.ndarray, hint: str) -> str:
        """A weight of this site's own."""
        name = self.names.value(f"{self.prefix}/{hint}")
        self.initializers[name] = self.names.stored(array, name)
        return name

    def computed_weight(self, exact: Exact, dtype: np.dtype, hint: str) -> str:
        """A weight that is computed in float64 and rounded once.

        Raises RoundsBadlyError where the type cannot hold it to its own precision.
        """
        wide = exact()
        name = self.weight(rounded(wide.shape, lambda: iter([((slice(None),), wide)]), dtype, hint), hint)
        self.exact[name] = exact
        return name

    def computed_pieces(self, shape: tuple[int, ...], pieces: Pieces, dtype: np.dtype, hint: str) -> str:
        """The same, piece by piece."""
        name = self.weight(rounded(shape, pieces, dtype, hint), hint)
        self.exact[name] = lambda: assembled(shape, pieces)
        return name


def _unique(hint: str, taken: set[str]) -> str:
    name, count = hint, 1
    while name in taken:
        count += 1
        name = f"{hint}_{count}"
    taken.add(name)
    return name


def _value_names(graph: onnx.GraphProto) -> Iterable[str]:
    """Every value name of a graph and of the graphs inside it."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield from (value.name for value in (*current.input, *current.output, *current.value_info))
        yield from (tensor.name for tensor in current.initializer)
        for node in current.node:
            yield from node.output
            stack.extend(subgraphs(node))


def subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, those that its bodies take from the enclosing scopes included."""
    names = list(node.input)
    for attribute in node.attribute:
        if attribute.type in _GRAPHS:
            names.extend(_read_inside(subgraphs(node)))
            break
    return names


_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _read_inside(graphs: Iterable[onnx.GraphProto]) -> Iterator[str]:
    """What bodies read and do not make, as often as they do: no name that they make is one of the scopes around them."""
    stack, found, made = list(graphs), list[str](), set[str]()
    while stack:
        graph = stack.pop()
        found += [value.name for value in graph.output]
        made.update(value.name for value in (*graph.input, *graph.initializer))
        for inner in graph.node:
            found += inner.input
            made.update(inner.output)
            stack.extend(subgraphs(inner))
    yield from (name for name in found if name not in made)


def named_outside(model: onnx.ModelProto) -> set[str]:
    """Values of the main graph that training info or quantization annotations name."""
    names = {entry.value for note in model.graph.quantization_annotation for entry in note.quant_parameter_tensor_names}
    for training in model.training_info:
        for binding in (*training.initialization_binding, *training.update_binding):
            names |= {binding.key, binding.value}
        for graph in (training.initialization, training.algorithm):
            names |= {name for node in graph.node for name in reads(node)}
    return names
