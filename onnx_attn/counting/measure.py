"""One flow measured: operations and bytes of every site and of the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from onnx_attn.counting.flops import NOT_COUNTED, PRODUCTS, Sizes, elementwise_flops, product_flops
from onnx_attn.counting.flow import Flow, Op
from onnx_attn.counting.memory import Life, Peak, interior, lives, peak
from onnx_attn.counting.operator import REPEAT
from onnx_attn.counting.regions import Region

Shapes = Callable[[str], Sizes]


class UnknownSizeError(LookupError):
    """A value whose size cannot be said."""


@dataclass
class Flops:
    """Of a model. from_weights: of products that are computed from weights alone, known before the model runs and in none of the
    other figures. uncounted: operators that have no formula, how many of each."""

    products: Any = 0
    elementwise: Any = 0
    from_weights: Any = 0
    by_role: dict[str, Any] = field(default_factory=dict)
    uncounted: Counter[str] = field(default_factory=Counter)


@dataclass
class SiteFlops:
    """The operations of one site."""

    products: Any = 0
    elementwise: Any = 0


SitesFlops = dict[tuple[int, int], SiteFlops]
"""By flow (its `id`) and number of the site."""


def count_flops(flow: Flow, shapes: Shapes, sites: SitesFlops) -> Flops:
    """Of everything that is computed when the model runs; of an If, the branch that has more. Raises UnknownSizeError.

    sites: filled with those of every site, and of no site (−1).
    """
    found = Flops()
    for op in flow.ops:
        if op.bodies:
            _add(found, _body_flops(op, shapes, sites))
            continue
        product = op.kind in PRODUCTS
        if not op.varies:
            found.from_weights = found.from_weights + (_flops(op, shapes) if product else 0)
            continue
        if op.kind in NOT_COUNTED or ("." in op.kind and op.kind != REPEAT):
            found.uncounted[op.kind] += 1
            continue
        _count(found, op, _flops(op, shapes), product, sites.setdefault((id(flow), op.site), SiteFlops()))
    return found


def _flops(op: Op, shapes: Shapes) -> Any:
    try:
        return (product_flops if op.kind in PRODUCTS else elementwise_flops)(op, shapes)
    except (LookupError, ValueError, StopIteration) as error:
        if isinstance(error, UnknownSizeError):
            raise
        # Fewer axes than the operation needs: which types allow, and which fails when it runs.
        raise UnknownSizeError(f"'{op.label}' cannot run on operands of these sizes") from error


def _count(found: Flops, op: Op, flops: Any, product: bool, site: SiteFlops) -> None:
    for each in (found, site):
        if product:
            each.products = each.products + flops
        else:
            each.elementwise = each.elementwise + flops
    if product:
        found.by_role[op.role] = found.by_role.get(op.role, 0) + flops


def _body_flops(op: Op, shapes: Shapes, sites: SitesFlops) -> Flops:
    every = [count_flops(body, shapes, sites) for body in op.bodies]
    if all(each.products == every[0].products for each in every):
        return every[0]
    if not all(isinstance(each.products, int) for each in every):
        raise UnknownSizeError(f"the branches of '{op.label}' differ, and which has more depends on sizes")
    return max(every, key=lambda each: each.products)


def _add(found: Flops, other: Flops) -> None:
    found.products = found.products + other.products
    found.elementwise = found.elementwise + other.elementwise
    found.from_weights = found.from_weights + other.from_weights
    found.uncounted.update(other.uncounted)
    for role, flops in other.by_role.items():
        found.by_role[role] = found.by_role.get(role, 0) + flops


@dataclass(frozen=True)
class Memory:
    """Bytes of one way to run the model. attention: the most that lives inside of one site."""

    peak: Peak
    attention: int
    intermediates: int


@dataclass(frozen=True)
class SiteMemory:
    """Of one site as it is materialised. peak: the most that lives inside of it at a time. scores: S×S tensors together."""

    peak: int
    intermediates: int
    scores: int


@dataclass(frozen=True)
class MemoryFound:
    """Of one flow, both ways, and by site."""

    materialised: Memory
    fused: Memory
    sites: list[SiteMemory]
    bodies: list[MemoryFound]

    @property
    def every_site(self) -> Iterator[SiteMemory]:
        """In the order of `Flow.every`."""
        yield from self.sites
        for body in self.bodies:
            yield from body.every_site


def measure_memory(flow: Flow) -> MemoryFound:
    """Both ways. A body of If, Loop or Scan adds its own peak to what lives while its node runs."""
    bodies = {id(op): [measure_memory(body) for body in op.bodies] for op in flow.ops if op.bodies}
    plain, regions = lives(flow), flow.regions
    inside = [interior(flow, region) for region in regions]
    apart = lives(flow, regions, frozenset().union(*inside))
    sites = [_site(flow, region, plain, names) for region, names in zip(regions, inside, strict=True)]

    def whole(found: dict[str, Life], fused: bool) -> Memory:
        def extra(number: int) -> int:
            return max((_way(each, fused).peak.bytes for each in bodies[id(flow.ops[number])]), default=0)

        inner = [_way(each, fused) for every in bodies.values() for each in every]
        own = 0 if fused else max((site.peak for site in sites), default=0)
        return Memory(
            peak(flow, [*found.values()], extra),
            max([own, *(each.attention for each in inner)]),
            sum(life.size for life in found.values()) + sum(each.intermediates for each in inner),
        )

    return MemoryFound(
        whole(plain, False), whole(apart, True), sites, [each for every in bodies.values() for each in every]
    )


def _way(found: MemoryFound, fused: bool) -> Memory:
    return found.fused if fused else found.materialised


def _site(flow: Flow, region: Region, plain: dict[str, Life], names: set[str]) -> SiteMemory:
    own = [plain[name] for name in names if name in plain]
    return SiteMemory(
        peak(flow, own).bytes,
        sum(life.size for life in own),
        sum(plain[n].size for n in scores_of(flow, region, names, plain)),
    )


def scores_of(flow: Flow, region: Region, names: set[str], plain: dict[str, Life]) -> list[str]:
    """The tensors inside of a site that have as many elements as its scores."""
    if region.product < 0:
        return []
    elements = flow.elements(flow.ops[region.product].outputs[0])
    made = [name for number in region.between for name in flow.ops[number].outputs]
    return [name for name in made if name in names and name in plain and flow.elements(name) == elements]
