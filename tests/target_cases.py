"""The smallest graph with given facts, in each form: what the rows of the tables are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_attn.domain import DOMAIN
from onnx_attn.targets.facts import Facts
from onnx_attn.targets.rows import Measured
from onnx_attn.targets.table import TABLE

ELEMENTS = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
SITE = "site"
"""The name of the Softmax, the operator or the call: what an engine is asked for."""


def model_of(facts: Facts, form: str) -> onnx.ModelProto:
    """One site on the model inputs q, k, v (and mask …), with output y."""
    case = _Case(facts, like=form == "function")
    if form == "attention":
        case.attention()
    elif form == "contrib":
        case.contrib()
    else:
        case.primitives()
    if form == "function":
        case.call()
        if facts.steps_inside:
            case.call_again()
    if facts.nested == "If":
        case.branch()
    return case.model()


class _Case:
    def __init__(self, facts: Facts, like: bool):
        self.facts = facts
        self.like = like
        self.element = ELEMENTS[str(facts.dtype)]
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: list[str] = []
        f = facts
        self.b, self.n, self.m, self.h = (int(size or 0) for size in (f.batch, f.heads, f.kv_heads, f.head_dim))
        self.s, self.t = int(f.query_length or 0), int(f.key_length or 0)
        self.w = self.h if f.value_head == "same" else self.h // 2
        self.scale = self.h**-0.5 * (-1 if f.scale == "negative" else 1)
        self.value_element = self.element if f.value_dtype == "same" else TensorProto.FLOAT

    # A small graph writer.

    def input(self, name: str, *shape: int, element: int = 0) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, element or self.element, shape))
        return name

    def output(self, name: str, *shape: int, element: int = 0) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, element or self.element, shape))

    def op(self, op: str, *inputs: str, made: str = "", name: str = "", domain: str = "", **attrs: Any) -> str:
        made = made or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], name=name or f"n_{made}", domain=domain, **attrs))
        return made

    def number(self, value: Any, element: int = 0) -> str:
        dtype = helper.tensor_dtype_to_np_dtype(element or self.element)
        made = f"number_{len(self.nodes)}"
        tensor = numpy_helper.from_array(np.asarray(value).astype(dtype), made)
        self.nodes.append(helper.make_node("Constant", [], [made], name=f"n_{made}", value=tensor))
        return made

    def ints(self, *values: int) -> str:
        return self.number(values, TensorProto.INT64)

    def turned(self, value: str) -> str:
        return self.op("Transpose", value, perm=[0, 1, 3, 2])

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "case", self.inputs, self.outputs)
        imports = [helper.make_opsetid("", int(self.facts.opset or 0))]
        imports += [helper.make_opsetid(domain, 1) for domain in self.domains]
        version = 8 if int(self.facts.opset or 0) < 19 else 10
        return helper.make_model(graph, ir_version=version, functions=self.functions, opset_imports=imports)

    # Operands.

    def operands(self) -> tuple[str, str, str]:
        if self.facts.rank == 3:
            shapes = [
                (self.b, self.s, self.n * self.h),
                (self.b, self.t, self.m * self.h),
                (self.b, self.t, self.m * self.w),
            ]
        else:
            shapes = [
                (self.b, self.n, self.s, self.h),
                (self.b, self.m, self.t, self.h),
                (self.b, self.m, self.t, self.w),
            ]
        q, k = (self.input(name, *shape) for name, shape in zip("qk", shapes, strict=False))
        return q, k, self.input("v", *shapes[2], element=self.value_element)

    def mask(self) -> str:
        """The mask as a model input; "" where there is none."""
        facts = self.facts
        if facts.mask == "none":
            return ""
        element = {"query": self.element, "other": TensorProto.FLOAT}.get(str(facts.mask_type), TensorProto.BOOL)
        if facts.mask == "additive" and facts.mask_type == "other" and self.element == TensorProto.FLOAT:
            element = TensorProto.FLOAT16
        keys = self.t - 1 if facts.mask_keys == "fewer" else self.t
        full = (self.b, self.n, 1 if facts.mask_queries == "one" else self.s, keys)
        return self.input("mask", *full[4 - int(facts.mask_rank or 0) :], element=element)

    # Forms.

    def attention(self) -> None:
        facts, inputs = self.facts, [*self.rounded_operands(*self.operands()), self.mask()]
        attrs: dict[str, Any] = {"scale": self.scale}
        outputs = ["y"]
        if facts.past or facts.presents:
            past, size = (3 if facts.past else 0), (self.b, self.m)
            if facts.past:
                inputs += [self.input(f"past_{x}", *size, 3, self.h if x == "k" else self.w) for x in "kv"]
            if facts.presents:
                outputs += ["present_k", "present_v"]
                self.output("present_k", *size, self.t + past, self.h)
                self.output("present_v", *size, self.t + past, self.w)
        if facts.scores_output:
            outputs += [""] * (3 - len(outputs)) + ["scores"]
            self.output("scores", self.b, self.n, self.s, self.t)
        if facts.nonpad:
            inputs += [""] * (6 - len(inputs)) + [self.input("nonpad", self.b, element=TensorProto.INT64)]
        if facts.rank == 3:
            attrs |= {"q_num_heads": self.n, "kv_num_heads": self.m}
        if facts.causal:
            attrs["is_causal"] = 1
        if facts.softcap:
            attrs["softcap"] = 2.0
        if facts.precision:
            attrs["softmax_precision"] = TensorProto.FLOAT
        if facts.window:
            attrs["left_window_size"] = 3
        while not inputs[-1]:
            inputs.pop()
        self.nodes.append(helper.make_node("Attention", inputs, outputs, name=SITE, **attrs))
        if facts.shared:
            more = [
                inputs[0],
                self.input("k2", self.b, self.m, self.t, self.h),
                self.input("v2", self.b, self.m, self.t, self.w),
            ]
            self.nodes.append(helper.make_node("Attention", more, ["y2"], name="second", **attrs))
            self.output("y2", self.b, self.n, self.s, self.w)
        self.result("y")

    def contrib(self) -> None:
        facts, attrs = self.facts, {"num_heads": self.n}
        self.domains.append("com.microsoft")
        wide = self.n * self.h
        if facts.operator == "Attention":
            x = self.input("x", self.b, self.s, wide)
            weight, bias = self.number(np.full((wide, 3 * wide), 0.01)), self.number(np.zeros(3 * wide))
            given = [x, weight, bias]
        elif facts.packed:
            given = [self.input("qkv", self.b, self.s, self.n, 3, self.h)]
        else:
            given = list(self.operands())
            bias = self.number(np.zeros(3 * wide)) if facts.fused_bias else ""
            given += [bias, "", self.mask()]
        while not given[-1]:
            given.pop()
        self.op(str(facts.operator), *given, made="y", name=SITE, domain="com.microsoft", **attrs)
        self.output("y", self.b, self.s, wide)

    def primitives(self) -> None:
        """`softmax(scale·Q·Kᵀ + mask)·V`, changed as the facts' code says."""
        facts = self.facts
        q, k, v = self.rounded_operands(*self.operands())
        self.before = (q, k, v), len(self.nodes)
        if facts.kv_heads not in (1, facts.heads):  # One head for all is multiplied by broadcasting, as it stands.
            k, v = self.repeated(k, self.h), self.repeated(v, self.w)
        if facts.turned and facts.code == "none":
            self.columns(q, k, v)
            return
        scale = self.number(self.scale)
        q = self.op("Mul", q, self.op("CastLike", scale, q) if self.like else scale)
        scores = self.op("MatMul", q, self.turned(k))
        if facts.scores_quantized:
            scores = self.step(scores, 0.1)
        scores = self.masked(scores)
        if facts.causal:
            lower = self.number(np.tril(np.ones((self.s, self.t), bool)), TensorProto.BOOL)
            scores = self.op("Where", lower, scores, self.number(-np.inf))
        probabilities = self.softmax(self.changed(scores), axis=2 if facts.turned else -1)
        if facts.code == "probabilities-changed":
            probabilities = self.op("Add", probabilities, self.number(0.5))
        if facts.cleared:
            cleared = self.input("cleared", self.b, 1, 1, self.t, element=TensorProto.BOOL)
            probabilities = self.op("Where", cleared, self.number(0.0), probabilities)
        if facts.value_dtype == "other":
            probabilities = self.op("Cast", probabilities, to=self.value_element)
        if facts.probabilities_quantized != "none":
            kind = str(facts.probabilities_quantized)
            probabilities = self.step(probabilities, {"int8": 1 / 127, "fp8": 1 / 448}[kind], kind)
        if facts.result_quantized:
            self.step(self.op("MatMul", probabilities, v), 1 / 32, made="y")
        else:
            self.op("MatMul", probabilities, v, made="y")
        if facts.code == "probabilities-used":
            self.output(probabilities, self.b, self.n, self.s, self.t)
        self.result("y")

    def rounded_operands(self, q: str, k: str, v: str) -> tuple[str, str, str]:
        """Q, K and V as the facts have them rounded; of "some", Q and K are."""
        facts = self.facts
        if facts.quantized == "none":
            return q, k, v
        sizes = {"features": (3, self.h), "heads": (1, self.n)}
        along = sizes.get(str(facts.sliced))
        zero = 3 if facts.offset else 0
        q, k = (self.step(value, 1 / 32, along=along, zero=zero) for value in (q, k))
        whole = facts.quantized != "some" or facts.sliced != "none"
        return q, k, self.step(v, 1 / 32, along=along, zero=zero) if whole else v

    def step(
        self,
        value: str,
        scale: float,
        kind: str = "",
        made: str = "",
        along: tuple[int, int] | None = None,
        zero: int = 0,
    ) -> str:
        """QuantizeLinear and DequantizeLinear; `along`: an axis and its size, for a scale for each slice of it."""
        kind = kind or ("fp8" if self.facts.quantized == "fp8" else "int8")
        element = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[kind]
        numbers = (np.asarray(scale), np.asarray(zero))
        if along is not None:
            numbers = (np.full(along[1], scale), np.full(along[1], zero))
        step = self.number(numbers[0]), self.number(numbers[1], element)
        attrs = {} if along is None else {"axis": along[0]}
        narrow = self.op("QuantizeLinear", value, *step, **attrs)
        return self.op("DequantizeLinear", narrow, *step, made=made, **attrs)

    def masked(self, scores: str) -> str:
        mask = self.mask()
        if self.facts.mask == "boolean":
            return self.op("Where", mask, scores, self.number(-np.inf))
        if mask and self.facts.mask_type == "other":
            mask = self.op("CastLike", mask, scores)
        return self.op("Add", scores, mask) if mask else scores

    def changed(self, scores: str) -> str:
        """What a code asks for between the mask and the softmax."""
        code = self.facts.code
        if self.facts.softcap:
            limited = self.op("Tanh", self.op("Mul", scores, self.number(0.5)))
            return self.op("Mul", limited, self.number(2.0))
        if code == "scores-changed":
            return self.op("Clip", scores, self.number(-50.0), self.number(50.0))
        if code == "scale-not-constant":
            return self.op("Mul", scores, self.input("temperature", 1, 1, 1, 1, element=self.element))
        if code == "talking-heads":
            last = self.op("Transpose", scores, perm=[0, 2, 3, 1])
            mixed = self.op("MatMul", last, self.number(np.eye(self.n) + 0.1))
            return self.op("Transpose", mixed, perm=[0, 3, 1, 2])
        return scores

    def softmax(self, scores: str, axis: int = -1) -> str:
        return self.op("Softmax", scores, axis=axis, name=SITE)

    def columns(self, q: str, k: str, v: str) -> None:
        """Softmax over the columns of K·Qᵀ, and the product as P·V or, channels first, as Vᵀ·P."""
        scaled = self.op("Mul", k, self.number(self.scale))
        probabilities = self.softmax(self.masked(self.op("MatMul", scaled, self.turned(q))), axis=2)
        if self.facts.value_head == "same":
            self.op("MatMul", self.turned(probabilities), v, made="y")
            self.result("y")
        else:
            self.op("MatMul", self.turned(v), probabilities, made="y")
            self.output("y", self.b, self.n, self.w, self.s)

    def repeated(self, value: str, size: int) -> str:
        apart = self.op("Unsqueeze", value, self.ints(2))
        wide = self.op("Expand", apart, self.ints(self.b, self.m, self.n // self.m, self.t, size))
        return self.op("Reshape", wide, self.ints(self.b, self.n, self.t, size))

    def result(self, name: str) -> None:
        shape = (self.b, self.s, self.n * self.w) if self.facts.rank == 3 else (self.b, self.n, self.s, self.w)
        self.outputs.insert(0, helper.make_tensor_value_info(name, self.value_element, shape))

    # What may stand around a form.

    def call(self) -> None:
        """Move all nodes behind the quantisation of Q, K and V into a local function and call it."""
        operands, count = self.before
        outside, self.nodes = self.nodes[:count], self.nodes[count:]
        opset = helper.make_opsetid("", int(self.facts.opset or 0))
        given = [*operands, *(value.name for value in self.inputs[3:])]
        made = [value.name for value in self.outputs]
        mask = {"additive": "_Mask", "boolean": "_Where"}.get(str(self.facts.mask), "")
        name = f"ScaledDotProductAttention{mask}"
        self.functions.append(helper.make_function(DOMAIN, name, given, made, self.nodes, [opset]))
        call = helper.make_node(name, given, made, name=SITE, domain=DOMAIN)
        self.nodes = [*outside, call]
        self.domains.append(DOMAIN)

    def call_again(self) -> None:
        """A second call, on the first one's result."""
        call = self.nodes[-1]
        again = [call.output[0], *call.input[1:]]
        self.nodes.append(helper.make_node(call.op_type, again, ["y2"], name="second", domain=DOMAIN))
        self.outputs = [_renamed(self.outputs[0], "y2")]

    def branch(self) -> None:
        """Put all nodes into one branch of an If whose condition is a model input; the other gives Q."""
        value = self.outputs[0]
        other = [helper.make_node("Identity", ["q"], ["other"])]
        bodies = {
            "then_branch": helper.make_graph(self.nodes, "then", [], [value]),
            "else_branch": helper.make_graph(other, "else", [], [_renamed(value, "other")]),
        }
        self.inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        self.nodes = [helper.make_node("If", ["c"], ["z"], name="choice", **bodies)]
        self.outputs = [_renamed(value, "z")]


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def values_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for every input; boolean masks keep the first key, conditions hold, counts are five."""
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape: Sequence[int] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype == np.bool_:
            attended = np.atleast_1d(rng.random(shape) < 0.6)
            attended[..., 0] = True
            values[value.name] = attended.reshape(shape)
        elif dtype == np.int64:
            values[value.name] = np.full(shape, 5)
        else:
            values[value.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return values


def cases_of(version: str) -> list[Any]:
    """Every example of every row that was measured with this tool, as parameters of a test."""
    return [
        pytest.param(row, example, id=f"{row.name}-{example.form}-{number}")
        for row in TABLE
        if isinstance(row.evidence, Measured) and row.evidence.version.startswith(version)
        for number, example in enumerate(row.examples)
    ]
