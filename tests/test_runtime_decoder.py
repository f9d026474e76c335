"""A decoder as ONNX Runtime's model builder writes it: norms, rotary embeddings and caches inside its own operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import run
from graphs import Dim, Net
from onnx import TensorProto

import onnx_attn

LAYERS, N, KV, H, WIDTH, WORDS, MOST = 2, 4, 2, 16, 48, 40, 64


def decoder(
    batch: Dim, new: Dim, past: Dim, total: Dim, packed: bool = True, dtype: Any = np.float32
) -> onnx.ModelProto:
    """Token numbers, a mask and a cache for each layer in; scores of the next tokens and the caches out."""
    net = Net(21, dtype)
    ids = net.input("input_ids", batch, new, dtype=np.int64)
    seen = net.input("attention_mask", batch, total, dtype=np.int64)
    caches = [net.input(f"past.{layer}.{kind}", batch, KV, past, H) for layer in range(LAYERS) for kind in ("k", "v")]
    counts = net.op("Sub", net.op("ReduceSum", seen, net.ints(1), keepdims=0), net.ints(1))
    lengths = net.op("Cast", counts, to=TensorProto.INT32)
    longest = net.op("Gather", net.op("Shape", seen), net.const(1, np.int64), axis=0)
    longest = net.op("Cast", longest, to=TensorProto.INT32)
    angles = np.outer(np.arange(MOST), 1 / 10 ** np.linspace(0, 2, H // 2))
    tables = [net.const(np.cos(angles)), net.const(np.sin(angles))]
    x = net.op("Gather", net.weight(WORDS, WIDTH), ids, axis=0)
    normal = net.op("SimplifiedLayerNormalization", x, net.weight(WIDTH), axis=-1, epsilon=1e-5)
    for layer in range(LAYERS):
        widths = [(N + 2 * KV) * H] if packed else [N * H, KV * H, KV * H]
        wide = [net.linear(normal, size, width=WIDTH, bias=False) for size in widths] + [""] * (3 - len(widths))
        found, *presents = net.op(
            "GroupQueryAttention",
            *wide,
            *caches[2 * layer : 2 * layer + 2],
            lengths,
            longest,
            *tables,
            outputs=3,
            domain="com.microsoft",
            name=f"layer_{layer}",
            num_heads=N,
            kv_num_heads=KV,
            do_rotary=1,
        )
        for name in presents:
            net.output(name)
        for step in ("attention", "mlp"):
            found = net.linear(found, WIDTH, width=N * H if step == "attention" else WIDTH, bias=False)
            normal, _, _, x = net.op(
                "SkipSimplifiedLayerNormalization",
                x,
                found,
                net.weight(WIDTH),
                outputs=4,
                domain="com.microsoft",
                epsilon=1e-5,
            )
            net.nodes[-1].output[1] = net.nodes[-1].output[2] = ""
            found = net.op("Mul", normal, net.op("Sigmoid", normal))
    net.output(net.linear(normal, WORDS, width=WIDTH, bias=False), 3)
    return net.model(com_microsoft=1)


def greedy(model: onnx.ModelProto, prompt: np.ndarray, steps: int) -> list[list[np.ndarray]]:
    """What the model gives for the prompt and for each of the tokens that it then writes itself."""
    kinds = [value.name for value in model.graph.input][2:]
    caches = {name: np.zeros((len(prompt), KV, 0, H), np.float32) for name in kinds}
    ids, length, found = prompt, prompt.shape[1], []
    for _ in range(steps + 1):
        seen = np.ones((len(prompt), length), np.int64)
        found.append(run(model, {"input_ids": ids, "attention_mask": seen, **caches}))
        caches = dict(zip(kinds, found[-1][: 2 * LAYERS], strict=True))
        ids, length = found[-1][-1][:, -1:].argmax(-1), length + 1
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_ten_tokens_are_the_same(packed: bool) -> None:
    model = decoder("batch", "new", "past", "total", packed)
    result = onnx_attn.fuse(model, target_version="rtx", expect=LAYERS)
    assert result.report["proof"]["cases"] >= 3
    assert not any(node.domain == "com.microsoft" for node in result.model.graph.node)
    prompt = np.random.default_rng(0).integers(0, WORDS, (2, 5))
    before, after = greedy(model, prompt, 10), greedy(result.model, prompt, 10)
    for step, (one, other) in enumerate(zip(before, after, strict=True)):
        for a, b in zip(one, other, strict=True):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max(), step
        np.testing.assert_array_equal(one[-1].argmax(-1), other[-1].argmax(-1))
    assert len({int(token) for step in before for token in step[-1][:, -1].argmax(-1)}) > 3


@pytest.mark.parametrize("batch", [1, 2])
def test_its_steps_land_in_half_precision(batch: int) -> None:
    model = decoder(batch, 1, 12, 13, dtype=np.float16)
    fused = onnx_attn.fuse(model, target_version="rtx", expect=LAYERS).model
    report = onnx_attn.land(fused, baseline=model)
    assert (report["baseline"]["built"], report["built"], report["landed"]) == (False, True, LAYERS)
