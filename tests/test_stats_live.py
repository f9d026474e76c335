"""FLOPs against torch's own counter, on the same models: `pytest -m live` (needs the export extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnx_attn

pytestmark = pytest.mark.live
torch = pytest.importorskip("torch")

EXACT = ("mha", "vit_b_16", "bert", "swin_t", "llama", "t5_encoder")


def counted(name: str) -> dict[str, int]:
    """What FlopCounterMode counts, by operator: mm, addmm, bmm, baddbmm, convolutions. Attention is decomposed for it: it has no
    formula for the kernels of the CPU, and counts them as nothing."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from models.quiet import fastpath_off
    from models.registry import build

    built = build(name, "tiny")
    with torch.no_grad(), fastpath_off(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        built.module.eval()(*built.args)
    return {str(operator): flops for operator, flops in counter.get_flop_counts()["Global"].items()}


def exported(name: str, opset: int, folder: Path) -> Path:
    from models.export import export

    path = folder / f"{name}.onnx"
    export(name, path, "dynamo", opset, False, False, "sdpa", "tiny")
    return path


@pytest.mark.parametrize("name", EXACT)
def test_products_are_those_of_torch(name: str, tmp_path: Path) -> None:
    expected = sum(counted(name).values())
    path = exported(name, 18, tmp_path)
    assert onnx_attn.stats(path)["flops"]["products"] == expected
    assert onnx_attn.stats(onnx_attn.fuse(path, verify=False).model)["flops"]["products"] == expected


@pytest.mark.parametrize("name", ["mha", "sdpa_gqa"])
def test_attention_operators_count_as_their_products(name: str, tmp_path: Path) -> None:
    assert onnx_attn.stats(exported(name, 23, tmp_path))["flops"]["products"] == sum(counted(name).values())


def test_parameters_are_those_of_torch(tmp_path: Path) -> None:
    from models.registry import build

    module: Any = build("vit_b_16", "tiny").module
    assert onnx_attn.stats(exported("vit_b_16", 18, tmp_path))["parameters"]["count"] == sum(
        parameter.numel() for parameter in module.parameters()
    )


def test_what_weights_alone_decide_is_apart(tmp_path: Path) -> None:
    """Swin V2 computes its position bias by an MLP on a stored table. torch counts that each time; here it is known before the
    model runs: the exporter has folded one product of each block, the others are `from_weights`."""
    flops = onnx_attn.stats(exported("swin_v2_t", 18, tmp_path))["flops"]
    of_torch = counted("swin_v2_t")
    assert flops["from_weights"] > 0
    assert sum(of_torch.values()) - flops["products"] == 2 * flops["from_weights"]
