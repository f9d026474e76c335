"""Ten tokens by decoders as they were exported and as they are fused, each with caches of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import exports

import onnx_attn
from models.decoding import compare

LOOPS = {
    "gpt2": ("gpt2_prefill.*.dynamic.*", "gpt2_decode.*.dynamic.*"),
    "t5": ("t5_decoder_first.*.dynamic.*", "t5_decoder_step.*.dynamic.*"),
    "llama_static": ("llama_static.*",),
}


def files(name: str) -> list[Path]:
    return [export.path for pattern in LOOPS[name] for export in exports(pattern)]


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("name", LOOPS)
def test_fused_decoders_say_the_same(name: str, form: str, tmp_path: Path) -> None:
    originals = files(name)
    fused = [tmp_path / path.name for path in originals]
    for path, result in zip(originals, fused, strict=True):
        onnx_attn.fuse(path, result, form=form)
    outcome = compare((originals[0], originals[-1]), (fused[0], fused[-1]))
    assert outcome.ok, outcome
    assert all(len(set(row)) == 11 for row in outcome.tokens.tolist())


@pytest.mark.parametrize("name", LOOPS)
def test_a_cache_that_holds_something_else_shows(name: str, tmp_path: Path) -> None:
    """The largest matrix of the step is off by a thousandth."""
    originals = files(name)
    model = onnx.load(originals[-1])
    weight = max(model.graph.initializer, key=lambda tensor: numpy_helper.to_array(tensor).size)
    value = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(value * np.float32(1.001), weight.name))
    others = [*originals[:-1], tmp_path / "other.onnx"]
    onnx.save(model, others[-1])
    assert not compare((originals[0], originals[-1]), (others[0], others[-1])).ok
