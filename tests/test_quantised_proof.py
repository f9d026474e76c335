"""The proof of a quantised site: a number that falls to the other side of a step is no defect, and hides none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import Net
from quantised import quantised_block, quantised_site, step

import onnx_attn
from onnx_attn.forms.way import Way
from onnx_attn.forms.write import write_site
from onnx_attn.graph.edit import Names
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.certificate import Certificate
from onnx_attn.prove.cut import Cutter
from onnx_attn.prove.site import prove_site
from onnx_attn.prove.smooth import smoothed, unrounded
from onnx_attn.recognize.candidates import recognize
from onnx_attn.runtime import Session
from onnx_attn.site import AttentionSite

Change = Callable[[AttentionSite], AttentionSite]


def certified(model: onnx.ModelProto, change: Change) -> Certificate:
    """The certificate of a site that is written as `change` makes it, and proved as it is."""
    view = GraphView(model)
    (site,) = recognize(view)
    assert isinstance(site, AttentionSite)
    edit = write_site(view, Names(model), change(site), Way("primitives"))
    return prove_site(view, Cutter(view), site, edit)


def without_probabilities(site: AttentionSite) -> AttentionSite:
    return replace(site, quantized=None)


def another_scale(site: AttentionSite) -> AttentionSite:
    assert site.quantized is not None
    (scale, zero), source = site.quantized.numbers, site.quantized
    return replace(site, quantized=replace(source, scale=None, numbers=(scale * 1.001, zero)))


def another_zero(site: AttentionSite) -> AttentionSite:
    assert site.quantized is not None
    return replace(site, quantized=replace(site.quantized, zero=None, numbers=(site.quantized.numbers[0], 100.0)))


def turned_round(site: AttentionSite) -> AttentionSite:
    """The scale in front of the step that stands behind it, or the other way round."""
    return replace(site, terms=site.terms[::-1])


CHANGES = [without_probabilities, another_scale, another_zero, turned_round]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_step_that_is_lost_changed_or_moved_fails_the_proof(change: Change, half: bool) -> None:
    model = quantised_site(length=8, scores="before", dtype=np.float16 if half else np.float32)
    assert certified(model, lambda site: site).ok
    found = certified(model, change)
    assert not found.ok and found.provable


def test_a_type_that_clamps_elsewhere_fails_the_proof() -> None:
    model = quantised_site(length=8, scores="before")
    view = GraphView(model)
    (site,) = recognize(view)
    assert isinstance(site, AttentionSite)
    kind, *others = (term for term in site.terms if term.quantizer)
    assert not others and kind.quantizer is not None
    changed = replace(kind, quantizer=replace(kind.quantizer, zero=None, elem_type=onnx.TensorProto.UINT8))
    assert not certified(model, lambda each: replace(each, terms=(changed, *each.terms[1:]))).ok


def test_a_number_that_falls_to_the_other_side_of_a_step_is_no_defect() -> None:
    """1/√24 on Q rounds in another place than on the scores; of so many scores a few lie between two steps."""
    net = Net(opset=19)
    q, k, v = (net.input(name, 1, 16, 4096 if name == "q" else 16, 24) for name in "qkv")
    net.output(
        net.sdpa(
            q,
            net.swap(k),
            v,
            lambda value: step(net, net.scaled(value, 24**-0.5), 1 / 16),
            lambda value: step(net, value, 1 / 127),
        )
    )
    result = onnx_attn.fuse(net.model(), target="onnxruntime")
    entry = result.report["candidates"][0]
    assert entry["certificate"]["ok"] and result.report["proof"]["ok"]
    assert 1e-5 < entry["certificate"]["max_rel"] <= entry["certificate"]["bound"] < 0.5


def test_the_same_step_again_is_none() -> None:
    """ONNX Runtime's quantiser puts one around every movement."""
    net = Net(opset=19)
    x = step(net, net.input("x", 1, 8, 16), 1 / 32)

    def operand() -> str:
        value = step(net, net.op("MatMul", x, net.weight(16, 16)), 1 / 64)
        value = step(net, net.reshape(value, 0, 0, 2, 8), 1 / 64)
        return step(net, net.turn(value, 0, 2, 1, 3), 1 / 64)

    q, k, v = (operand() for _ in range(3))
    net.output(net.sdpa(q, net.swap(k), v))
    result = onnx_attn.fuse(net.model())
    assert result.report["candidates"][0]["packed"] and result.report["candidates"][0]["certificate"]["ok"]
    assert sum(node.op_type == "QuantizeLinear" for node in result.model.graph.node) == 4


@pytest.mark.parametrize("kind", ["int8", "uint8", "fp8"])
def test_a_wave_stays_within_half_a_step_of_its_input_and_within_the_type(kind: str) -> None:
    net = Net(opset=19)
    net.output(step(net, net.input("x", 64), 0.5, kind), 1)
    session, plain = (Session(made(net.model()), "step") for made in (smoothed, unrounded))
    values = np.linspace(-3, 3, 64, dtype=np.float32)
    (waved,), (same,) = session.run({"x": values}), plain.run({"x": values})
    np.testing.assert_allclose(same, values, rtol=1e-6)
    inside = np.maximum(values, 0) if kind == "uint8" else values
    assert 0 < np.abs(waved - inside).max() <= 0.5 / (4 * np.pi) + 1e-6
    (far,) = session.run({"x": np.full(64, 1e6, np.float32)})
    np.testing.assert_allclose(far, 0.5 * {"int8": 127, "uint8": 255, "fp8": 448}[kind], rtol=1e-5)


def test_narrow_numbers_that_are_computed_with_are_left_as_they_are() -> None:
    net = Net(opset=19)
    x, scale, zero = net.input("x", 4, 4), net.const(0.1), net.const(0, np.int8)
    narrow = net.op("QuantizeLinear", x, scale, zero)
    product = net.op("MatMulInteger", narrow, net.const(np.eye(4), np.int8))
    net.output(product, 2, dtype=np.int32)
    assert [node.op_type for node in smoothed(net.model()).graph.node] == [
        node.op_type for node in net.model().graph.node
    ]


def test_a_quantised_block_in_other_sizes_is_proved_in_float64_too() -> None:
    certificate = onnx_attn.fuse(quantised_block(prescaled=True, bias=True)).report["candidates"][0]["certificate"]
    assert certificate["ok"] and certificate["float64"]["max_rel"] < 1e-12
