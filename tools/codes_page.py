"""The page of all verdict codes, from the package's table: `python tools/codes_page.py > docs/codes.md`.

Each code has its meaning, its way out and, where one says more than words, the smallest graph that gets it.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_attn.codes import CODES, Code

OPERANDS = "float[1,2,8,16] q, float[1,2,8,16] k, float[1,2,8,16] v"
HALF = OPERANDS.replace("float", "float16")
RESULT = "float[1,2,8,16] y"
SCORES = "kt = Transpose <perm = [0, 1, 3, 2]> (k)\ns = MatMul (q, kt)"
TAIL = "p = Softmax (s)\ny = MatMul (p, v)"


@dataclass(frozen=True)
class Example:
    """A graph in ONNX's own text, and the options of `fuse` under which it gets the code (none: always)."""

    body: str
    inputs: str = OPERANDS
    outputs: str = RESULT
    domains: str = '"" : 17'
    options: str = ""

    def __str__(self) -> str:
        lines = "\n".join(f"  {line}" for line in self.body.splitlines())
        head = f"<ir_version: 8, opset_import: [{self.domains}]>"
        return f"{head}\nexample ({self.inputs})\n=> ({self.outputs}) {{\n{lines}\n}}"


EXAMPLES = {
    "probabilities-used": Example(f"{SCORES}\n{TAIL}", outputs=f"{RESULT}, float[1,2,8,8] p"),
    "dropout-training": Example(
        f"{SCORES}\np = Softmax (s)\n"
        "ratio = Constant <value = float {0.1}> ()\ntraining = Constant <value = bool {1}> ()\n"
        "d = Dropout (p, ratio, training)\ny = MatMul (d, v)"
    ),
    "softmax-axis": Example(f"{SCORES}\np = Softmax <axis = 2> (s)\ny = MatMul (p, v)"),
    "scale-not-constant": Example(
        f"{SCORES}\nz = Mul (s, scale)\np = Softmax (z)\ny = MatMul (p, v)", f"{OPERANDS}, float[1] scale"
    ),
    "scores-changed": Example(f"{SCORES}\nz = Relu (s)\np = Softmax (z)\ny = MatMul (p, v)"),
    "probabilities-changed": Example(
        f"{SCORES}\np = Softmax (s)\nz = Clip (p, low)\ny = MatMul (z, v)", f"{OPERANDS}, float low"
    ),
    "quantisation-step": Example(
        f"{SCORES}\np = Softmax (s)\ni = QuantizeLinear <axis = 3> (p, scales)\n"
        "z = DequantizeLinear <axis = 3> (i, scales)\ny = MatMul (z, v)",
        f"{OPERANDS}, float[8] scales",
    ),
    "operand-order": Example(
        f"{SCORES}\np = Softmax (s)\ny = MatMul (v, p)",
        OPERANDS.replace("16", "8"),
        RESULT.replace("16", "8"),
    ),
    "shape-unknown": Example(
        f"r = Reshape (x, shape)\n{SCORES.replace('q,', 'r,')}\n{TAIL}",
        "float[N] x, int64[R] shape, float[A,B,C,D] k, float[E,F,G,H] v",
        "float[I,J,K,L] y",
    ),
    "nested-graph": Example(
        "r = somebody.Rotate (q)\n"
        "y = If (flag) <\n"
        "  then_branch = yes () => (float[1,2,8,16] a) {\n"
        "    kt = Transpose <perm = [0, 1, 3, 2]> (k)\n"
        "    s = MatMul (r, kt)\n"
        "    p = Softmax (s)\n"
        "    a = MatMul (p, v)\n"
        "  },\n"
        "  else_branch = no () => (float[1,2,8,16] b) { b = Neg (v) }\n"
        ">",
        f"bool flag, {OPERANDS}",
        domains='"" : 17, "somebody" : 1',
    ),
    "type-not-supported": Example(
        "y = Attention (q, k, v)",
        OPERANDS.replace("float[1,2,8,16] v", "float16[1,2,8,16] v"),
        "float[1,2,8,16] y",
        '"" : 23',
    ),
    "opset-too-low": Example(f"{SCORES}\n{TAIL}", domains='"" : 14', options="--form function"),
    "head-size": Example(
        f"{SCORES}\n{TAIL}", HALF.replace("16]", "320]"), "float16[1,2,8,320] y", '"" : 23', "--form attention"
    ),
    "mask-shape": Example(
        f"{SCORES}\nz = Add (s, bias)\nw = Sub (z, mask)\np = Softmax (w)\ny = MatMul (p, v)",
        f"{HALF}, float16[8,8] bias, float16[8,8] mask",
        "float16[1,2,8,16] y",
        '"" : 23',
        "--form attention",
    ),
    "masked-row-differs": Example(
        f"{SCORES}\nz = Add (s, mask)\np = Softmax (z)\ny = MatMul (p, v)",
        f"{HALF}, float16[8,8] mask",
        "float16[1,2,8,16] y",
        '"" : 23',
        "--form attention",
    ),
    "form-not-taken": Example(
        f"zero = Constant <value = float16 {{0}}> ()\n{SCORES}\np = Softmax (s)\nz = Where (keep, p, zero)\ny = MatMul (z, v)",
        f"{HALF}, bool[8,8] keep",
        "float16[1,2,8,16] y",
        '"" : 23',
        "--form attention",
    ),
    "attention-feature": Example(
        "y, pk, pv, s = Attention <qk_matmul_output_mode = 3> (q, k, v)",
        OPERANDS,
        f"{RESULT}, float[1,2,8,8] s",
        '"" : 23',
    ),
    "operator-of-a-runtime": Example(
        "y, pk, pv = com.microsoft.DecoderMaskedMultiHeadAttention <num_heads = 2> (q, k, v)",
        "float[1,1,32] q, float[1,1,32] k, float[1,1,32] v",
        "float[1,1,32] y",
        '"" : 17, "com.microsoft" : 1',
    ),
    "unprovable-here": Example(
        "y = com.microsoft.PackedAttention <num_heads = 2> (x, w, b, offsets, lengths)",
        "float[8,16] x, float[16,48] w, float[48] b, int32[1,8] offsets, int32[2] lengths",
        "float[8,16] y",
        '"" : 17, "com.microsoft" : 1',
    ),
    "class-softmax": Example("y = Softmax (logits)", "float[1,10] logits", "float[1,10] y"),
    "gating": Example(
        "l = MatMul (x, w)\ng = Softmax (l)\ny = Mul (g, experts)",
        "float[8,16] x, float[16,4] w, float[8,4] experts",
        "float[8,4] y",
    ),
    "no-query-key-product": Example("p = Softmax (x)\ny = MatMul (p, v)", "float[1,2,8,8] x, float[1,2,8,16] v"),
    "no-value-product": Example(f"{SCORES}\np = Softmax (s)\ny = ReduceSum (p)", OPERANDS, "float[1,1,1,1] y"),
    "talking-heads": Example(
        f"w = Constant <value = float[2,2] {{0.9, 0.1, 0.2, 0.8}}> ()\n{SCORES}\n"
        "last = Transpose <perm = [0, 2, 3, 1]> (s)\nmixed = MatMul (last, w)\n"
        "z = Transpose <perm = [0, 3, 1, 2]> (mixed)\np = Softmax (z)\ny = MatMul (p, v)",
    ),
    "linear-attention": Example(
        "a = Softmax (q)\nb = Softmax <axis = 2> (k)\nbt = Transpose <perm = [0, 1, 3, 2]> (b)\n"
        "context = MatMul (bt, v)\ny = MatMul (a, context)"
    ),
    "operator-not-supported": Example(
        'y, state = LinearAttention <q_num_heads = 2, kv_num_heads = 2, update_rule = "linear"> (q, k, v)',
        "float[1,8,32] q, float[1,8,32] k, float[1,8,32] v",
        "float[1,8,32] y",
        '"" : 27',
    ),
}

