"""Which kernel each attention site reached.

A site has landed when its Softmax (or `Attention` node, or what a function of ours computes) is in a kernel whose name
contains `_mha`; a spelled-out softmax when its product with V is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from onnx_attn.engine.kernels import Engine, Kernel
from onnx_attn.engine.names import as_written
from onnx_attn.site import Candidate, Verdict


@dataclass(frozen=True)
class Landing:
    """Where one site ended. `kernel` is None where no kernel carries its name; `twin` is the site that it was merged with."""

    candidate: Candidate
    kernel: Kernel | None
    twin: str | None = None

    @property
    def landed(self) -> bool:
        return self.kernel is not None and self.kernel.is_attention


def is_site(candidate: Candidate) -> bool:
    """Whether a candidate is attention, readable or not."""
    return not isinstance(candidate, Verdict) or candidate.attention


def find_landings(model: onnx.ModelProto, candidates: Sequence[Candidate], engine: Engine) -> list[Landing]:
    """The kernel of every site, in order. `model` is what was compiled, with names that can be told apart (names.py).

    Identical sites are merged by the compiler and carry one of the names: a site of which no kernel tells is looked up by
    those that compute the same from the same values.
    """
    sites = [candidate for candidate in candidates if is_site(candidate)]
    kernels = _Index(engine.kernels)
    found = {id(site): kernels.of(_addresses(site)) for site in sites}
    lost = [site for site in sites if found[id(site)] is None]
    twins = _twins(model, [_anchor(site) for site in sites]) if lost else {}
    landings = []
    for site in sites:
        kernel, twin = found[id(site)], None
        if kernel is None:
            same = [other for other in sites if found[id(other)] and _anchor(other) in twins.get(_anchor(site), ())]
            if same and not _scope(site):
                kernel, twin = found[id(same[0])], same[0].name
        landings.append(Landing(site, kernel, twin))
    return landings


class _Index:
    """Kernels by the nodes that they compute, and by what holds these; an attention kernel goes before others."""

    def __init__(self, kernels: Iterable[Kernel]):
        self._by_address: dict[str, Kernel] = {}
        for kernel in sorted(kernels, key=lambda kernel: not kernel.is_attention):
            for layer in kernel.onnx_layers:
                for address in _paths(layer):
                    self._by_address.setdefault(address, kernel)

    def of(self, addresses: Iterable[str]) -> Kernel | None:
        return next((self._by_address[address] for address in addresses if address in self._by_address), None)


def _paths(layer: str) -> Iterable[str]:
    """`INNER | CALLER (FUNCTION) | OUTER (BLOCK)` as the addresses of the inner node and of each caller."""
    yield layer
    way = layer.split(" | ")
    for step in range(1, len(way)):
        caller, _, kind = way[step].rpartition(" (")
        if kind.endswith(")"):
            yield " | ".join([caller, *way[step + 1 :]])


def _anchor(site: Candidate) -> str:
    return (site.anchor if isinstance(site, Verdict) else "") or site.name


def _scope(site: Candidate) -> str:
    return site.scope if isinstance(site, Verdict) else ""


def _addresses(site: Candidate) -> list[str]:
    scope = f" | {_scope(site)}" if _scope(site) else ""
    return [name + scope for name in as_written(_anchor(site))]


def _twins(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, set[str]]:
    """Which of these nodes of the main graph compute the same operator, attributes included, from the same values."""
    numbers: dict[object, int] = {}
    values: dict[str, int] = {}
    groups: dict[int, set[str]] = {}
    wanted, group_of = set(names), {}

    def number(key: object) -> int:
        return numbers.setdefault(key, len(numbers))

    for node in model.graph.node:
        attributes = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
        inputs = tuple(values.get(name, name) for name in node.input)
        key = number((node.domain, node.op_type, attributes, inputs))
        for position, name in enumerate(node.output):
            values[name] = number((key, position))
        label = node.name or next((name for name in node.output if name), "")
        if label in wanted:
            groups.setdefault(key, set()).add(label)
            group_of[label] = key
    return {label: groups[key] - {label} for label, key in group_of.items()}
