"""`--dynamic-batch`: what a model gives of a slice of entries, it gives of more; or it is refused, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import error_line, run_command
from graphs import CHANNELS, WIDTH, Net, self_attention
from onnx import TensorProto, helper
from support import EXPORTS, max_rel, run
from support import feeds as real_feeds

import onnx_attn
from onnx_attn.errors import InputError, UsageError

Build = Callable[[Net, str], str]
OTHERS = {"sequence": 7}


def made(build: Build, *dims: int | str, opset: int = 17) -> onnx.ModelProto:
    """A model of one input `x` whose output is what `build` makes of it."""
    net = Net(opset)
    result = build(net, net.input("x", *(dims or (2, 5, WIDTH))))
    model = net.model()
    return with_output(model, result)


def with_output(model: onnx.ModelProto, name: str, elem_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    model.graph.output.append(helper.make_empty_tensor_value_info(name))
    model.graph.output[-1].type.tensor_type.elem_type = elem_type
    shaped = onnx.shape_inference.infer_shapes(model)
    model.graph.output[-1].CopyFrom(shaped.graph.output[-1])
    return model


def dynamic(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    found: onnx.ModelProto = onnx_attn.fuse(model, dynamic_batch=True, **options).model  # type: ignore[arg-type]
    return found


def values(model: onnx.ModelProto, batch: int, seed: int = 5) -> dict[str, np.ndarray]:
    return real_feeds(model, OTHERS | {"batch": batch}, seed)


def assert_apart(before: onnx.ModelProto, after: onnx.ModelProto, *batches: int, inputs: tuple[str, ...] = ()) -> None:
    """At every batch, entry by entry what the original gives: of one entry as often as its batch is, the first result."""
    names = inputs or tuple(
        value.name for value in after.graph.input if value.type.tensor_type.shape.dim[0].dim_param == "batch"
    )
    size = next(v.type.tensor_type.shape.dim[0].dim_value for v in before.graph.input if v.name in names)
    axes = [axis_of_batch(value) for value in after.graph.output]
    for batch in batches:
        given = values(after, batch)
        results = run(after, given, optimized=False)
        for entry in range(batch):
            alone = {
                name: np.repeat(value[entry : entry + 1], size, 0) if name in names else value
                for name, value in given.items()
            }
            for axis, whole, one in zip(axes, results, run(before, alone, optimized=False), strict=True):
                each = one.shape[axis] // size
                assert whole.shape[axis] == each * batch
                wanted, found = one.take(range(each), axis), whole.take(range(entry * each, (entry + 1) * each), axis)
                assert max_rel([wanted], [found]) <= (2e-3 if found.dtype == np.float16 else 1e-5)


def axis_of_batch(value: onnx.ValueInfoProto) -> int:
    names = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
    return next(axis for axis, name in enumerate(names) if name == "batch" or name.endswith("*batch"))


def refusal(model: onnx.ModelProto, words: str) -> str:
    with pytest.raises(InputError, match=words) as caught:
        dynamic(model)
    assert "export the model with a dynamic batch" in str(caught.value)
    return str(caught.value)


def test_the_batch_is_a_dimension_with_a_name() -> None:
    before = made(lambda net, x: self_attention(net, x))
    result = onnx_attn.fuse(before, dynamic_batch=True)
    assert result.report["dynamic_batch"] == {"name": "batch", "was": 2, "inputs": ["x"]}
    assert (result.report["fused"], result.report["proof"]["cases"]) == (1, 3)
    dims = [v.type.tensor_type.shape.dim for v in (result.model.graph.input[0], result.model.graph.output[0])]
    assert [(d[0].dim_param, d[1].dim_value, d[2].dim_value) for d in dims] == [("batch", 5, WIDTH)] * 2
    assert_apart(before, result.model, 1, 2, 3, 5)


def test_a_name_that_is_taken_is_left_to_its_dimension() -> None:
    before = made(lambda net, x: net.op("Relu", x), 2, "batch")
    assert onnx_attn.fuse(before, dynamic_batch=True).report["dynamic_batch"]["name"] == "batch_2"


def test_without_the_option_the_batch_stays() -> None:
    result = onnx_attn.fuse(made(lambda net, x: self_attention(net, x)))
    assert result.report["dynamic_batch"] is None
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_a_batch_that_is_dynamic_already_is_left() -> None:
    model = made(lambda net, x: net.op("Relu", x), "batch", 5)
    result = onnx_attn.fuse(model, dynamic_batch=True)
    assert result.report["dynamic_batch"] is None
    assert result.model.SerializeToString() == model.SerializeToString()


def class_token(net: Net, x: str, batch: int) -> str:
    token = net.op("Expand", net.weight(1, 1, WIDTH), net.ints(batch, 1, WIDTH))
    return net.op("Concat", token, x, axis=1)


def seq_first(net: Net, x: str, batch: int) -> str:
    """(B, S, E) → (S, B, E) → (S·B, E), where the batch is inside its axis, and back."""
    rows = net.reshape(net.turn(x, 1, 0, 2), 5 * batch, WIDTH)
    product = net.op("Gemm", rows, net.weight(WIDTH, WIDTH))
    return net.turn(net.reshape(product, 5, batch, WIDTH), 1, 0, 2)


def heads_with_batch(net: Net, x: str, batch: int) -> str:
    """Attention as torch's functional form has it: (S, B·H, D), batch matrix products, (S·B, E)."""
    q, k, v = (
        net.turn(net.reshape(net.turn(net.linear(x, CHANNELS), 1, 0, 2), 5, batch * 2, 24), 1, 0, 2) for _ in range(3)
    )
    found = net.sdpa(q, net.turn(k, 0, 2, 1), v)
    rows = net.reshape(net.turn(found, 1, 0, 2), 5 * batch, CHANNELS)
    return net.reshape(net.linear(rows, WIDTH, width=CHANNELS), 5, batch, WIDTH)


