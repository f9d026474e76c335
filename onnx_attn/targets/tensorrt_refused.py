"""What TensorRT does not take, or takes without an attention kernel or wrongly, for what the site does: measured rows."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_attn.targets.editions import RTX, TRT_10_0, TRT_10_14, TRT_11
from onnx_attn.targets.rows import Above, AnyOf, Below, Condition, Example, Is, Isnt, NoneOf, Outcome, Row, examples
from onnx_attn.targets.tensorrt import (
    ADDITIVE,
    ASKED,
    BOOLEAN,
    ISLAND,
    ONE_QUERY,
    SITE_FORMS,
    SPELL_OUT,
    SPELLED,
    Given,
)

OPERATOR, SPELLED_OUT = ("attention",), ("primitives",)
LATER = (TRT_10_14, TRT_11)
MASKED = AnyOf(("additive", "boolean"))
ONE_HEAD: Given = {**ADDITIVE, "heads": 1, "kv_heads": 1, "batch": 16}
ONE_FOR_ALL: Mapping[str, Condition] = {"kv_heads": Is(1), "heads": Above(1)}
ONE_KEY: Mapping[str, Condition] = {"key_length": Is(1), "narrow": Isnt(True)}


def row(
    outcome: Outcome,
    name: str,
    forms: tuple[str, ...],
    when: Mapping[str, Condition],
    reason: str,
    remedy: str | None,
    *given: Given,
    presumed: tuple[str, ...] = (),
) -> Row:
    tried: tuple[Example, ...] = examples(*forms, of=given)
    return Row(name, (RTX,), forms, when, outcome, ASKED, reason, remedy, presumed=presumed, examples=tried)


def _rejected(name: str, when: Mapping[str, Condition], reason: str, remedy: str | None, *given: Given) -> Row:
    return row("rejected", name, OPERATOR, when, reason, remedy, *given, presumed=LATER)


def _runs(name: str, when: Mapping[str, Condition], reason: str, remedy: str | None, *given: Given) -> Row:
    return row("runs", name, SPELLED_OUT, when, reason, remedy, *given, presumed=(TRT_10_0, *LATER))


REJECTED = (
    _rejected(
        "attention-single-query",
        {"query_length": Is(1), "single_query": Is(False)},
        "for one query there is a kernel only from four score matrices on (batch times heads), and for heads of 8, 16, … 256",
        SPELL_OUT,
        {**ONE_QUERY, "heads": 3, "kv_heads": 3},
        {**ONE_QUERY, "head_dim": 12},
        {**ONE_QUERY, "rank": 3, "split": True, "heads": 2, "kv_heads": 2},
    ),
    _rejected(
        "attention-value-head",
        {"value_head": Is("other")},
        "the Attention operator is taken with values of the same head size as the keys only",
        f"pad the values with zeros; or {SPELL_OUT}",
        {"value_head": "other"},
    ),
    _rejected(
        "attention-value-type",
        {"value_dtype": Is("other")},
        "Q, K and V of the Attention operator have to be of one type",
        "cast the values to the type of Q and K",
        {"value_dtype": "other"},
    ),
    _rejected(
        "attention-uneven-heads",
        {"grouping": Is("uneven")},
        "the number of query heads is no multiple of the number of key heads",
        None,
        {"heads": 6},
    ),
    _rejected(
        "attention-mask-type",
        {"mask": Is("additive"), "mask_type": Is("other")},
        "an additive mask has to be of the type of Q",
        f"cast the mask; or {SPELL_OUT}",
        {**ADDITIVE, "mask_type": "other"},
    ),
    _rejected(
        "attention-short-mask",
        {"mask_keys": Is("fewer")},
        "a mask with fewer columns than there are keys is not taken",
        "pad the mask to the number of keys",
        {**ADDITIVE, "mask_keys": "fewer", "opset": 24},
        {**BOOLEAN, "mask_keys": "fewer", "opset": 24},
    ),
    _rejected(
        "attention-causal-mask",
        {"mask": MASKED, "causal": Is(True)},
        "a mask together with is_causal is not taken",
        "put the causal mask into the other one",
        {**ADDITIVE, "causal": True},
    ),
    _rejected(
        "attention-precision",
        {"precision": Is(True)},
        "softmax_precision is not taken",
        "leave the attribute out",
        {"precision": True},
    ),
    _rejected(
        "attention-branch",
        {"nested": Is("If")},
        "an Attention node in a branch of an If whose condition is not constant does not build",
        "take the attention out of the branch, or spell the operator out",
        {"nested": "If"},
    ),
    _rejected(
        "attention-shared-input",
        {"shared": Is(True)},
        "the compiler crashes where two Attention nodes read one model input as Q or K",
        SPELL_OUT,
        {"shared": True},
    ),
    *(
        row("rejected", f"attention-{name}", OPERATOR, {fact: Is(True)}, reason, remedy, *given, presumed=(TRT_11,))
        for name, fact, reason, remedy, given in (
            ("softcap", "softcap", "softcap is not taken", "spell the operator out", [{"softcap": True}]),
            (
                "cache",
                "past",
                "past_key and past_value are not taken",
                "concatenate the cache in front of K and V",
                [{"past": True}, {"past": True, "presents": True}],
            ),
            (
                "presents",
                "presents",
                "more than one output is not taken",
                "make present_key and present_value outside of the operator",
                [{"presents": True}],
            ),
            (
                "scores",
                "scores_output",
                "more than one output is not taken",
                "export without returned attention weights",
                [{"scores_output": True}],
            ),
        )
    ),
    row(
        "rejected",
        "bfloat16-turing",
        SITE_FORMS,
        {"dtype": Is("bfloat16"), "sm": Below(80)},
        "compute capability 7.5 does not have bfloat16",
        "use float16 there",
        {"dtype": "bfloat16", "sm": 75},
    ),
)

WRONG = (
    row(
        "wrong",
        "attention-nonpad",
        OPERATOR,
        {"nonpad": Is(True)},
        "nonpad_kv_seqlen is read over: keys behind the count are attended to",
        "turn the counts into an additive mask",
        {"nonpad": True, "opset": 24},
        presumed=(TRT_11,),
    ),
    row(
        "wrong",
        "attention-window",
        OPERATOR,
        {"window": Is(True)},
        "the window sizes are read over: every key is attended to",
        "turn the window into an additive mask",
        {"window": True, "opset": 25},
        presumed=LATER,
    ),
    row(
        "wrong",
        "attention-negative-scale",
        OPERATOR,
        {"scale": Is("negative")},
        "Q and K are each multiplied with the root of the scale, which is NaN for a negative one",
        f"negate Q and make the scale positive; or {SPELL_OUT}",
        {"scale": "negative"},
        presumed=LATER,
    ),
)

WITHOUT_KERNEL = (
    *(
        row("runs", name, SPELLED, when, reason, remedy, *given, presumed=(TRT_10_0, *LATER))
        for name, when, reason, remedy, given in (
            (
                "value-head",
                {"value_head": Is("other")},
                "no attention kernel exists for values of another head size than the keys",
                "fuse the model, which pads the smaller of both with zeros",
                [{"value_head": "other"}],
            ),
            (
                "value-type",
                {"value_dtype": Is("other")},
                "the probabilities are multiplied with values of another type than Q and K",
                f"{ISLAND}; or cast the values to the type of Q and K",
                [{"value_dtype": "other"}],
            ),
            (
                "broadcast-heads",
                ONE_FOR_ALL,
                "one head of keys for several of queries is multiplied by broadcasting, which no attention kernel does",
                "fuse the model, which repeats K and V for every head with Expand",
                [{"kv_heads": 1}, {**ONE_QUERY, "kv_heads": 1}],
            ),
            (
                "one-key",
                ONE_KEY,
                "no attention kernel is chosen for a single key",
                None,
                [{"key_length": 1}, {**ONE_QUERY, "key_length": 1}],
            ),
        )
    ),
    Row(
        "one-head-mask",
        (RTX,),
        SPELLED,
        {"heads": Is(1), "mask": Is("additive"), "head_dim": NoneOf((32, 64)), "single_query": Isnt(True)},
        "runs",
        ASKED,
        "attention kernels that add a mask to a single head exist for heads of 32 and 64 alone",
        None,
        presumed=(TRT_10_0, *LATER),
        examples=examples(*SPELLED, of=({**ONE_HEAD, "head_dim": 24}, {**ONE_HEAD, "head_dim": 128})),
    ),
    _runs(
        "probabilities-used",
        {"code": Is("probabilities-used")},
        "a kernel keeps the probabilities to itself, and here they are read elsewhere",
        "export without returned attention weights (need_weights=False, output_attentions=False), or fuse with --allow-recompute",
        {"code": "probabilities-used"},
    ),
    _runs(
        "turned",
        {"turned": Is(True)},
        "no attention kernel is chosen where the softmax runs over another axis than the last, or V is multiplied from the left",
        "write the block as softmax(Q·Kᵀ)·V with the keys on the last axis",
        {"code": "softmax-axis", "turned": True},
        {"turned": True},
        {"turned": True, "value_head": "other"},
    ),
    _runs(
        "talking-heads",
        {"code": Is("talking-heads")},
        "no attention kernel mixes the scores of different heads",
        None,
        {"code": "talking-heads"},
    ),
    _runs(
        "softcap",
        {"softcap": Is(True)},
        "no attention kernel has a Tanh that limits the scores",
        None,
        {"softcap": True},
    ),
    _runs(
        "cleared",
        {"cleared": Is(True), "head_dim": NoneOf((32, 64))},
        "attention kernels that set probabilities to 0 behind their softmax exist for heads of 32 and 64 alone",
        "mask the scores alone; rows that are masked throughout can be cleared behind the product with V",
        {"cleared": True, "head_dim": 24},
        {"cleared": True, "head_dim": 128},
    ),
)
