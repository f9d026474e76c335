"""Sizes read as polynomials: by the numbers alone, and what only looks like one is told."""

from __future__ import annotations

import pytest

from onnx_attn.counting.polynomial import Poly, as_polynomial, total

SIZES = [{"b": 2, "s": 5}, {"b": 3, "s": 7}, {"b": 113, "s": 127}]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (lambda b, s: 12, "12"),
        (lambda b, s: s, "s"),
        (lambda b, s: 3 * s + 1, "3*s + 1"),
        (lambda b, s: s - 1, "s - 1"),
        (lambda b, s: b * s, "b*s"),
        (lambda b, s: 8 * b * s, "8*b*s"),
        (lambda b, s: 2 * s * s, "2*s**2"),
        (lambda b, s: b + s, "b + s"),
        (lambda b, s: b + s + 4, "b + s + 4"),
    ],
)
def test_size_is_read(size: object, text: str) -> None:
    found = as_polynomial([size(**sizes) for sizes in SIZES], SIZES)  # type: ignore[operator]
    assert str(found) == text


@pytest.mark.parametrize(
    "size", [lambda b, s: s // 2, lambda b, s: s * s + 1, lambda b, s: max(b, 5), lambda b, s: b % 4]
)
def test_size_that_is_none_of_these(size: object) -> None:
    assert as_polynomial([size(**sizes) for sizes in SIZES], SIZES) is None  # type: ignore[operator]


def test_arithmetic() -> None:
    b, s = Poly({("b",): 1}), Poly({("s",): 1})
    found = total([2 * b * s * (s + 1), 3, b * 0])
    assert str(found) == "2*b*s**2 + 2*b*s + 3"
    assert found.at({"b": 5, "s": 7}) == 2 * 5 * 7 * 8 + 3
    assert (s + b, s * b) == (b + s, b * s)
    assert total([1, 2]) == 3
    assert str(b + b * -1) == "0"
