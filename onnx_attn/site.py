"""The vocabulary that recognisers write and forms read. Nothing here knows an exporter or a target.

Axis letters: B batch, S sequence, N heads, H head size, E width of the projections' source, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import onnx_graphsurgeon as gs

from onnx_attn.codes import CODES
from onnx_attn.views.arrange import Move
from onnx_attn.views.layout import Layout
from onnx_attn.views.linear import Linear
from onnx_attn.views.quantizer import Quantizer
from onnx_attn.views.trace import Trace


@dataclass(frozen=True)
class Operand:
    """Q, K or V of a site.

    tensor: `(…, N, S, H)`; arranged (`views.arrange`) where the graph has it in other axes.
    read: what the original product reads.
    trace: from the tensor up to its source, through movement and scalar factors.
    whole: the same, and on through what repeats its heads: up to the projection's result.
        Where it leads on through quantisation steps, its factor is that of the trace, and `rounded` says the rest.
    layout: of the tensor over the trace's source; None if the movement is no plain re-arrangement.
    rounded: of the whole trace: its quantisation steps and the factors in front of them, in order.
    quantizer: the last step in front of the product, if one is, with movement or a factor behind it at most.
    """

    tensor: gs.Tensor
    read: gs.Tensor
    trace: Trace
    whole: Trace
    layout: Layout | None
    rounded: tuple[Quantizer | float, ...] = ()
    quantizer: Quantizer | None = None


@dataclass(frozen=True)
class Projected:
    """One operand as the result of a linear layer. layout: of the canonical `(…, N, S, H)` over the layer's output `(…, C)`."""

    layer: Linear
    layout: Layout


@dataclass(frozen=True)
class Projection:
    """The linear layers behind Q, K and V; None for an operand that comes from none (a learned query, a cache).

    packed: one layer makes all three; kv_packed: one makes K and V; triplet: three layers; none: some operand has no layer.
    Layers need not have one source: that of K and V is another one in cross-attention.
    """

    kind: Literal["packed", "triplet", "kv_packed", "none"]
    query: Projected | None
    key: Projected | None
    value: Projected | None

    @property
    def operands(self) -> tuple[Projected | None, Projected | None, Projected | None]:
        return self.query, self.key, self.value


@dataclass(frozen=True)
class ScoreTerm:
    """One step between the scaled product and the softmax, kept in the order of the original.

    add, subtract: scores ± mask
    where:   `Where(mask, scores, fill)` if `keep_when` else `Where(mask, fill, scores)`
    cast:    to `dtype` (a TensorProto type)
    causal:  keys later than the query get −inf, `key ≤ query` by position
    scale:   scores · fill if `keep_when` else scores / fill, where the scale stands behind a mask
    softcap: fill · tanh(scores / fill)
    floor:   max(scores, fill)
    factor:  scores · mask if `keep_when` else scores / mask, where nothing but weights decides the mask: a temperature a head
    quantize: rounded by `quantizer`
    """

    kind: Literal["add", "subtract", "where", "cast", "causal", "scale", "softcap", "floor", "factor", "quantize"]
    mask: gs.Tensor | None = None
    fill: float = 0.0
    keep_when: bool = True
    dtype: int = 0
    quantizer: Quantizer | None = None


Guard = Literal["nan", "row", "blocked"] | None


