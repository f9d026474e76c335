"""What a site is tried on: random values, large logits, masks that block keys, whole rows, or nothing, and in half precision the
smallest numbers and the largest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnx_attn.forms.mask import mask_source
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import World
from onnx_attn.prove.certificate import Between
from onnx_attn.prove.cut import Cut
from onnx_attn.runtime import SEED
from onnx_attn.site import AttentionSite
from onnx_attn.views.trace import lowest
from onnx_attn.views.uniform import uniform

LARGE = 10.0
HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
SMALLEST = -24.0
"""The power of two that is half precision's smallest number."""


@dataclass(frozen=True)
class Case:
    """Inputs of a cut, in float64 (whole numbers and booleans in their own types).

    own, exact: whether it is compared in the model's type, and in float64.
    """

    name: str
    inputs: dict[str, np.ndarray]
    own: bool
    exact: bool


def cases(view: GraphView, between: Between | None, cut: Cut, operator: bool = False) -> Iterator[Case]:
    """Every kind of case in every world (two batch sizes and lengths where these are dynamic). operator: the site is, or
    becomes, the Attention operator. Without the place of a site, those of what has no masks."""
    place = between or Between((), ())
    masks = {name: sign for name, sign in place.masks.items() if sign and name in cut.inputs}
    # Masks are tried with what is hard for them, whatever they are.
    plain = [name for name in cut.inputs if name not in place.masks]
    # Exponentials that overflow make NaN of large logits, which one softmax does not.
    kinds = ["random"] if place.overflows else ["random", "large"]
    if masks:
        kinds += ["blocked", "row-inf", "row-lowest"]
    if place.extremes and any(view.worlds[0].elem_type(each) in HALF for each in place.outputs):
        kinds += ["extremes"]
    for number, world in enumerate(view.worlds):
        for order, kind in enumerate(kinds):
            draw = _Draw(np.random.default_rng([SEED, number, order]), world, kind, place.values)
            inputs = {name: draw.value(name, masks.get(name)) for name in cut.inputs}
            inputs |= {name: _known(world, name) for name in cut.known} | _decided(view, world, plain)
            # The Attention operator's float64 kernel answers NaN for a masked row where its other kernels answer 0.
            exact = not (operator and kind.startswith("row"))
            yield Case(f"{kind}@{number}", inputs, kind != "large", exact)


def between_of(
    view: GraphView, site: AttentionSite, start: Iterable[str], outputs: Sequence[str], extremes: bool = True
) -> Between:
    """Where a site lies, and how its masks block."""
    masks = {mask_source(view, mask).name: 0.0 for mask in site.mask_tensors}
    # What is subtracted blocks by plus infinity.
    signs = [(term.mask, -1.0 if term.kind == "subtract" else 1.0) for term in site.masks]
    masks |= {mask_source(view, mask).name: sign for mask, sign in signs if mask is not None}
    own = site.value.whole.source.name
    alone = own not in (site.query.whole.source.name, site.key.whole.source.name) and site.projection is None
    return Between(tuple(sorted(start)), tuple(outputs), masks, own if alone else "", site.overflows, extremes)


def _decided(view: GraphView, world: World, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What no input decides is what it is, and no random value: a learned query, zeros that a sum was read through. Where a cut
    goes further down, it may have been computed with."""
    found: dict[str, np.ndarray] = {}
    for name in names:
        shape, number = world.shape(name), uniform(view, view.tensors[name])
        if all(each.value(name) is not None for each in view.worlds):
            found[name] = _known(world, name)
        elif number is not None and shape is not None:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(world.elem_type(name)))
            found[name] = np.full(shape, number, np.float64 if dtype.kind in "fV" else dtype)
    return found


def _known(world: World, name: str) -> np.ndarray:
    value = world.value(name)
    assert value is not None
    return value.astype(np.float64) if np.dtype(value.dtype).kind == "f" else value


@dataclass(frozen=True)
class _Draw:
    """Random values of one kind at the sizes of one world."""

    rng: np.random.Generator
    world: World
    kind: str
    values: str

    def value(self, name: str, sign: float | None) -> np.ndarray:
        """sign: of a mask that blocks."""
        shape, elem_type = self.world.shape(name), self.world.elem_type(name)
        if shape is None:
            raise ValueError(f"the shape of '{name}' is not known")
        dtype = helper.tensor_dtype_to_np_dtype(elem_type)
        if elem_type == onnx.TensorProto.BOOL:
            allowed = self.rng.random(shape) < 0.6
            if allowed.ndim >= 1:
                allowed[..., 0] = True
            if self.kind.startswith("row") and allowed.ndim >= 1:
                allowed.reshape(-1, allowed.shape[-1])[0] = False
            return np.asarray(allowed)
        if np.issubdtype(dtype, np.integer):
            return self.rng.integers(0, 2, shape).astype(dtype)
        values = self.rng.standard_normal(shape)
        if sign is not None:
            return np.asarray(sign * _mask(self.rng, np.asarray(values), self.kind, elem_type))
        if self.kind == "extremes":
            return np.asarray(np.sign(values) * 2 ** self.rng.uniform(SMALLEST, self._largest(name), shape))
        return values * (LARGE if self.kind == "large" else 1.0)

    def _largest(self, name: str) -> float:
        """As a power of two: of V what half precision holds; else so that logits stay ordinary."""
        return 15.0 if name == self.values else 1.0


def _mask(rng: np.random.Generator, values: np.ndarray, kind: str, elem_type: int) -> np.ndarray:
    """An additive mask `(…, Sq, Sk)` or a broadcast form: all keys of one row blocked (`row-…`), elsewhere some."""
    if kind in ("random", "large", "extremes"):
        return values
    blocked = np.where(rng.random(values.shape) < 0.4, -np.inf, 0.0)
    if blocked.ndim == 0:
        return np.zeros_like(blocked)
    blocked[..., 0] = 0.0
    if kind == "row-inf":
        blocked.reshape(-1, blocked.shape[-1])[0] = -np.inf
    elif kind == "row-lowest":
        blocked.reshape(-1, blocked.shape[-1])[0] = lowest(elem_type)
    return blocked