NOTES = {
    "scale-not-constant": "The scale is computed when the model runs, or differs from key to key.",
    "scores-changed": "Clip, sinks and their like.",
    "probabilities-used": "`--allow-recompute` fuses the site all the same: what reads the weights keeps its softmax "
    "([more](commands.md#weights-that-are-returned)).",
    "head-size": "Heads of 8 or fewer are padded with zeros where that makes a site legal; a plan can leave that out.",
    "value-head-size": "Values are padded with zeros to the keys' size; this code is left where a [plan](plans.md) takes "
    "`padded-heads` out of a site's changes.",
    "left-by-plan": "See [plans](plans.md).",
    "already-fused": "A model that was fused before into the form `function`, given to a target or a form that wants "
    "another; `onnx-attn expand` takes it apart.",
    "operator-of-a-runtime": "`Attention`, `MultiHeadAttention`, `GroupQueryAttention` and `QAttention` of ONNX Runtime are "
    "read and spelled in plain nodes; the code is for its others.",
    "unprovable-here": "Operators with kernels on CUDA alone (`PackedAttention`, `PackedMultiHeadAttention`) are among them.",
    "proof-failed": "What is proved, and how: [is it right?](proof.md)",
}
"""Where a code's meaning is not all that a reader needs."""

HEADING = """\
# Why was this not fused?

`onnx-attn inspect model.onnx` names every softmax and attention operator that is left as it is, with one of the codes below, the
node that stands in the way, the reason and the way out; in the JSON report these are `code`, `node`, `reason` and `remedy` of
a candidate. In Python the codes are `onnx_attn.CODES`.

Where it says more than words, a code has the smallest graph that gets it, in ONNX's own text, of which
`onnx.parser.parse_model(text)` makes a model. All of them are run by the tests. This one is a site:

```onnx
{site}
```

(Made by `python tools/codes_page.py > docs/codes.md` from the table in `onnx_attn/codes.py`.)
"""
GROUPS = {
    True: ("Attention that is left as it is", "The status of these candidates is `refused`."),
    False: (
        "No attention",
        "The status of these candidates is `not_attention`. There is nothing to mend.",
    ),
}


def page() -> str:
    """The page: attention that is left, then what is none, each code in the order of the table."""
    parts = [HEADING.format(site=Example(f"{SCORES}\n{TAIL}"))]
    for attention, (heading, status) in GROUPS.items():
        codes = [code for code in CODES.values() if code.attention is attention]
        parts += [f"## {heading}\n\n{status}\n", *map(_section, codes)]
    return "\n".join(parts)


def _section(code: Code) -> str:
    lines = [f"### {code.name}", _sentence(code.meaning)]
    lines += [f"**What to do**: {_sentence(code.remedy, capital=False)}"] if code.remedy else []
    lines += [NOTES[code.name]] if code.name in NOTES else []
    example = EXAMPLES.get(code.name)
    if example is not None:
        lines += [f"With `{example.options}`:"] if example.options else []
        lines += [f"```onnx\n{example}\n```"]
    return "\n\n".join(lines) + "\n"


def _sentence(text: str, capital: bool = True) -> str:
    return f"{text[0].upper() if capital else text[0]}{text[1:]}."


if __name__ == "__main__":
    print(page(), end="")