def window_mask(net: Net, x: str, batch: int) -> str:
    """Four windows an entry, and a constant for each window of each entry."""
    windows = net.reshape(net.linear(x, 4 * WIDTH), batch * 4, 5, WIDTH)
    mask = np.tile(net.rng.standard_normal((4, 5, 1)), (batch, 1, 1))
    return net.reshape(net.op("Add", windows, net.const(mask)), batch, 4, 5, WIDTH)


def pick_by_coordinates(net: Net, x: str, batch: int) -> str:
    entries, places = np.meshgrid(np.arange(batch), [3, 0, 3], indexing="ij")
    return net.op("GatherND", x, net.const(np.stack([entries, places], -1), np.int64))


def as_strided(net: Net, x: str, batch: int) -> str:
    flat = net.reshape(x, -1)
    return net.op("Gather", flat, net.const(np.arange(batch * 5 * WIDTH).reshape(batch, 5, WIDTH), np.int64), axis=0)


def zeros(net: Net, x: str, batch: int) -> str:
    fill = net.op("ConstantOfShape", net.ints(batch, 3, WIDTH))
    return net.op("Concat", fill, x, axis=1)


ALLOWED: dict[str, Callable[[Net, str, int], str]] = {
    "class token": class_token,
    "sequence first": seq_first,
    "heads joined with the batch": heads_with_batch,
    "windows": window_mask,
    "coordinates": pick_by_coordinates,
    "strided view": as_strided,
    "filled": zeros,
    "positions an entry": lambda net, x, b: net.op("Add", x, net.const(np.repeat(net.rng.random((1, 5, WIDTH)), b, 0))),
    "table by positions": lambda net, x, b: net.op(
        "Add", x, net.op("Gather", net.weight(5, WIDTH), net.const([[4, 3, 2, 1, 0]] * b, np.int64))
    ),
    "copies": lambda net, x, b: net.reshape(net.op("Tile", x, net.ints(2, 1, 1)), 2, b, 5, WIDTH),
    "einsum": lambda net, x, b: net.op("Einsum", x, x, equation="bqc,bkc->bqk"),
    "flatten": lambda net, x, b: net.reshape(net.op("Flatten", x, axis=2), b, 5, WIDTH),
    "columns": lambda net, x, b: net.op("MatMul", net.weight(3, WIDTH), net.turn(net.reshape(x, b * 5, WIDTH), 1, 0)),
}


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("kind", ALLOWED)
def test_what_keeps_entries_apart(kind: str, batch: int) -> None:
    before = made(lambda net, x: ALLOWED[kind](net, x, batch), batch, 5, WIDTH)
    assert_apart(before, dynamic(before), 1, 2, 4)


