"""Builders of torchvision's Swin Transformers: attention within windows, every second block's windows shifted.

The first has a table of relative position biases and one scale, the second a small network that makes the biases,
normalised Q and K, and a learned scale a head.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.inputs import normal
from models.reference import BATCH, TINY_HEAD, TINY_INNER, Axes, Built, Setting

_BATCH: Axes = {0: BATCH}
_TINY_EDGE = 16
_TINY_PATCH = 2
_TINY_WINDOW = 4
"""8 × 8 patches make 2 × 2 windows: the second block shifts by 2, which a single window would not."""
_TINY_HEADS = 2
"""Fewer than the other references have: a stage is two blocks, and the files stay small."""


def _tiny(block: Callable[..., nn.Module]) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    width = _TINY_HEADS * TINY_HEAD
    return SwinTransformer(
        patch_size=[_TINY_PATCH] * 2,
        embed_dim=width,
        depths=[2],
        num_heads=[_TINY_HEADS],
        window_size=[_TINY_WINDOW] * 2,
        mlp_ratio=TINY_INNER / width,
        num_classes=10,
        block=block,
    )


def _built(module: nn.Module, setting: Setting, full_edge: int = 224) -> Built:
    edge = _TINY_EDGE if setting.tiny else full_edge
    return Built(module, (normal(setting.images, 3, edge, edge),), ["image"], ["logits"], [_BATCH], [_BATCH])


def swin_t(setting: Setting) -> Built:
    """torchvision's Swin-T: windows of 7 × 7, which divide every stage's edge."""
    from torchvision.models import swin_t as full
    from torchvision.models.swin_transformer import SwinTransformerBlock

    return _built(_tiny(SwinTransformerBlock) if setting.tiny else full(weights=None), setting)


def swin_v2_t(setting: Setting, full_edge: int = 224) -> Built:
    """torchvision's Swin-V2-T: windows of 8 × 8, which divide every stage's edge at 256 × 256 and not at 224 × 224.

    Padded keys are zero (there is no bias on K), and in half precision their norm's floor of 1e-12 is zero too: at
    224 × 224 the half model of torch itself returns NaN.
    """
    from torchvision.models import swin_v2_t as full
    from torchvision.models.swin_transformer import SwinTransformerBlockV2

    module = _tiny(SwinTransformerBlockV2) if setting.tiny else full(weights=None)
    return _built(module, setting, full_edge)