@dataclass(frozen=True)
class Window:
    """The part of a map whose tokens attend to each other; all by axis of the map, such as height and width.

    kind: "window": neighbours, row by row. "grid": tokens that lie as far apart as there are windows along the axis. "unit":
        neighbours again, but they or their windows stand in an order of their own.
    size: tokens of one window. shift: the map is rolled by −shift before it is cut. grid: windows.
    padding: zeros in front of the map and behind it. rolled_first: the roll turns the map alone; else what is padded turns too.
    """

    size: tuple[int, ...]
    shift: tuple[int, ...]
    grid: tuple[int, ...]
    kind: Literal["window", "grid", "unit"]
    padding: tuple[tuple[int, int], ...]
    rolled_first: tuple[bool, ...]

    @property
    def windows(self) -> int:
        """How many windows one map has."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class AttentionSite:
    """`P·V` with `P = softmax(terms(scale · Q·Kᵀ))`, as the graph has it.

    name: the softmax's own name (or the operator's), kept through the rewriting.
    node: the softmax, or the attention operator. product: the node of Q·Kᵀ, the operator again where there is one.
    scale: every constant factor on Q, on K and on the scores, as one number.
    scores_scale: the part of it that stands behind the product, on the scores.
    probabilities_dtypes: the types that P is cast to, one after the other, before the product with V.
    guard: what becomes of rows of P that are masked throughout. None: nothing is done. "nan": NaN becomes 0,
        `Where(IsNaN(P), 0, P)`. "row": as the Attention operator's kernels have it, the result of a row whose additive mask is
        nowhere above the type's lowest number becomes 0. "blocked": the same where it is −inf throughout.
    quantized: what P is rounded by, last of all before the product with V.
    cleared: of kind "where" and fill 0, by which P becomes 0 for some keys before the product with V.
    output: the tensor that holds P·V; its name, type and shape stay. result: the moves to its axes from `(…, N, S, H)`.
    value_product: the node of P·V, where it is not what makes the output.
    heads, kv_heads, head_dim, value_dim: None where not static.
    turned: the graph's own softmax runs over another axis than the last, or V is multiplied from the left.
    anchor: the node by which an engine tells where the site went, if that is not the softmax itself.
    overflows: the graph's own softmax has no finite result where scores are large.
    shared: somebody else reads P too: the softmax stays for them, and the site computes P once more.
    """

    name: str
    node: gs.Node
    product: gs.Node
    query: Operand
    key: Operand
    value: Operand
    scale: float
    scores_scale: float
    terms: tuple[ScoreTerm, ...]
    probabilities_dtypes: tuple[int, ...]
    guard: Guard
    output: gs.Tensor
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    value_dim: int | None
    projection: Projection | None
    result: tuple[Move, ...] = ()
    value_product: gs.Node | None = None
    turned: bool = False
    anchor: str = ""
    overflows: bool = False
    notes: tuple[str, ...] = ()
    cleared: ScoreTerm | None = None
    quantized: Quantizer | None = None
    shared: bool = False

    @property
    def operands(self) -> tuple[Operand, Operand, Operand]:
        return self.query, self.key, self.value

    @property
    def quantizers(self) -> tuple[Quantizer, ...]:
        """Those of the scores, in order, and that of the probabilities."""
        found = [term.quantizer for term in self.terms] + [self.quantized]
        return tuple(each for each in found if each is not None)

    @property
    def causal(self) -> bool:
        return any(term.kind == "causal" for term in self.terms)

    @property
    def masks(self) -> tuple[ScoreTerm, ...]:
        """The terms that are masks or biases, in order."""
        return tuple(term for term in self.terms if term.mask is not None and term.kind != "factor")

    @property
    def rests_on_mask(self) -> bool:
        """Whether the numbers in a constant mask were used: an operator that needs no guard, since they block no whole row."""
        return self.node is self.product and bool(self.mask_tensors) and self.guard is None

    @property
    def mask_tensors(self) -> tuple[gs.Tensor, ...]:
        """All tensors that meet the scores, in order, and the one that clears probabilities; over `(…, N, S, L)`, arranged where
        the graph has other axes."""
        terms = (*self.terms, self.cleared) if self.cleared is not None else self.terms
        return tuple(term.mask for term in terms if term.mask is not None)


@dataclass(frozen=True)
class Verdict:
    """A candidate that is left alone: code, the node that blocks, reason and remedy (from the table of codes).

    scope: the way from its body out to the main graph, as compilers write it: `then (then_branch) | choice (If)`; empty in
        the main graph.
    anchor: the node by which an engine tells where the candidate went, if that is not the softmax itself.
    recomputable: the site that it is, where nothing but another reader of its probabilities speaks against writing it.
    """

    name: str
    code: str
    node: str
    detail: str = ""
    scope: str = ""
    anchor: str = ""
    recomputable: AttentionSite | None = field(default=None, repr=False, compare=False)

    @property
    def attention(self) -> bool:
        return CODES[self.code].attention

    @property
    def reason(self) -> str:
        meaning = CODES[self.code].meaning
        return f"{meaning} ({self.detail})" if self.detail else meaning

    @property
    def remedy(self) -> str | None:
        remedy = CODES[self.code].remedy
        return f"{remedy}, or pass --allow-recompute" if self.recomputable is not None else remedy


@dataclass(frozen=True)
class Written:
    """A site that the input already has as one node: a call of a function of ours, or an operator of a runtime (form
    `contrib`); where the target takes it there is nothing left to do."""

    name: str
    node: gs.Node
    scale: float
    causal: bool
    masks: tuple[ScoreTerm, ...]
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    value_dim: int | None
    form: str = "function"


Candidate = AttentionSite | Written | Verdict


def engine_name(candidate: Candidate) -> str:
    """The name of the node by which an engine tells where a candidate went."""
    return (candidate.anchor if not isinstance(candidate, Written) else "") or candidate.name