def merged(net: Net, x: str, batch: int) -> str:
    """(B, S, E) → (S, B, E) → rows of all entries as one axis of attention."""
    rows = net.reshape(net.turn(x, 1, 0, 2), 1, 5 * batch, WIDTH)
    return net.op("Softmax", net.op("MatMul", rows, net.swap(rows, 3)), axis=-1)


def normalised(net: Net, x: str, batch: int) -> str:
    scale, shift, mean, variance = (net.const(np.ones(5)) for _ in range(4))
    found: str = net.op("BatchNormalization", x, scale, shift, mean, variance, outputs=3, training_mode=1)[0]
    return found


def quantised(net: Net, x: str, batch: int) -> str:
    values, scale, zero = net.op("DynamicQuantizeLinear", x, outputs=3)
    return net.op("DequantizeLinear", values, scale, zero)


def entries_differ(net: Net, x: str, batch: int) -> str:
    return net.op("Add", x, net.const(np.arange(max(batch, 2)).reshape(-1, 1, 1)))


def branch(net: Net, x: str, batch: int) -> str:
    bodies = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, [x], [f"{name}_value"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_value", TensorProto.FLOAT, [batch, 5, WIDTH])],
        )
        for name, op in (("then", "Relu"), ("else", "Abs"))
    }
    return net.op("If", net.const(True, np.bool_), **bodies)


