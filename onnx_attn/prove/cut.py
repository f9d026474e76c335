"""Cut one site out of a model, before and after its rewriting, between the same tensors.

Whole numbers that follow from sizes alone enter a cut as inputs, at the sizes of the world that is tried: the arithmetic
of shapes is not what is proved here, and would drag half the model in. A cut that is to run in float64 also takes computed
numbers such as √(1/√H) as the model's own type rounds them: half precision makes 0.12497 of 0.125, and that is the scale.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import helper, numpy_helper

from onnx_attn.forms.mask import mask_source
from onnx_attn.graph.edit import SiteEdit, reads
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.weights import content
from onnx_attn.site import AttentionSite


@dataclass(frozen=True)
class Cut:
    """A runnable piece of a model. `known`: inputs whose value each world knows; the others are given freely."""

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    known: tuple[str, ...]


def boundary(view: GraphView, site: AttentionSite, edit: SiteEdit) -> set[str]:
    """Where a site begins: what its edit starts from, and its masks. A mask is part of the site where its rewriting rests on
    what is in it."""
    terms = (*site.masks, site.cleared) if site.cleared is not None else site.masks
    masks = {mask_source(view, term.mask).name for term in terms if term.mask is not None}
    return set(edit.sources) | (set() if edit.rests_on_mask else masks)


def same_nodes(before: Cut, after: Cut) -> bool:
    """True if two cuts compute their results by the same operators with the same attributes and constants, in the same order:
    nothing to rewrite."""
    known: dict[tuple[object, ...], int] = {}
    return _numbered(before.model.graph, known) == _numbered(after.model.graph, known)


def _numbered(graph: onnx.GraphProto, known: dict[tuple[object, ...], int]) -> list[int]:
    """The outputs by numbers that stand for what is computed: the same number in `known` for the same computation."""

    def number(*parts: object) -> int:
        return known.setdefault(parts, len(known))

    values = {value.name: number("input", value.name) for value in graph.input}
    for tensor in graph.initializer:
        values[tensor.name] = number("weight", tensor.data_type, *tensor.dims, content(tensor))
    for node in graph.node:
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        inputs = [values[name] if name else None for name in node.input]
        for place, name in enumerate(node.output):
            values[name] = number(node.domain, node.op_type, *attributes, *inputs, place)
    return [values[value.name] for value in graph.output]


class Cutter:
    """Cuts sites out of one model; its producers and weights are looked up once, at the first cut."""

    def __init__(self, view: GraphView):
        self.view = view

    @cached_property
    def _nodes(self) -> list[onnx.NodeProto]:
        return list(self.view.proto.graph.node)  # Keeps the messages alive, so that their ids stay their own.

    @cached_property
    def _producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self._nodes for name in node.output}

    @cached_property
    def _rank(self) -> dict[int, tuple[int, int]]:
        return {id(node): (position, 0) for position, node in enumerate(self._nodes)}

    @cached_property
    def _weights(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.view.proto.graph.initializer}

    def cut(
        self,
        outputs: Sequence[str],
        start: set[str],
        edit: SiteEdit | None = None,
        kinds: str = "iu",
        fixed: Mapping[str, onnx.TensorProto] | None = None,
        varying: bool = True,
    ) -> Cut:
        """The nodes from `start` to `outputs`, those of `edit` in place of the original's where it is given.

        kinds: the kinds of numpy types (`iu`: whole numbers, `f`: floats) whose known small values become inputs.
        fixed: values that take the place of the nodes that compute them. varying: known values that differ from world to world
        become inputs too; else they are computed.
        """
        producers, rank, weights = self._overlay(edit)
        weights = ChainMap(dict(fixed or {}), weights)
        nodes: dict[int, onnx.NodeProto] = {}
        used: dict[str, onnx.TensorProto] = {}
        free: dict[str, None] = {}
        known: dict[str, None] = {}
        seen, queue = set(), list(outputs)
        while queue:
            name = queue.pop()
            if not name or name in seen:
                continue
            seen.add(name)
            if name in weights and name not in start:
                used[name] = weights[name]
            elif name in start or name not in producers:
                free[name] = None
            elif (
                name not in outputs
                and start.isdisjoint(reads(producers[name]))
                and self._is_known(name, kinds, varying)
            ):
                value = self.view.constant_of(name)
                if value is not None and value.dtype.kind in "iu":  # Some operators want whole numbers as constants.
                    used[name] = numpy_helper.from_array(value, name)
                else:
                    known[name] = None
            else:
                node = producers[name]
                nodes[id(node)] = node
                queue.extend(reads(node))
        ordered = sorted(nodes.values(), key=lambda node: rank[id(node)])
        return self._model(ordered, list(used.values()), (list(free), list(known)), outputs, edit)

    def _overlay(
        self, edit: SiteEdit | None
    ) -> tuple[Mapping[str, onnx.NodeProto], Mapping[int, tuple[int, int]], MutableMapping[str, onnx.TensorProto]]:
        if edit is None:
            return self._producers, self._rank, self._weights
        producers: dict[str, onnx.NodeProto] = {}
        rank: dict[int, tuple[int, int]] = {}
        for splice in edit.splices:
            for order, node in enumerate(splice.nodes):
                producers.update(dict.fromkeys(node.output, node))
                rank[id(node)] = (splice.position, order - len(splice.nodes))
        weights = {tensor.name: tensor for tensor in edit.initializers}
        return ChainMap(producers, self._producers), ChainMap(rank, self._rank), ChainMap(weights, self._weights)

    def _is_known(self, name: str, kinds: str, varying: bool) -> bool:
        values = [world.value(name) for world in self.view.worlds]
        if not varying and self.view.constant_of(name) is None:
            return False
        return all(value is not None and value.dtype.kind in kinds for value in values)

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        shape = self.view.worlds[0].shape(name)
        free = None if shape is None else [None] * len(shape)
        return helper.make_tensor_value_info(name, self.view.worlds[0].elem_type(name), free)

    def _model(
        self,
        nodes: list[onnx.NodeProto],
        weights: list[onnx.TensorProto],
        inputs: tuple[list[str], list[str]],
        outputs: Sequence[str],
        edit: SiteEdit | None,
    ) -> Cut:
        free, known = inputs
        proto = self.view.proto
        typed_inputs = [self._typed(name) for name in (*free, *known)]
        graph = helper.make_graph(nodes, "cut", typed_inputs, [self._typed(name) for name in outputs], weights)
        functions = {(f.domain, f.name): f for f in (*proto.functions, *(edit.functions if edit else ()))}
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        for domain in ({domain for domain, _ in functions} | {node.domain for node in nodes}) - {"", "ai.onnx"}:
            opsets.setdefault(domain, 1)
        model = helper.make_model(
            graph,
            functions=list(functions.values()),
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
            ir_version=max(proto.ir_version, 8),
        )
        return Cut(model, tuple(free), tuple(known))
