"""What is no model, or a broken one: one line with the file, the place and the way out; nothing else happens."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from broken import EXTERNAL, REFUSED, UNREADABLE, Maker, custom_operator, float16_plus_float32
from commands import SMALLEST, Outcome, error_line, run_command, says_what_to_do

import onnx_attn
from onnx_attn.errors import InputError, OnnxAttnError

VERBS = ("inspect", "fuse", "verify first", "verify second")
BROKEN = {
    **UNREADABLE,
    **{k: make for k, (make, _) in REFUSED.items()},
    **{f"external {k}": m for k, m in EXTERNAL.items()},
}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def run_on(verb: str, path: Path, out: Path) -> Outcome:
    if verb == "inspect":
        return run_command("inspect", path)
    if verb == "fuse":
        return run_command("fuse", path, "-o", out / "fused.onnx")
    pair = (path, SMALLEST) if verb == "verify first" else (SMALLEST, path)
    return run_command("verify", *pair)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Maker], Path]:
    def made(maker: Maker) -> Path:
        folder = tmp_path / "given"
        folder.mkdir()
        return maker(folder)

    return made


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("verb", VERBS)
def test_broken_model_is_one_line_and_leaves_nothing(
    verb: str, kind: str, make: Callable[[Maker], Path], tmp_path: Path
) -> None:
    path = make(BROKEN[kind])
    before = contents(tmp_path)
    line = error_line(run_on(verb, path, path.parent), 1, str(path))
    assert contents(tmp_path) == before
    assert "nothing was written" not in line or verb == "fuse"


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_model_says_what_to_do(kind: str, make: Callable[[Maker], Path]) -> None:
    path = make(BROKEN[kind])
    line = error_line(run_command("inspect", path), 1, str(path))
    assert says_what_to_do(line, path), line


@pytest.mark.parametrize("kind", REFUSED)
def test_invalid_model_names_the_place(kind: str, make: Callable[[Maker], Path]) -> None:
    maker, place = REFUSED[kind]
    path = make(maker)
    assert place in error_line(run_command("inspect", path), 1, str(path)).replace(str(path), "")


@pytest.mark.parametrize("kind", ["missing", "short", "empty"])
def test_damaged_external_data_names_a_weight(kind: str, make: Callable[[Maker], Path]) -> None:
    path = make(EXTERNAL[kind])
    names = [tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer]
    line = error_line(run_command("inspect", path), 1, str(path))
    assert any(f"'{name}'" in line for name in names)


@pytest.mark.parametrize("cut", range(0, SMALLEST.stat().st_size, 17))
def test_every_truncation_is_told(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(SMALLEST.read_bytes()[:cut])
    with pytest.raises(InputError, match="export it again"):
        onnx_attn.inspect(path)


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_never_end_in_a_traceback(seed: int, tmp_path: Path) -> None:
    """Fused or refused in words, but never an exception of another kind, and never a leftover."""
    rng = random.Random(seed)
    damaged = bytearray(SMALLEST.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 4))):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    path, out = tmp_path / "damaged.onnx", tmp_path / "fused.onnx"
    path.write_bytes(damaged)
    message = None
    try:
        onnx_attn.fuse(path, out)
    except OnnxAttnError as error:
        message = str(error)
    assert out.exists() if message is None else str(path) in message and not out.exists()
    assert set(tmp_path.iterdir()) <= {path, out}
    assert path.read_bytes() == damaged


def test_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    """protobuf accepts such bytes, and hands them out only as an exception at first use."""
    model = onnx.load(SMALLEST)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.name = "QQQQQQ"
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString().replace(b"QQQQQQ", b"Q\xebQQQQ"))
    error_line(run_command("fuse", path, "-o", tmp_path / "fused.onnx"), 1, str(path))


def test_checker_alone_would_accept_the_types_that_do_not_fit() -> None:
    """What makes the case above worth its place."""
    onnx.checker.check_model(float16_plus_float32())


@pytest.mark.parametrize("verb", ["inspect", "fuse"])
def test_invalid_model_in_memory_is_an_input_error(verb: str) -> None:
    with pytest.raises(InputError, match="node_Add"):
        getattr(onnx_attn, verb)(float16_plus_float32())


def test_model_that_onnxruntime_cannot_run_is_told_with_the_way_out(tmp_path: Path) -> None:
    path, out = custom_operator(tmp_path), tmp_path / "fused.onnx"
    before = contents(tmp_path)
    line = error_line(run_command("fuse", path, "-o", out), 1, str(path), "Smudge", "--no-verify")
    assert says_what_to_do(line, path)
    assert contents(tmp_path) == before


def test_model_that_onnxruntime_cannot_run_is_fused_without_proof(tmp_path: Path) -> None:
    path, out = custom_operator(tmp_path), tmp_path / "fused.onnx"
    outcome = run_command("fuse", path, "-o", out, "--no-verify")
    assert (outcome.code, outcome.stderr) == (0, "")
    domains = [node.domain for node in onnx.load(out).graph.node]
    assert "onnx_attn" in domains
    assert "my.company" in domains


def test_model_that_onnxruntime_cannot_run_is_inspected(tmp_path: Path) -> None:
    assert run_command("inspect", custom_operator(tmp_path)).code == 0


def test_two_models_that_cannot_be_compared_are_told(tmp_path: Path) -> None:
    other = SMALLEST.parent / "no_attention.torchscript.17.static.onnx"
    line = error_line(run_command("verify", SMALLEST, other), 1, str(SMALLEST), str(other))
    assert says_what_to_do(line.replace("can be compared", "give"), other, SMALLEST)
