"""The shapes that an engine is built for, as a command line and as Python give them."""

from __future__ import annotations

import onnx
import pytest
from support import EXPORTS

from onnx_attn import UsageError
from onnx_attn.engine.profiles import as_range, at_usual, fitted, is_fixed, read_shapes

BERT = onnx.load(EXPORTS / "bert.torchscript.17.dynamic.onnx")
STATIC = onnx.load(EXPORTS / "vit_b_16.torchscript.17.static.onnx")


def test_one_shape_is_that_shape_alone() -> None:
    assert read_shapes(["x:1x128"]) == {"x": ((1, 128), (1, 128), (1, 128))}


def test_two_shapes_reach_from_the_first_to_the_second_and_are_tuned_for_it() -> None:
    assert read_shapes(["x:1x128", "y:3", "x:8x256"]) == {"x": ((1, 128), (8, 256), (8, 256)), "y": ((3,), (3,), (3,))}


def test_three_shapes_are_smallest_usual_and_largest() -> None:
    assert read_shapes(["x:1x8", "x:2x8", "x:4x8"]) == {"x": ((1, 8), (2, 8), (4, 8))}


def test_a_name_may_hold_a_colon() -> None:
    assert read_shapes(["scope:x:0:1x2"]) == {"scope:x:0": ((1, 2), (1, 2), (1, 2))}


@pytest.mark.parametrize("texts", [["x"], ["x:"], ["x:1x"], [":1x2"], ["x:-1x2"], ["x:axb"], ["x:1.5"]])
def test_what_is_no_shape_is_refused_with_an_example(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="write NAME:1x3x224x224"):
        read_shapes(texts)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(2, 8), (1, 8)], "do not grow"),
        ([(1, 8), (8,)], "of one rank"),
        ([(1,)] * 4, "one, two or three"),
        ([], "one, two"),
    ],
)
def test_shapes_that_are_no_range_are_refused(shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        as_range("x", shapes)


def test_inputs_that_share_named_dimensions_need_one_shape() -> None:
    found = fitted(BERT, read_shapes(["input_ids:1x16", "input_ids:4x32"]), "bert")
    assert found == dict.fromkeys(("input_ids", "attention_mask"), ((1, 16), (4, 32), (4, 32)))


def test_a_static_model_needs_none() -> None:
    assert fitted(STATIC, {}, "vit") == {}


def test_a_static_model_takes_its_own_shape() -> None:
    (image,) = STATIC.graph.input[:1]
    shape = "x".join(str(dim.dim_value) for dim in image.type.tensor_type.shape.dim)
    assert fitted(STATIC, read_shapes([f"{image.name}:{shape}"]), "vit") == {}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            [],
            r"'input_ids' varies, its shape is batch×sequence; pass sizes of yours, such as --shapes input_ids:2x\d+ --shapes ",
        ),
        (["ids:1x16"], r"bert has no input 'ids'; it has input_ids, attention_mask"),
        (["input_ids:1x16x3"], r"'input_ids' has 2 dimensions, 3 were given"),
        (["input_ids:1x16", "attention_mask:2x16"], r"dimension 'batch' is given two sizes"),
    ],
)
def test_shapes_that_do_not_fit_the_model_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fitted(BERT, read_shapes(texts), "bert")


def test_another_size_than_the_model_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"dimension 0 of 'image' is 1, not 2"):
        fitted(STATIC, read_shapes(["image:2x3x16x16"]), "vit")


def test_the_usual_shapes_alone_are_fixed() -> None:
    profile = read_shapes(["x:1x8", "x:2x8", "x:4x8"])
    assert not is_fixed(profile)
    assert is_fixed(at_usual(profile)) and at_usual(profile) == {"x": ((2, 8), (2, 8), (2, 8))}
