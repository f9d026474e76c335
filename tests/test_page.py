"""The report as a page: what stands in it, where it may be written, and that the JSON knows nothing of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import DEMO, NO_ATTENTION, SMALLEST, error_line, run_command
from graphs import Net
from onnx import helper
from support import EXPORTS

import onnx_attn
from onnx_attn.report.html.page import page
from onnx_attn.report.html.strip import MOST_STRETCHES, Piece, stretches

REFUSED = EXPORTS / "mha_weights.dynamo.18.dynamic.onnx"
SWIN = EXPORTS / "swin_t.dynamo.18.static.half.onnx"


def fused_page(model: Path, folder: Path, *options: str) -> str:
    run_command("fuse", model, "-o", folder / "out.onnx", "--html", folder / "page.html", *options)
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", [DEMO, REFUSED, NO_ATTENTION, SMALLEST], ids=lambda path: path.name)
def test_one_file_that_asks_for_nothing_else(model: Path, tmp_path: Path) -> None:
    text = fused_page(model, tmp_path)
    assert text.lower().startswith("<!doctype html>")
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", text)
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|<link|<iframe", text)
    assert "default-src 'none'" in text


def test_json_is_the_same_with_a_page_and_without(tmp_path: Path) -> None:
    def told(*options: str | Path) -> dict[str, Any]:
        out = run_command("fuse", SWIN, "-o", tmp_path / "out.onnx", "--json", "-", *options)
        report: dict[str, Any] = json.loads(out.stdout)
        return {key: value for key, value in report.items() if key != "seconds"}

    assert told("--html", tmp_path / "page.html") == told()


def test_alike_sites_are_one_entry(tmp_path: Path) -> None:
    text = fused_page(DEMO, tmp_path)
    assert text.count('<details class="group') == 1
    assert "site-0 … site-1" in text
    assert text.count("<svg") == 2


def test_sites_of_other_sizes_are_entries_of_their_own(tmp_path: Path) -> None:
    net = Net()
    for keys in (5, 5, 7):
        sizes = {"query": (5, 24), "key_transposed": (24, keys), "value": (keys, 24)}
        inputs = [net.input(f"{name}_{len(net.inputs)}", 2, 2, *each) for name, each in sizes.items()]
        net.output(net.sdpa(*inputs))
    onnx_attn.fuse(net.model(), verify=False, html=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count('<details class="group') == 2
    assert "2×2×24×7 float32" in text


def test_pages_of_one_report_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = (re.sub(r"<footer.*</footer>", "", fused_page(SWIN, tmp_path)) for _ in range(2))
    assert first == second


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    text = fused_page(REFUSED, tmp_path)
    assert "probabilities-used" in text
    assert "--allow-recompute" in text
    assert 'class="node movement marked"' in text


def test_inspection_and_landing_have_pages(tmp_path: Path) -> None:
    onnx_attn.inspect(REFUSED, html=tmp_path / "inspect.html")
    assert "probabilities-used" in (tmp_path / "inspect.html").read_text(encoding="utf-8")
    report = onnx_attn.land(SWIN, html=tmp_path / "land.html")
    text = (tmp_path / "land.html").read_text(encoding="utf-8")
    assert "drawing" not in report["per_site"][0]
    assert f"{report['landed']} of 2 sites on attention kernels" in text
    assert text.count('<i class="attention"') == report["landed"] + 1  # One is the legend's.


def test_what_was_fused_is_landed_in_one_command(tmp_path: Path) -> None:
    report = onnx_attn.fuse(SWIN, tmp_path / "out.onnx", land=True, html=tmp_path / "page.html", verify=False).report
    landed = report["land"]
    assert landed["landed"] == 2
    assert landed["kernels"] < landed["baseline"]["kernels"]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "2 of 2 sites on attention kernels" in text
    assert f"{landed['baseline']['kernels']} → <b>{landed['kernels']}</b>" in text
    assert "was not run" in text


def test_sites_in_bodies_are_drawn(tmp_path: Path) -> None:
    net = Net()
    query, key_transposed, value = (net.input(name, 2, 2, *sizes) for name, sizes in SIZES.items())
    inside, no = Net(), helper.make_node("Neg", [value], ["no"])
    yes = inside.sdpa(query, key_transposed, value)
    made = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2, 5, 24]) for name in (yes, "no")]
    branches = [
        helper.make_graph(nodes, "branch", [], [result])
        for nodes, result in zip((inside.nodes, [no]), made, strict=True)
    ]
    flag = net.input("flag", dtype=bool)
    net.weights += inside.weights
    net.output(net.op("If", flag, then_branch=branches[0], else_branch=branches[1]))
    report = onnx_attn.fuse(net.model(), html=tmp_path / "page.html").report
    assert report["fused"] == 1
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg") == 2


SIZES = {"query": (5, 24), "key_transposed": (24, 5), "value": (5, 24)}


def test_a_report_without_drawings_is_a_page_too() -> None:
    assert "1 attention site" in page(onnx_attn.inspect(SMALLEST))


def test_what_is_compiled_is_told_and_not_what_was_expected(tmp_path: Path) -> None:
    """A float32 site that lands by its kernel for one query, and one whose weights are computed once more."""
    onnx_attn.fuse(REFUSED, tmp_path / "o.onnx", verify=False, land=True, precision="fp16", html=tmp_path / "page.html",
                   allow_recompute=True, shapes={"x": (2, 16, 96)})  # fmt: skip
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Will reach no attention kernel" not in text
    assert 'data-tags="fused|landed"' in text


def test_nothing_is_written_where_shapes_are_missing(tmp_path: Path) -> None:
    with pytest.raises(onnx_attn.UsageError, match="such as --shapes"):
        onnx_attn.fuse(REFUSED, tmp_path / "o.onnx", land=True, html=tmp_path / "page.html")
    with pytest.raises(onnx_attn.UsageError, match="land the result by itself"):
        onnx_attn.fuse(REFUSED, tmp_path / "o.onnx", land=True, dynamic_batch=True)
    assert not any(tmp_path.iterdir())


def test_land_is_for_tensorrt(tmp_path: Path) -> None:
    error_line(
        run_command("fuse", SMALLEST, "-o", tmp_path / "o.onnx", "--target", "onnx", "--land"), 2, "leave them out"
    )


@pytest.mark.parametrize("command", ["inspect", "fuse", "land"])
def test_a_page_takes_no_model_s_place(command: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(SMALLEST.read_bytes())
    out = ["-o", tmp_path / "out.onnx"] if command == "fuse" else []
    error_line(run_command(command, model, *out, "--html", model), 2, "a name of its own")
    (tmp_path / "notes.txt").write_text("notes")
    error_line(run_command(command, model, *out, "--html", tmp_path / "notes.txt"), 2, "would be lost")
    error_line(run_command(command, model, *out, "--html", tmp_path / "no" / "page.html"), 1, "folder that exists")
    error_line(run_command(command, model, *out, "--html", tmp_path), 1, "folder that exists")
    assert model.read_bytes() == SMALLEST.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "notes.txt"]


def test_a_page_and_a_report_are_two_files(tmp_path: Path) -> None:
    same = tmp_path / "page.html"
    error_line(run_command("inspect", SMALLEST, "--html", same, "--json", same), 2, "name of its own")
    out = tmp_path / "out.onnx"
    error_line(run_command("fuse", SMALLEST, "-o", out, "--html", out), 2, "name of its own")
    assert not any(tmp_path.iterdir())


def test_a_page_is_written_over_a_page(tmp_path: Path) -> None:
    assert fused_page(SMALLEST, tmp_path).lower() != ""
    assert "1 of 1 attention site" in fused_page(SMALLEST, tmp_path)


def test_a_long_strip_keeps_what_has_a_link() -> None:
    pieces = [
        Piece(1, "attention" if number % 97 == 0 else "other", "", "#" * (number % 97 == 0)) for number in range(20_000)
    ]
    found = stretches(pieces, 20_000)
    linked = len(range(0, 20_000, 97))
    assert sum(bool(each["link"]) for each in found) == linked
    assert len(found) <= MOST_STRETCHES + 2 * linked
    assert sum(float(str(each["width"])) for each in found) == pytest.approx(100, abs=0.1)