MIXING: dict[str, tuple[Callable[[Net, str, int], str], str]] = {
    "softmax": (lambda net, x, b: net.op("Softmax", x, axis=0), "it normalises along the batch"),
    "layer norm": (
        lambda net, x, b: net.op("LayerNormalization", x, net.const(np.ones((b, 5, WIDTH))), axis=0),
        "it normalises along the batch",
    ),
    "mean": (lambda net, x, b: net.op("ReduceMean", x, axes=[0]), "it sums up along the batch"),
    "mean of all": (lambda net, x, b: net.op("ReduceMean", x), "it sums up all axes"),
    "product over it": (
        lambda net, x, b: net.op("MatMul", net.turn(net.op("Flatten", x), 1, 0), net.op("Flatten", x)),
        "multiplies each entry by every other|sums over the batch",
    ),
    "entries by entries": (
        lambda net, x, b: net.op("MatMul", net.op("Flatten", x), net.turn(net.op("Flatten", x), 1, 0)),
        "multiplies each entry by every other",
    ),
    "joined rows": (merged, "multiplies each entry by every other|normalises|joins the batch"),
    "training": (normalised, "it is in training mode"),
    "dynamic quantisation": (quantised, "not known to keep the entries of a batch apart"),
    "first entry": (lambda net, x, b: net.op("Gather", x, net.const(0, np.int64), axis=0), "it picks entries"),
    "first entries": (lambda net, x, b: net.op("Gather", x, net.ints(0), axis=0), "it picks entries"),
    "slice": (
        lambda net, x, b: net.op("Slice", x, net.ints(0), net.ints(1), net.ints(0)),
        "it takes some entries of the batch only",
    ),
    "squeezed": (
        lambda net, x, b: net.op("Squeeze", net.op("Slice", x, net.ints(0), net.ints(1)), net.ints(0)),
        "takes",
    ),
    "padded": (lambda net, x, b: net.op("Pad", x, net.ints(0, 0, 0, 1, 0, 0)), "it pads the batch"),
    "joined": (lambda net, x, b: net.op("Concat", x, x, axis=0), "it joins other things along the batch"),
    "sum of entries": (lambda net, x, b: net.op("CumSum", x, net.const(0, np.int64)), "it sums up along the batch"),
    "entries differ": (entries_differ, "other numbers for each entry|positions along the batch"),
    "body": (branch, "the batch enters its body"),
    "shuffled": (
        lambda net, x, b: net.op("Gather", x, net.const(np.arange(max(b, 2))[::-1] % b, np.int64), axis=0),
        "it picks entries",
    ),
    "einsum": (lambda net, x, b: net.op("Einsum", x, equation="bsc->sc"), "it sums over the batch"),
    "size as a number": (
        lambda net, x, b: net.op("Mul", x, net.op("Cast", net.op("Size", x), to=TensorProto.FLOAT)),
        "follows from the batch's size",
    ),
    "size as output": (lambda net, x, b: net.op("Cast", net.op("Shape", x), to=TensorProto.FLOAT), "size of the batch"),
    "nothing": (lambda net, x, b: net.op("Relu", net.weight(b, 5)), "output"),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", MIXING)
def test_what_mixes_entries_is_refused(kind: str, batch: int) -> None:
    build, words = MIXING[kind]
    refusal(made(lambda net, x: build(net, x, batch), batch, 5, WIDTH), words)


def test_operands_that_have_it_on_other_axes_are_refused() -> None:
    """With one entry these are the same shape, and may as well have it on the first axis."""

    def build(net: Net, x: str) -> str:
        return net.op("Add", net.reshape(x, 2, 1, 5 * WIDTH), net.reshape(x, 1, 2, 5 * WIDTH))

    refusal(made(build), "have the batch at different places")


def test_a_batch_of_one_loses_no_axis_of_one() -> None:
    """Squeeze of the batch's own axis is refused, that of another axis of size 1 is not."""
    refusal(made(lambda net, x: net.op("Squeeze", x, net.ints(0)), 1, 1, WIDTH), "takes the batch's axis away")
    before = made(lambda net, x: net.op("Squeeze", x, net.ints(1)), 1, 1, WIDTH)
    assert_apart(before, dynamic(before), 1, 2, 3)


def test_which_input_has_the_batch_is_told_by_what_can_be() -> None:
    net = Net()
    scores = net.op("MatMul", net.input("x", 2, 5, WIDTH), net.weight(WIDTH, 5))
    before = with_output(net.model(), net.op("Softmax", net.op("Add", scores, net.input("mask", 5, 5)), axis=1))
    before = with_output(net.model(), before.graph.output[0].name)
    result = onnx_attn.fuse(before, dynamic_batch=True)
    assert result.report["dynamic_batch"]["inputs"] == ["x"]
    assert_apart(before, result.model, 1, 3)


def test_two_batches_that_could_be_are_ambiguous() -> None:
    net = Net()
    x, y = net.input("x", 2, 5), net.input("y", 3, 5)
    net.output(net.op("Relu", x), 2)
    net.output(net.op("Relu", y), 2)
    refusal(net.model(), "may be the first axis of that of 'x' or that of 'y'")


def test_other_sizes_that_vary_stay_so() -> None:
    """A sequence that is -1 in the target, and a batch that is baked beside it."""

    def build(net: Net, x: str) -> str:
        heads = net.turn(net.reshape(net.linear(x, CHANNELS), 2, -1, 2, 24), 0, 2, 1, 3)
        return net.reshape(net.turn(heads, 2, 0, 1, 3), -1, 2, CHANNELS)

    before = made(build, 2, "sequence", WIDTH)
    assert_apart(before, dynamic(before), 1, 2, 3)


def test_positions_that_are_counted_as_the_model_runs_are_shared() -> None:
    def build(net: Net, x: str) -> str:
        length = net.op("Squeeze", net.op("Gather", net.op("Shape", x), net.ints(1)), net.ints(0))
        places = net.op("Range", net.const(0, np.int64), length, net.const(1, np.int64))
        return net.op("Add", x, net.op("Gather", net.weight(50, WIDTH), places))

    before = made(build, 2, "sequence", WIDTH)
    assert_apart(before, dynamic(before), 1, 2, 3)


def test_a_target_that_is_computed_is_patched() -> None:
    before = made(lambda net, x: net.reshape(net.linear(x, CHANNELS), 2, (x, 1), 2, 24), 2, "sequence", WIDTH)
    assert_apart(before, dynamic(before), 1, 2, 3)


def test_a_picture_is_resized_to_sizes_that_name_the_batch() -> None:
    def build(net: Net, x: str) -> str:
        return net.op("Resize", x, "", "", net.ints(2, 3, 6, 8), mode="linear")

    before = made(build, 2, 3, 4, 4)
    assert_apart(before, dynamic(before), 1, 2, 3)


def test_functions_are_looked_into() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    body = [
        helper.make_node("Constant", [], ["t"], value_ints=[2, 5, 4, 5]),
        helper.make_node("Reshape", ["a", "t"], ["b"]),
    ]
    function = helper.make_function("own", "Split", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    result = net.op("Split", x, domain="own")
    net.output(net.op("Relu", result))
    before = net.model([function], own=1)
    assert_apart(before, dynamic(before), 1, 3)


def test_the_files_data_stays_beside_it(tmp_path: Path) -> None:
    before = made(lambda net, x: self_attention(net, x))
    copy = onnx.ModelProto.FromString(before.SerializeToString())
    onnx.save_model(copy, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=256)
    onnx_attn.fuse(tmp_path / "a.onnx", tmp_path / "b.onnx", dynamic_batch=True)
    assert len(list(tmp_path.glob("b.onnx.*.data"))) == 1
    after = onnx.load(tmp_path / "b.onnx", load_external_data=False)
    assert axis_of_batch(after.graph.output[0]) == 0
    given = values(after, 4)
    wanted = [run(before, {"x": given["x"][at : at + 2]})[0] for at in (0, 2)]
    assert max_rel([np.concatenate(wanted)], run(tmp_path / "b.onnx", given)) <= 1e-5


def test_what_was_fused_before_is_not_looked_into() -> None:
    fused = onnx_attn.fuse(made(lambda net, x: self_attention(net, x))).model
    refusal(fused, "it was fused before; fuse the model that it was made of")


def test_quantised_models_are_compared_without_their_steps_too() -> None:
    def build(net: Net, x: str) -> str:
        scale, zero = net.const(0.02), net.const(0, np.int8)
        rows = net.reshape(net.linear(x, CHANNELS), 10, CHANNELS)
        rounded = net.op("DequantizeLinear", net.op("QuantizeLinear", rows, scale, zero), scale, zero)
        return net.reshape(net.linear(rounded, WIDTH, width=CHANNELS), 2, 5, WIDTH)

    before = made(build)
    assert_apart(before, dynamic(before), 1, 2, 3)


def test_a_plan_repeats_it(tmp_path: Path) -> None:
    path = EXPORTS / "mha.torchscript.17.static.onnx"
    first = onnx_attn.fuse(path, tmp_path / "a.onnx", dynamic_batch=True)
    assert first.plan["dynamic_batch"] is True
    onnx_attn.fuse(path, tmp_path / "b.onnx", plan=json.loads(json.dumps(first.plan)))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    with pytest.raises(UsageError, match="whether the batch is made dynamic"):
        onnx_attn.fuse(path, tmp_path / "c.onnx", plan=first.plan, dynamic_batch=True)
    assert "dynamic_batch" not in onnx_attn.fuse(path, tmp_path / "c.onnx").plan


def test_the_command_line(tmp_path: Path) -> None:
    path, out = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(made(lambda net, x: net.op("Softmax", x, axis=0, name="over_entries")), path)
    line = error_line(run_command("fuse", path, "-o", out, "--dynamic-batch"), 1, str(path))
    assert "'over_entries' (Softmax)" in line and not out.exists()
    done = run_command("fuse", EXPORTS / "vit_b_16.torchscript.17.static.onnx", "-o", out, "--dynamic-batch")
    assert done.code == 0 and "batch   1 → batch" in done.stdout


def test_a_wrong_way_of_writing_it_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that would let entries mix is caught, since the original is run on slices."""
    from onnx_attn.batch import rules

    monkeypatch.setitem(rules.RULES, "Softmax", lambda step: step.first())
    with pytest.raises(onnx_attn.DifferenceError):
        dynamic(made(lambda net, x: net.op("Softmax", x, axis=0)))


REAL = (
    "vit_b_16.torchscript.17.static deit_tiny_distilled.torchscript.17.static swin_t.dynamo.18.static.half "
    "swin_tiny.dynamo.23.static.half bert.dynamo.18.static.eager.half gpt2.dynamo.23.static t5_encoder.dynamo.23.static "
    "clip_text.torchscript.17.static clip_vision.dynamo.23.static mha.torchscript.17.static mha_padding.torchscript.17.static "
    "decoder_layer.torchscript.17.static falcon.torchscript.17.static mpnet.torchscript.17.static.eager "
    "mistral.dynamo.18.static edgenext_small.dynamo.18.static volo_d1.dynamo.18.static.eager"
).split()


@pytest.mark.parametrize("name", REAL)
def test_real_exports(name: str) -> None:
    before = onnx.load(EXPORTS / f"{name}.onnx")
    result = onnx_attn.fuse(before, dynamic_batch=True)
    assert result.report["refused"] == 0
    assert_apart(before, result.model, 1, 3)


def test_a_sequence_in_front_is_no_batch() -> None:
    model = onnx.load(EXPORTS / "mha_seq_first.torchscript.17.static.onnx")
    assert "/attention/MatMul" in refusal(model, "multiplies each entry by every other")
