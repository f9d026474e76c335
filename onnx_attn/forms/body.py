"""The normalised primitives of one attention site: the body of the function form, and the whole of the primitives form.

    P = softmax(terms(scale · Q · Kᵀ)),  Y = P · V

The scale stands on Q before the first product, unless asked for behind it: the order that TensorRT before 10.14 asks for, and
the one that keeps half-precision scores from overflowing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx import TensorProto

from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Guard, ScoreTerm
from onnx_attn.views.quantizer import NARROW
from onnx_attn.views.trace import lowest


@dataclass(frozen=True)
class Signature:
    """What decides the nodes of a body, apart from the numbers in it: sites of one signature share one function.

    cleared: whether the last mask says which probabilities are kept (True) or set to 0 (False); None where there is none.
    double: its numbers are of double precision, which an attribute of one float would round.
    scaled_scores: the scale stands behind the first product.
    quantized: the type that the probabilities are rounded to on their way to V; 0 for none.
    """

    rank: int
    terms: tuple[tuple[str, bool, int], ...]
    probabilities_dtypes: tuple[int, ...]
    guard: Guard
    double: bool = False
    cleared: bool | None = None
    scaled_scores: bool = False
    quantized: int = 0

    @property
    def suffix(self) -> str:
        """Reads as what it does: `_Mask`, `_Where_GuardNaN`, `_Cast1_Mask_Cast10`; nothing for the plain 4-D site."""
        parts = [f"{self.rank}D"] if self.rank != 4 else []
        parts += ["Scores"] if self.scaled_scores else []
        for kind, keep_when, dtype in self.terms:
            name = _NAMES[kind] if keep_when else _TURNED.get(kind, _NAMES[kind])
            said = NARROW[dtype].title() if kind == "quantize" else str(dtype) if dtype else ""
            parts.append(name + said)
        parts += [f"Cast{dtype}" for dtype in self.probabilities_dtypes]
        if self.cleared is not None:
            parts.append("Keep" if self.cleared else "Clear")
        if self.quantized:
            parts.append(f"Probabilities{NARROW[self.quantized].title()}")
        if self.guard:
            parts.append({"nan": "GuardNaN", "row": "GuardRow", "blocked": "GuardBlocked"}[self.guard])
        if self.double:
            parts.append("Double")
        return "".join(f"_{part}" for part in parts)


_NAMES = {
    "add": "Mask",
    "subtract": "Minus",
    "where": "Where",
    "cast": "Cast",
    "causal": "Causal",
    "scale": "Scale",
    "softcap": "Softcap",
    "floor": "Floor",
    "factor": "Factor",
    "quantize": "Scores",
}
_TURNED = {"where": "WhereNot", "factor": "Divisor", "scale": "Unscale"}
"""What a function's name says of each term of its scores, by kind; of some another thing where `keep_when` is false."""


def signature(view: GraphView, site: AttentionSite, rank: int, scaled_scores: bool = False) -> Signature:
    terms = tuple(
        (term.kind, term.keep_when, term.quantizer.elem_type if term.quantizer else term.dtype) for term in site.terms
    )
    double = view.elem_type(site.query.tensor) == TensorProto.DOUBLE
    cleared = site.cleared.keep_when if site.cleared is not None else None
    quantized = site.quantized.elem_type if site.quantized is not None else 0
    dtypes = site.probabilities_dtypes
    return Signature(rank, terms, dtypes, site.guard, double, cleared, scaled_scores, quantized)


AXES_OPSET = 18
"""The first in which ReduceMax takes its axes as an input."""
FILLED = ("where", "scale", "softcap", "floor")
"""Terms with a number of their own."""
FIXED = {"zero": 0.0, "one": 1.0, "minus_infinity": -math.inf}
"""Numbers that every body may use."""


def numbers(view: GraphView, site: AttentionSite, scale: float) -> dict[str, float]:
    """The numbers of one site, by role: scale, the fills of its Where masks, the lowest number of its type."""
    values = {"scale": scale} | {f"fill_{n}": term.fill for n, term in enumerate(site.terms) if term.kind in FILLED}
    if site.guard == "row":
        least = lowest(view.elem_type(site.query.tensor))
        assert least is not None
        values["lowest"] = least
    return values


@dataclass(frozen=True)
class Spelling:
    """How a body spells its numbers.

    `scalar(role, like, dtype)` gives the name of a number in the type of the value `like`; that type is `dtype` where a
    cast has set it, and the operands' own where `dtype` is 0; "" for a scale that need not be written. `last_axis()` gives the
    name of the vector [-1], "" before opset 18, where ReduceMax has its axes as an attribute. triangle: the name of a stored
    causal mask, where lengths are known.
    """

    writer: Writer
    scalar: Callable[[str, str, int], str]
    last_axis: Callable[[], str]
    triangle: str = ""
    softmax_name: str | None = None
    output: str | None = None


