"""A site as something to look at: its nodes as they stood and as they were written, its masks; of what is left alone, the nodes
around the softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from onnx_attn.drawing.masks import pictures
from onnx_attn.drawing.piece import draw
from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView, label
from onnx_attn.prove.cut import Cut, Cutter, boundary
from onnx_attn.prove.signature import structure
from onnx_attn.site import AttentionSite, Candidate, Verdict
from onnx_attn.views.arrange import real
from onnx_attn.views.folding import is_fixed

Drawn = dict[str, Any]
"""`before` and `after` (`drawing.piece`; null where there is none), `masks`: one list of pictures a mask (`drawing.masks`)."""

UP, DOWN = 6, 3
"""How many nodes upwards and downwards of a softmax are shown where it is left alone."""
MOST_AROUND = 40


class Drawer:
    """Draws the sites of one model; of sites that are alike only the first is drawn, and stands for all."""

    def __init__(self, view: GraphView, cutter: Cutter, labels: Mapping[str, str] | None = None):
        """labels: what users call nodes that were renamed."""
        self._view, self._cutter, self._labels = view, cutter, labels or {}
        self._known: dict[tuple[str, ...], Drawn] = {}
        self._nodes: dict[str, gs.Node] = {}

    def written(self, site: AttentionSite, edit: SiteEdit) -> Drawn:
        """Before and after, between the values that its proof lies between."""
        start, folded = boundary(self._view, site, edit), set(edit.folded)
        outputs = [name for name in edit.outputs if name not in folded]
        before = self._cutter.cut(outputs, start | folded)
        after = self._cutter.cut(outputs, start.difference(folded), edit)
        return self._drawn(before, after, site)

    def _origins(self, site: AttentionSite) -> dict[str, str]:
        """Of masks that are computed and that no input decides: by how many nodes."""
        told = {}
        for mask in (real(self._view, each) for each in site.mask_tensors):
            if self._view.producer(mask) is not None and is_fixed(self._view, mask):
                count = len(self._cutter.cut([mask.name], set()).model.graph.node)
                told[mask.name] = f"made by {count} node{'' if count == 1 else 's'}, from weights"
        return told

    def standing(self, candidate: Candidate) -> Drawn | None:
        """As it is: a site from what its projections read, others by the nodes around them, among which is what blocks. None
        of what lies in a body."""
        site = candidate.recomputable if isinstance(candidate, Verdict) else candidate
        if not isinstance(site, AttentionSite) or site is not candidate:
            around = self._around(candidate.name)
            known = site if isinstance(site, AttentionSite) else None
            return self._drawn(around, None, known) if around is not None else None
        layers = site.projection.operands if site.projection is not None else (None, None, None)
        start = {layer.layer.source.name for layer in layers if layer is not None}
        start |= {
            operand.whole.source.name for layer, operand in zip(layers, site.operands, strict=True) if layer is None
        }
        start |= {real(self._view, mask).name for mask in site.mask_tensors}
        return self._drawn(self._cutter.cut([real(self._view, site.output).name], start), None, site)

    def _drawn(self, before: Cut, after: Cut | None, site: AttentionSite | None) -> Drawn:
        key = tuple(structure(self._view, cut) for cut in (before, after) if cut is not None)
        if key not in self._known:
            worlds = self._view.worlds
            told_of = self._origins(site) if site is not None else {}
            self._known[key] = {
                "before": draw(before.model, worlds, self._labels, told_of),
                "after": draw(after.model, worlds, self._labels) if after is not None else None,
                "masks": [pictures(self._view, term) for term in site.masks] if site is not None else [],
            }
        return self._known[key]

    def _around(self, name: str) -> Cut | None:
        """The nodes near a softmax, or near an operator of a runtime."""
        if not self._nodes:
            self._nodes = {label(node): node for node in self._view.graph.nodes}
        node = self._nodes.get(name)
        if node is None:
            return None
        near = {id(node): node}
        self._spread(near, node, DOWN, lambda each: [r for value in each.outputs for r in self._view.readers(value)])
        self._spread(near, node, UP, lambda each: [m for v in each.inputs if (m := self._view.producer(v)) is not None])
        made = {value.name for each in near.values() for value in each.outputs}
        values = [value for each in near.values() for value in each.inputs]
        read = {value.name for value in values if not self._view.is_weight(value)}
        ends = [v.name for each in near.values() for v in each.outputs if v.name and v.name not in read]
        return self._cutter.cut(ends or [node.outputs[0].name], read - made)

    def _spread(
        self, near: dict[int, gs.Node], start: gs.Node, steps: int, onward: Callable[[gs.Node], Sequence[gs.Node]]
    ) -> None:
        """Add nodes so many steps away, the nearest first; not those whose result sizes decide."""
        ring = [start]
        for _ in range(steps):
            ring = [next_ for each in ring for next_ in onward(each)]
            for each in ring:
                sized = all(self._view.worlds[0].value(value.name) is not None for value in each.outputs)
                if self._view.in_main_graph(each) and not sized and len(near) < MOST_AROUND:
                    near[id(each)] = each
            ring = [each for each in ring if id(each) in near]
