"""Which kernel each attention site reached.

A site has landed when its Softmax (or `Attention` node, or what a function of ours computes) is in a kernel whose name
contains `_mha`; a spelled-out softmax when its product with V is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import onnx

from onnx_attn.engine.kernels import Engine, Kernel
from onnx_attn.engine.names import as_written
from onnx_attn.graph.view import called
from onnx_attn.site import Candidate, Verdict, Written, engine_name


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
    those that compute the same from the same values, or whose functions are called with the same values.
    """
    sites = [candidate for candidate in candidates if is_site(candidate)]
    kernels = _Index(engine.kernels)
    found = {id(site): kernels.of(_addresses(engine_name(site), site)) for site in sites}
    lost = [site for site in sites if found[id(site)] is None]
    twins = _twins(model, {_outermost(site) for site in sites}) if lost else {}
    landings = []
    for site in sites:
        kernel, twin = found[id(site)], None
        if kernel is None:
            for other in sites:
                merged = found[id(other)] is not None and _outermost(other) in twins.get(_outermost(site), ())
                if merged and _inside(other) == _inside(site):
                    kernel, twin = found[id(other)], other.name
                    break
        landings.append(Landing(site, kernel, twin))
    return landings


def _outermost(site: Candidate) -> str:
    """The node of the main graph that a site is, or lies beneath."""
    scope = _scope(site)
    return scope.split(" | ")[-1].rpartition(" (")[0] if scope else engine_name(site)


def _inside(site: Candidate) -> tuple[str, ...]:
    """The way from that node to the site."""
    return (engine_name(site), *_scope(site).split(" | ")[:-1]) if _scope(site) else ()


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


def _scope(site: Candidate) -> str:
    return site.scope if isinstance(site, Verdict) else ""


_BRANCH = re.compile(r" \((then_branch|else_branch|body)\)$")
_HOLDER = re.compile(r" \((If|Loop|Scan)\)$")


def _addresses(anchor: str, site: Candidate) -> list[str]:
    """How a report may call a site. The branch is left out where an If is decided when it is compiled, and all that holds a
    body where that is of Loop or Scan; names are unique without them."""
    names: tuple[str, ...] = as_written(anchor)
    if isinstance(site, Written) and site.form == "function":
        names = (f"Softmax | {anchor} ({site.node.op})", *names)
    steps = _scope(site).split(" | ") if _scope(site) else []
    shorter = [step for step in steps if not _BRANCH.search(step)]
    ways = dict.fromkeys(map(tuple, (steps, shorter, [step for step in shorter if not _HOLDER.search(step)])))
    return [" | ".join((name, *way)) for way in ways for name in names]


_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Max", "Min"})


def _twins(model: onnx.ModelProto, wanted: Set[str]) -> dict[str, set[str]]:
    """Which of these nodes of the main graph compute the same operator, attributes included, from the same values."""
    numbers: dict[object, int] = {}
    values: dict[str, int] = {}
    groups: dict[int, set[str]] = {}
    group_of: dict[str, int] = {}

    def number(key: object) -> int:
        return numbers.setdefault(key, len(numbers))

    def value(name: str) -> int:
        return values[name] if name in values else number(name)

    for node in model.graph.node:
        attributes = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
        if node.op_type == "Identity" and not node.domain:
            values[node.output[0]] = value(node.input[0])
            continue
        inputs = [value(name) for name in node.input]
        order = sorted(inputs) if node.op_type in _COMMUTATIVE else inputs
        key = number((node.domain, node.op_type, attributes, tuple(order)))
        for position, name in enumerate(node.output):
            values[name] = number((key, position))
        label = called(node)
        if label in wanted:
            groups.setdefault(key, set()).add(label)
            group_of[label] = key
    return {label: groups[key] - {label} for label, key in group_of.items()}
