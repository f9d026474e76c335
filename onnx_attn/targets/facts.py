"""What decides whether a runtime takes an attention site, as plain values that a table can be asked with."""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | bool
"""What a fact can be. None, beside these: not known, because it varies or was not read."""


@dataclass(frozen=True)
class Facts:
    """The facts of one site. A fact that is not known is None, and no condition of a row holds for it.

    code: the code under which a candidate was refused, "none" where it was read as a site.
    dtype: of Q and K where they are multiplied. value_dtype, value_head: V's type and head size, "same" as K's or "other".
    value_dim: V's head size.
    heads, kv_heads: of Q, and of K and V.
    mask: "none", "additive" or "boolean"; mask_type: an additive mask has the type of the "query" or an "other" one;
        mask_queries: the mask has "one" row for every query, or "all"; mask_keys: as many columns as there are keys
        ("all", or one for all), or "fewer".
    scale: "positive" or "negative". softcap: a Tanh limits the scores. cleared: a mask sets probabilities to 0.
    turned: the softmax runs over another axis than the last, or its result is transposed.
    nested: the operator in whose body the site lies (If, Loop, Scan, or "function"), "none" in the main graph.
    rank: of the `Attention` operator's Q. precision: it sets softmax_precision. past, presents: it reads, writes a cache.
    scores_output: it gives the scores away. window: it sets a left or right window size. nonpad: it reads nonpad_kv_seqlen.
    shared: Q or K is a model input that another Attention node, or another operand of this one, reads as well.
    split: Q, K and V come from the Reshape and Transpose that split them into heads, or are 3-D and are split inside.
    operator: which of com.microsoft it is, "none" for other forms. fused_bias: it adds the projection's bias itself;
        packed: its Q, K and V come in one tensor.
    quantized: what Q, K and V are rounded to where they are multiplied: "int8" (signed or not), "fp8" (e4m3), "none"; "some"
        where one of the two products has narrow numbers on both sides and not all are alike, "alone" where none has.
    probabilities_quantized: the same of the softmax's result. scores_quantized, result_quantized: whether what the softmax reads,
        and P·V, are rounded. sliced: Q, K or V is rounded with a scale for each of its "heads", or "features"; "none" else.
    offset: a zero point is not 0.
    sm: the compute capability times ten, where one is asked for.
    """

    code: str | None = None
    opset: int | None = None
    dtype: str | None = None
    value_dtype: str | None = None
    head_dim: int | None = None
    value_head: str | None = None
    value_dim: int | None = None
    batch: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    query_length: int | None = None
    key_length: int | None = None
    mask: str | None = None
    mask_type: str | None = None
    mask_rank: int | None = None
    mask_queries: str | None = None
    mask_keys: str | None = None
    causal: bool | None = None
    scale: str | None = None
    softcap: bool | None = None
    cleared: bool | None = None
    turned: bool | None = None
    nested: str | None = None
    rank: int | None = None
    precision: bool | None = None
    past: bool | None = None
    presents: bool | None = None
    scores_output: bool | None = None
    window: bool | None = None
    nonpad: bool | None = None
    shared: bool | None = None
    split: bool | None = None
    operator: str | None = None
    fused_bias: bool | None = None
    packed: bool | None = None
    quantized: str | None = None
    scores_quantized: bool | None = None
    probabilities_quantized: str | None = None
    result_quantized: bool | None = None
    sliced: str | None = None
    offset: bool | None = None
    sm: int | None = None

    @property
    def matrices(self) -> int | None:
        """How many score matrices there are: batch times query heads."""
        return None if self.batch is None or self.heads is None else self.batch * self.heads

    @property
    def grouping(self) -> str | None:
        """How query heads share keys: "none" (each has its own), "even", or "uneven" (not the same number each)."""
        if not self.heads or not self.kv_heads:
            return None
        if self.heads == self.kv_heads:
            return "none"
        return "even" if self.heads % self.kv_heads == 0 else "uneven"

    @property
    def single_query(self) -> bool | None:
        """Whether the kernel for one query takes the site: it has one in each of four or more score matrices, and a head
        size of 8, 16, … 256."""
        least = (self.heads or 0) * (self.batch or 1)  # A batch that varies is one at least.
        checks = (
            None if self.query_length is None else self.query_length == 1,
            True if least >= 4 else None if self.matrices is None else False,
            None if self.head_dim is None else self.head_dim % 8 == 0 and self.head_dim <= 256,
        )
        return False if False in checks else None if None in checks else True

    @property
    def narrow(self) -> bool | None:
        """Whether Q, K and V are all rounded to one type that has kernels of its own."""
        return None if self.quantized is None else self.quantized in ("int8", "fp8")

    @property
    def steps_inside(self) -> bool | None:
        """Whether quantisation steps lie between the two products."""
        if None in (self.scores_quantized, self.probabilities_quantized):
            return None
        return bool(self.scores_quantized) or self.probabilities_quantized != "none"

    @property
    def decomposable(self) -> bool | None:
        """Whether TensorRT takes an `Attention` node apart for which it has no kernel: behind a plain split into heads, with
        neither mask nor is_causal."""
        if None in (self.split, self.mask, self.causal):
            return None
        return self.split and self.mask == "none" and not self.causal


PLAIN = Facts(
    code="none",
    opset=23,
    dtype="float16",
    value_dtype="same",
    head_dim=64,
    value_head="same",
    value_dim=64,
    batch=1,
    heads=4,
    kv_heads=4,
    query_length=64,
    key_length=64,
    mask="none",
    mask_type="none",
    mask_rank=0,
    mask_queries="none",
    mask_keys="none",
    causal=False,
    scale="positive",
    softcap=False,
    cleared=False,
    turned=False,
    nested="none",
    rank=4,
    precision=False,
    past=False,
    presents=False,
    scores_output=False,
    window=False,
    nonpad=False,
    shared=False,
    split=False,
    operator="none",
    fused_bias=False,
    packed=False,
    quantized="none",
    scores_quantized=False,
    probabilities_quantized="none",
    result_quantized=False,
    sliced="none",
    offset=False,
    sm=89,
)
"""A site without anything special, in half precision: what the examples of a row vary."""
