"""Windows, grids and units of models that the references do not have, exported on the spot: `pytest -m live`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from windows import windows

import onnx_attn

pytestmark = pytest.mark.live
torch = pytest.importorskip("torch")

Made = tuple[Any, tuple[int, ...]]


def torchvision_maxvit() -> Made:
    from torchvision.models.maxvit import MaxVit

    options = {"block_channels": [16, 16], "block_layers": [1, 1], "stem_channels": 8, "head_dim": 8}
    return MaxVit(input_size=(56, 56), partition_size=7, stochastic_depth_prob=0.0, **options), (2, 3, 56, 56)


def torchvision_swin_padded() -> Made:
    from torchvision.models import SwinTransformer

    model = SwinTransformer([4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=[4, 6])
    return model, (2, 3, 40, 56)


def torchvision_swin3d() -> Made:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    model = SwinTransformer3d([2, 4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=[2, 4, 4])
    return model, (2, 3, 8, 32, 32)


def timm_swin_padded() -> Made:
    from timm.models.swin_transformer import SwinTransformer

    options = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "strict_img_size": False}
    return SwinTransformer(img_size=(40, 56), patch_size=4, window_size=4, **options), (2, 3, 40, 56)


def timm_hiera() -> Made:
    import timm

    options = {"img_size": (64, 64), "embed_dim": 16, "num_heads": 1, "stages": (1, 2, 2, 1)}
    return timm.create_model("hiera_tiny_224", **options), (2, 3, 64, 64)


def timm_sam() -> Made:
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    options = {"embed_dim": 32, "depth": 3, "num_heads": 2, "neck_chans": 16, "use_rel_pos": True}
    model = VisionTransformerSAM((80, 96), 8, window_size=4, global_attn_indexes=(2,), **options)
    return model, (2, 3, 80, 96)


def timm_pvt() -> Made:
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    options = {"depths": (1,) * 4, "embed_dims": (16, 32, 32, 64), "num_heads": (1, 2, 2, 4)}
    return PyramidVisionTransformerV2(**options), (2, 3, 64, 64)


def timm_twins() -> Made:
    from timm.models.twins import Twins

    options = {"embed_dims": (16, 32, 32, 64), "num_heads": (1, 2, 2, 4), "depths": (2,) * 4, "wss": (4, 4, 4, 2)}
    return Twins(img_size=64, patch_size=4, **options), (2, 3, 64, 64)


def of(size: list[int], grid: list[int], shift: list[int] | None = None) -> dict[str, list[int]]:
    return {"size": size, "shift": shift or [0] * len(size), "grid": grid}


FOURS, WIDE = [4, 4], [4, 6]
WANTED: dict[Callable[[], Made], list[dict[str, list[int]] | None]] = {
    torchvision_maxvit: [of([7, 7], [2, 2])] * 2 + [of([7, 7], [1, 1])] * 2,
    torchvision_swin_padded: [of(WIDE, grid, shift) for grid in ([3, 3], [2, 2]) for shift in ([0, 0], [2, 3])],
    torchvision_swin3d: [
        of([2, 4, 4], grid, shift)
        for grid, by in (([2, 2, 2], [1, 2, 2]), ([2, 1, 1], [1, 0, 0]))
        for shift in ([0, 0, 0], by)
    ],
    timm_swin_padded: [of(FOURS, grid, shift) for grid in ([3, 4], [2, 2]) for shift in ([0, 0], [2, 2])],
    # Q is pooled within the first block of each later stage, and the last two stages attend to all places.
    timm_hiera: [of([8, 8], [2, 2]), None, of(FOURS, [2, 2]), None, None, None],
    timm_sam: [of(FOURS, [3, 3])] * 2 + [None],
    timm_pvt: [None] * 4,
    timm_twins: [
        each for size, grid in ((4, 4), (4, 2), (4, 1), (2, 1)) for each in (of([size] * 2, [grid] * 2), None)
    ],
}


@pytest.mark.parametrize("make", WANTED, ids=lambda make: make.__name__)
def test_read_from_fresh_exports(make: Callable[[], Made], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model, shape = make()
    axes = {"image": {0: "batch"}, "out": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["out"], "dynamic_axes": axes}
    torch.onnx.export(model.eval(), (torch.randn(shape),), str(path), opset_version=17, dynamo=False, **names)
    assert windows(path) == WANTED[make]
    kinds = [candidate["window"] and candidate["window"]["kind"] for candidate in onnx_attn.inspect(path)["candidates"]]
    assert kinds == {
        torchvision_maxvit: ["window", "grid"] * 2,
        timm_hiera: ["unit", None, "unit", None, None, None],
    }.get(make, [wanted and "window" for wanted in WANTED[make]])


REFERENCES = {
    "nest_tiny": [of([2, 2], [4, 4]), of([2, 2], [2, 2]), of([2, 2], [1, 1])],
    # The fourth site's queries are of the whole picture.
    "gcvit_xxtiny": [of(FOURS, [4, 4]), of(FOURS, [2, 2]), of(FOURS, [1, 1]), None, of([2, 2], [1, 1])],
    "timesformer": [None] * 4,
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 17), ("dynamo", 18)])
def test_references(name: str, exporter: str, opset: int, tmp_path: Path) -> None:
    from models.export import export

    if (name, exporter) == ("nest_tiny", "dynamo"):
        pytest.skip("dynamo does not translate its attention over five axes")
    path = tmp_path / "model.onnx"
    export(name, path, exporter, opset, False, False, "sdpa", "tiny")  # type: ignore[arg-type]
    assert windows(path) == REFERENCES[name]
