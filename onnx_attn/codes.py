"""Every verdict code, in one table: what it means and what a user can do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """One way for a candidate to be left alone.

    `attention` tells whether the candidate is attention all the same (status `refused`) or is none (`not_attention`).
    """

    name: str
    attention: bool
    meaning: str
    remedy: str | None = None


_TABLE = (
    # Attention that is left as it is.
    Code(
        "probabilities-used",
        True,
        "the attention probabilities are read by something else than the product with V, or are a model output",
        "export without returned attention weights (need_weights=False, output_attentions=False)",
    ),
    Code(
        "dropout-training",
        True,
        "Dropout between the softmax and V runs in training mode, so the result is random",
        "export the model in eval() mode",
    ),
    Code(
        "softmax-axis",
        True,
        "the softmax runs over another axis than the keys' (the last of the scores)",
        "write the block as softmax(Q·Kᵀ)·V with the keys on the last axis",
    ),
    Code(
        "scale-not-constant",
        True,
        "the scores are multiplied by something that is no constant",
        "make the scale a constant before exporting",
    ),
    Code(
        "scores-changed",
        True,
        "something other than a constant scale, a mask, a cast or a softcap happens to the scores before the softmax",
        "move it in front of Q or K, or write it as an added mask; else the site stays as it is",
    ),
    Code(
        "probabilities-changed",
        True,
        "something other than a cast, a movement, a NaN guard or inference Dropout happens to the probabilities before V",
        "move it behind the product with V where that is the same; else the site stays as it is",
    ),
    Code(
        "quantisation-step",
        True,
        "the scores or the probabilities are quantised in a way that is not read: not with one stored scale for all, "
        "or not the same in QuantizeLinear and DequantizeLinear",
        "quantise activations per tensor, with a finite scale; else the site stays as it is",
    ),
    Code(
        "operand-order",
        True,
        "the product with V sums over the queries and not over the keys: V·P and not P·V",
        "write the product as P·V",
    ),
    Code(
        "shape-unknown",
        True,
        "the rank or a needed static size of Q, K or V cannot be read from the graph",
        "export with static head count and head size, or run ONNX shape inference first",
    ),
    Code(
        "nested-graph",
        True,
        "the site lies in a body of If, Loop or Scan that reads something whose type or shape is not known",
        "export without control flow around attention, or run ONNX shape inference first",
    ),
    Code(
        "opset-too-low",
        True,
        "the model's opset is below what the form can be written in",
        "raise the model's opset, or choose --form primitives",
    ),
    Code(
        "type-not-supported",
        True,
        "Q and K are not of one floating-point type, or Q, K or V is of none",
        "cast Q and K to one floating-point type before their product",
    ),
    Code("left-by-plan", True, 'the plan says "apply": false', 'write "apply": true for the site in the plan'),
    Code(
        "head-size",
        True,
        "the target does not take a head of this size in the form that was asked for",
        "choose --form auto, or another head size",
    ),
    Code(
        "value-head-size",
        True,
        "the target does not take values of another head size than the keys' in the form that was asked for",
        "choose --form auto",
    ),
    Code(
        "mask-shape",
        True,
        "the mask cannot be given to the form that was asked for",
        "choose --form auto, which adds it to the scores",
    ),
    Code(
        "masked-row-differs",
        True,
        "a query whose keys may all be masked would get another result in the form that was asked for",
        "choose --form auto, which writes the softmax as it stands",
    ),
    Code(
        "form-not-taken",
        True,
        "the target does not take the site in the form that was asked for",
        "choose --form auto",
    ),
    Code(
        "attention-feature",
        True,
        "an attention operator uses a feature (its scores as an output, sinks, a quantised cache, …) not rewritten here",
        "leave it to a runtime that has the operator",
    ),
    Code(
        "operator-of-a-runtime",
        True,
        "a runtime's own attention operator (com.microsoft and the like) is not rewritten",
        "start from the model as the exporter wrote it",
    ),
    Code(
        "already-fused",
        True,
        "the site is a call of our local function already, and this target, form or precision wants it written anew",
        "start from the model as the exporter wrote it, or take it apart with `onnx-attn expand` first",
    ),
    Code(
        "proof-failed",
        True,
        "the rewritten site did not compute the same as the original, and was rolled back",
        "the model is right without it; please report the site, it should not happen",
    ),
    Code(
        "unprovable-here",
        True,
        "the site could not be run on this machine, before or after, so nothing could be proved",
        "prove it where ONNX Runtime has kernels for it; or pass --no-verify, which rewrites what can be written without proof",
    ),
    # No attention.
    Code("class-softmax", False, "a softmax over classes: its result is not multiplied with values"),
    Code("gating", False, "a softmax that weighs branches or experts, not values along a sequence"),
    Code("no-query-key-product", False, "what the softmax reads is not a product of two activations"),
    Code("no-value-product", False, "the softmax's result does not go into a matrix product with values"),
    Code("talking-heads", False, "heads are mixed between the product, the softmax and the values"),
    Code("linear-attention", False, "softmax over features or context instead of scores: linear attention"),
    Code(
        "operator-not-supported",
        False,
        "an attention-like operator that is not softmax(scale·Q·Kᵀ + masks)·V as read here",
    ),
)

CODES: dict[str, Code] = {code.name: code for code in _TABLE}
