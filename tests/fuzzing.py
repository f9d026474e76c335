"""One hostile example after the other: made from a seed, given to the library, and what came of it judged."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from checks import assert_same, run
from hostile import CHANGES, SOFT, Change, spoiled_bytes, start
from near_edits import EDITS
from onnx import helper

import onnx_attn
from onnx_attn import DifferenceError, OnnxAttnError
from onnx_attn.graph.load import check, load

Stage = Callable[[str], None]
LOOSE = 2e-3
"""What a change makes of scales and weights may cancel: a difference in meaning is larger than this."""


def example(seed: int, changes: list[Change] | None = None) -> onnx.ModelProto | bytes:
    """A model in memory, or a file's bytes."""
    rng = random.Random(seed)
    model = start(rng)
    drawn = CHANGES if rng.random() < 0.4 else SOFT
    change_all(model, changes or [rng.choice(drawn) for _ in range(rng.choice((1, 1, 1, 2, 3, 5)))], rng)
    data = model.SerializeToString()
    if rng.random() < 0.05:
        return spoiled_bytes(data, rng)
    return model if rng.random() < 0.3 else data


def near_example(seed: int, models: Sequence[Path]) -> onnx.ModelProto:
    """One of the models, with one small edit or a few."""
    rng = random.Random(seed)
    model = onnx.load(rng.choice(models), load_external_data=False)
    change_all(model, (rng.choice(EDITS) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))), rng)
    return model


def change_all(model: onnx.ModelProto, changes: Iterable[Change], rng: random.Random) -> None:
    """One change after the other, but for those that do not fit."""
    for change in changes:
        if model.graph.node:
            try:
                change(model, rng)
            except (ValueError, TypeError, KeyError):
                pass  # protobuf or onnx's helpers would not write such a thing.


def judge(given: onnx.ModelProto | bytes, seed: int, stage: Stage = lambda name: None) -> str:
    """What came of it, in a word. Raises whatever should not have happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.onnx"
        path.write_bytes(given if isinstance(given, bytes) else given.SerializeToString())
        source = path if isinstance(given, bytes) else given
        stage("inspect")
        report = _said(lambda: onnx_attn.inspect(source))
        if isinstance(report, OnnxAttnError):
            stage("fuse refused")
            again = _said(lambda: onnx_attn.fuse(source, verify=False))
            assert isinstance(again, OnnxAttnError), "inspect refuses what fuse takes"
            return "refused"
        before = load(path).proto if isinstance(given, bytes) else given
        assert {each["status"] for each in report["candidates"]} <= {"site", "refused", "not_attention"}
        return _changed(source, before, seed, stage)


def _changed(source: Path | onnx.ModelProto, before: onnx.ModelProto, seed: int, stage: Stage) -> str:
    rng, words = random.Random(seed), []
    ways: dict[str, Callable[[], Any]] = {
        "fuse": lambda: onnx_attn.fuse(source, verify=False, form=rng.choice(["auto", "primitives", "attention"])),
        "fuse for ONNX Runtime": lambda: onnx_attn.fuse(source, verify=False, target="onnxruntime"),
        "expand": lambda: onnx_attn.expand(source, verify=False),
        "fuse, proved": lambda: onnx_attn.fuse(source),
        "stats": lambda: onnx_attn.stats(source),
    }
    others = [name for name in ways if name != "fuse"]
    for name in ("fuse", *rng.sample(others, 1)):
        stage(name)
        result = _said(ways[name])
        if isinstance(result, OnnxAttnError):
            words.append("refused")
        if isinstance(result, OnnxAttnError | dict):
            continue
        stage(f"{name}: check")
        after = result.model
        check(after, "after")
        words.append(_compared(before, after, seed, lambda word, name=name: stage(f"{name}: {word}")))
    return words[0]


def _said(call: Callable[[], Any]) -> Any:
    """What a call gives, or what it refuses in one line."""
    try:
        return call()
    except OnnxAttnError as error:
        said = error
    rounding = re.search(r"max_rel ([\d.e+-]+) >", str(said))  # Rounding that a later node makes larger: 1/x, x² …
    amplified = isinstance(said, DifferenceError) and rounding is not None and float(rounding[1]) < 5 * LOOSE
    assert str(said).strip() and "\n" not in str(said) and (amplified or "report this" not in str(said)), str(said)
    return said


def _compared(before: onnx.ModelProto, after: onnx.ModelProto, seed: int, stage: Stage) -> str:
    if before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True):
        return "unchanged"
    stage("ONNX Runtime runs the original")
    try:
        inputs = values(before, seed)
        first, again = run(before, inputs), run(before, inputs)
    except Exception:  # onnxruntime raises classes of its own making
        return "cannot run"
    if any(not np.isfinite(each).all() for each in first if each.dtype.kind == "f"):
        return "not finite"
    if any((one != other).any() for one, other in zip(first, again, strict=True)):
        return "random"
    stage("ONNX Runtime runs the result")
    assert_same(before, after, inputs, LOOSE)
    return "same"


def values(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    """Random inputs of a few elements; ValueError where there are none."""
    rng, weights = np.random.default_rng(seed), {tensor.name for tensor in model.graph.initializer}
    made = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        dims = [
            d.dim_value or {"batch": 2, "sequence": 5}.get(d.dim_param, 3) for d in value.type.tensor_type.shape.dim
        ]
        if any(dim < 0 for dim in dims) or np.prod([float(dim) for dim in dims]) > 1e6:
            raise ValueError(value.name)
        if not value.type.tensor_type.elem_type:
            raise ValueError(f"{value.name}: of no known type")
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        numbers = rng.random(dims) < 0.7 if dtype == np.bool_ else rng.standard_normal(dims)
        made[value.name] = np.asarray(numbers).astype(dtype)
    return made