def write_body(
    spelling: Spelling,
    terms: tuple[ScoreTerm, ...],
    form: Signature,
    operands: tuple[str, str, str],
    masks: list[str],
    quantizers: Sequence[tuple[str, str]] = (),
) -> str:
    """Write the body's nodes on query `(…, S, H)`, key `(…, S, H)` and value; returns the name of Y. quantizers: scales and zero
    points, of the scores' steps in order and of the probabilities'."""
    write = spelling.writer.add
    query, key, value = operands
    factor = spelling.scalar("scale", query, 0)
    scaled = write("Mul", [query, factor], "query_scaled") if factor and not form.scaled_scores else query
    turned = [*range(form.rank - 2), form.rank - 1, form.rank - 2]
    scores = write("MatMul", [scaled, write("Transpose", [key], "key_transposed", perm=turned)], "scores")
    if factor and form.scaled_scores:
        scores = write("Mul", [scores, factor], "scores_scaled")
    remaining, rounding, dtype, masks_dtype = iter(masks), iter(quantizers), 0, 0
    for number, term in enumerate(terms):
        if term.kind == "cast":
            dtype = term.dtype
            scores = write("Cast", [scores], "scores_cast", to=dtype)
        elif term.kind == "quantize":
            scores = write_quantizer(spelling.writer, scores, next(rounding), "scores")
        elif term.kind == "causal":
            fill = spelling.scalar("minus_infinity", scores, dtype)
            lower = spelling.triangle or _lower_triangle(spelling, query, key)
            scores = write("Where", [lower, scores, fill], "scores_causal")
        elif term.kind in ("add", "subtract"):
            masks_dtype = dtype
            scores = write("Add" if term.kind == "add" else "Sub", [scores, next(remaining)], "scores_masked")
        elif term.kind == "factor":
            scores = write("Mul" if term.keep_when else "Div", [scores, next(remaining)], "scores_scaled")
        else:
            fill = spelling.scalar(f"fill_{number}", scores, dtype)
            scores = _with_number(spelling, term, scores, fill, remaining)
    probabilities = write("Softmax", [scores], "probabilities", axis=-1, name=spelling.softmax_name)
    probabilities = _cast_and_cleared(spelling, form, probabilities, remaining, dtype)
    if form.quantized:
        probabilities = write_quantizer(spelling.writer, probabilities, next(rounding), "probabilities")
    if form.guard not in ("row", "blocked"):
        found: str = write("MatMul", [probabilities, value], "attention", output=spelling.output)
        return found
    attention = write("MatMul", [probabilities, value], "attention_everywhere")
    return _clear_rows(spelling, form, attention, masks[-1], masks_dtype)


def _cast_and_cleared(spelling: Spelling, form: Signature, probabilities: str, masks: Iterator[str], dtype: int) -> str:
    """What happens to the probabilities in front of their rounding; `dtype`: of the softmax, 0 for the operands' own."""
    write = spelling.writer.add
    for dtype in form.probabilities_dtypes:
        probabilities = write("Cast", [probabilities], "probabilities_cast", to=dtype)
    if form.cleared is not None:
        zero = spelling.scalar("zero", probabilities, dtype)
        chosen = [probabilities, zero] if form.cleared else [zero, probabilities]
        probabilities = write("Where", [next(masks), *chosen], "probabilities_cleared")
    if form.guard == "nan":
        bad = write("IsNaN", [probabilities], "probabilities_isnan")
        zero = spelling.scalar("zero", probabilities, dtype)
        probabilities = write("Where", [bad, zero, probabilities], "probabilities_guarded")
    return probabilities


def _clear_rows(spelling: Spelling, form: Signature, attention: str, mask: str, mask_dtype: int) -> str:
    """0 for rows that are masked throughout: behind the product and not before it, since a choice on the probabilities keeps most
    sites off the attention kernels. (Where V is not finite such a row answers 0, as the specification says, and not NaN, as ONNX
    Runtime's kernel.)"""
    write, axis = spelling.writer.add, spelling.last_axis()
    peak = write("ReduceMax", [mask, axis], "mask_peak") if axis else write("ReduceMax", [mask], "mask_peak", axes=[-1])
    bound = "lowest" if form.guard == "row" else "minus_infinity"
    bad = write("LessOrEqual", [peak, spelling.scalar(bound, peak, mask_dtype)], "row_masked")
    zero = spelling.scalar("zero", attention, 0)
    name: str = write("Where", [bad, zero, attention], "attention", output=spelling.output)
    return name


def write_quantizer(writer: Writer, value: str, step: tuple[str, str], hint: str, output: str | None = None) -> str:
    """A quantisation step on a value; `step`: the names of scale and zero point. Returns the name of what was rounded."""
    narrow = writer.add("QuantizeLinear", [value, *step], f"{hint}_quantized")
    name: str = writer.add("DequantizeLinear", [narrow, *step], f"{hint}_rounded", output=output)
    return name


def _with_number(spelling: Spelling, term: ScoreTerm, scores: str, number: str, masks: Iterator[str]) -> str:
    """A term that has a number of its own; of `masks` a Where takes the next."""
    write = spelling.writer.add
    if term.kind == "where":
        chosen = [scores, number] if term.keep_when else [number, scores]
        return write("Where", [next(masks), *chosen], "scores_masked")
    if term.kind == "scale":
        return write("Mul" if term.keep_when else "Div", [scores, number], "scores_scaled")
    if term.kind == "floor":
        return write("Max", [scores, number], "scores_floored")
    return write(
        "Mul", [write("Tanh", [write("Div", [scores, number], "scores_in")], "scores_tanh"), number], "scores_capped"
    )


def _lower_triangle(spelling: Spelling, query: str, key: str) -> str:
    """A boolean `(Sq, Sk)`, true where key ≤ query, from the operands' own lengths (Shape's start is of opset 15)."""
    write = spelling.writer.add
    lengths = [
        write("Shape", [tensor], f"{which}_length", start=-2, end=-1)
        for tensor, which in ((query, "query"), (key, "key"))
    ]
    ones = write("Expand", [spelling.scalar("one", query, 0), write("Concat", lengths, "lengths", axis=0)], "ones")
    lower = write("Trilu", [ones], "lower", upper=0)
    return write("Cast", [lower], "causal_mask", to=9)
