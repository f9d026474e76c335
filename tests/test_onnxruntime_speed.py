"""The form that is written for ONNX Runtime is the one that was measured to be the fastest for such a shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from graphs import small_site
from support import EXPORTS

import onnx_attn
from onnx_attn.targets import onnxruntime_speed
from onnx_attn.targets.facts import PLAIN, Facts
from onnx_attn.targets.onnxruntime_speed import ITSELF, Measured, Way, data, fastest, measured

FLOAT = replace(PLAIN, dtype="float32")


def point(queries: int, ratios: dict[str, float], mask: str = "none", dynamic: bool = False) -> Measured:
    return Measured(mask, dynamic, (np.log2(queries), np.log2(queries), 2.0), {ITSELF: 1.0, **ratios})


SHORT = {"function": 0.9, "function-unpacked": 0.98, "contrib": 0.7, "contrib-unpacked": 1.2}
LONG = {"function": 1.1, "function-unpacked": 1.0, "contrib": 0.97, "contrib-unpacked": 0.85}


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Sequence[Measured]:
    """Short: packed is best; long: unpacked, and the function is slower than the export; where sizes vary too."""
    found = [
        point(size, ratios, dynamic=varies) for size, ratios in ((16, SHORT), (1024, LONG)) for varies in (False, True)
    ]
    found.append(point(64, {"function": 1.1, "function-unpacked": 1.05}, "boolean"))
    monkeypatch.setattr(onnxruntime_speed, "measured", lambda: tuple(found))
    monkeypatch.setattr(onnxruntime_speed, "noise", lambda: 0.02)
    return found


def ways(**facts: object) -> list[Way]:
    return list(fastest(replace(FLOAT, **facts)))  # type: ignore[arg-type]


LAST = Way("function", False)
"""What computes as the export does."""


def test_the_nearest_shape_decides(points: Sequence[Measured]) -> None:
    short, long = {"query_length": 20, "key_length": 20}, {"query_length": 700, "key_length": 700}
    assert ways(**short) == [Way("contrib", True), Way("function", True), LAST, LAST]
    assert ways(**long) == [Way("contrib", False), Way("contrib", True), LAST, LAST]


def test_what_is_not_known_may_be_anything(points: Sequence[Measured]) -> None:
    """Unpacked is the best of the long and slower than the export of the short."""
    assert ways(query_length=None, key_length=None, batch=None)[0] == Way("contrib", True)
    assert ways(query_length=None, key_length=700) == ways(query_length=700, key_length=700)


def test_of_sizes_that_vary_such_blocks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (point(64, {"contrib": 0.7, "function": 0.9}), point(64, {"contrib": 1.1, "function": 0.95}, dynamic=True))
    monkeypatch.setattr(onnxruntime_speed, "measured", lambda: rows)
    assert ways(batch=None)[0].form == "function"
    assert ways()[0].form == "contrib"


def test_of_what_is_never_slower_the_fastest_in_the_mean_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        point(16, {"contrib": 0.7, "function": 0.9}, dynamic=True),
        point(1024, {"contrib": 1.02, "function": 1.0}, dynamic=True),
    )
    monkeypatch.setattr(onnxruntime_speed, "measured", lambda: rows)
    monkeypatch.setattr(onnxruntime_speed, "noise", lambda: 0.03)
    assert ways(query_length=None, key_length=None, batch=None)[0].form == "contrib"
    monkeypatch.setattr(onnxruntime_speed, "noise", lambda: 0.01)
    assert ways(query_length=None, key_length=None, batch=None)[0].form == "function"


def test_masks_of_varying_sizes_are_not_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(point(64, {"contrib": 0.7, "function": 0.9}, "bias", varies) for varies in (False, True))
    monkeypatch.setattr(onnxruntime_speed, "measured", lambda: rows)
    assert ways(mask="additive", mask_queries="all")[0].form == "contrib"
    assert ways(mask="additive", mask_queries="all", batch=None)[0].form == "function"


def test_nothing_is_chosen_that_was_slower_than_the_export(points: Sequence[Measured]) -> None:
    assert ways(mask="boolean") == ways(causal=True) == [LAST]


def test_other_types_were_not_measured() -> None:
    assert list(fastest(PLAIN)) == [] and list(fastest(Facts())) == []


def test_a_bias_has_a_row_for_every_query(points: Sequence[Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (point(64, {"function": 0.9}, "additive"), point(64, {"contrib": 0.9}, "bias"))
    monkeypatch.setattr(onnxruntime_speed, "measured", lambda: rows)
    assert ways(mask="additive", mask_queries="one")[0].form == "function"
    assert ways(mask="additive", mask_queries="all")[0].form == "contrib"


def test_the_data_says_where_it_is_from_and_has_every_kind_of_mask() -> None:
    assert 0 < onnxruntime_speed.noise() < 0.05
    assert set(data()["measured"]) == {"onnxruntime", "machine", "date"}
    kinds = {(each.mask, each.dynamic) for each in measured()}
    assert kinds == {(mask, dynamic) for mask in ("none", "additive", "bias", "boolean") for dynamic in (False, True)}
    assert all({ITSELF, "function", "function-unpacked"} <= set(each.ratios) for each in measured())


@pytest.mark.parametrize(
    "each", [each for each in measured() if not each.dynamic], ids=lambda each: f"{each.mask}-{each.shape}"
)
def test_for_what_was_measured_the_first_way_is_the_fastest_and_not_slower_than_the_export(each: Measured) -> None:
    queries, keys, matrices = (round(2**size) for size in each.shape)
    known = {"query_length": queries, "key_length": keys, "batch": 1, "heads": matrices}
    masks = {"additive": ("additive", "one"), "bias": ("additive", "all"), "boolean": ("boolean", "all")}
    mask, rows = masks.get(each.mask, ("none", "none"))
    first = ways(mask=mask, mask_queries=rows, **known)[0]
    ratio = each.ratios[first.form + ("" if first.pack else onnxruntime_speed.UNPACKED)]
    best = min(each.ratios[way] for way in each.ratios if way != ITSELF)
    assert ratio <= best + onnxruntime_speed.noise()  # Two blocks may be of one size.
    assert ratio <= 1.0


@pytest.mark.parametrize(("unpacked", "form"), [(0.8, "contrib"), (1.2, "function")])
def test_what_cannot_be_packed_counts_as_unpacked(unpacked: float, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"contrib": 0.7, "contrib-unpacked": unpacked, "function-unpacked": 0.98}
    rows = tuple(point(64, ratios, dynamic=varies) for varies in (False, True))
    monkeypatch.setattr(onnxruntime_speed, "measured", lambda: rows)
    result = onnx_attn.fuse(small_site(dtype=np.float32), target="onnxruntime", expect=1)
    assert ways_of(result.plan) == [(form, False)]


def test_what_is_asked_is_written() -> None:
    model = small_site(dtype=np.float32)
    for form in ("function", "contrib", "primitives"):
        assert ways_of(onnx_attn.fuse(model, target="onnxruntime", form=form).plan) == [(form, False)]
    assert ways_of(onnx_attn.fuse(small_site(dtype=np.float16), target="onnxruntime").plan) == [("function", False)]


def test_real_exports_get_the_runtimes_own_operators_and_stay_so() -> None:
    path = EXPORTS / "vit_b_16.torchscript.17.static.onnx"
    result = onnx_attn.fuse(path, target="onnxruntime", expect=2)
    assert sum(node.domain == "com.microsoft" for node in result.model.graph.node) == 2
    assert result.report["proof"]["ok"]
    again = onnx_attn.fuse(result.model, target="onnxruntime", expect=2)
    assert again.model == result.model
    unpacked = onnx_attn.fuse(path, target="onnxruntime", pack=False)
    assert not any(site["packed"] for site in unpacked.report["candidates"])


def ways_of(plan: dict[str, object]) -> list[tuple[str, bool]]:
    sites = plan["sites"]
    assert isinstance(sites, list)
    return [(site["form"], site["pack"]) for site in sites]
