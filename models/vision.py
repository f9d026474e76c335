"""Builders of the image models: torchvision, timm and the image tower of CLIP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.inputs import normal
from models.reference import BATCH, TINY_HEADS, TINY_INNER, TINY_WIDTH, Axes, Built, Setting
from models.timm_vision import choose_attention

_BATCH: Axes = {0: BATCH}
_TINY_EDGE = 16
_TINY_PATCH = 4


def _edge(setting: Setting) -> int:
    return _TINY_EDGE if setting.tiny else 224


def _image(setting: Setting) -> tuple[Tensor]:
    return (normal(setting.images, 3, _edge(setting), _edge(setting)),)


def vit_b_16(setting: Setting) -> Built:
    """torchvision's ViT-B/16: nn.MultiheadAttention, batch first, called with need_weights=False."""
    from torchvision.models import VisionTransformer
    from torchvision.models import vit_b_16 as full

    if setting.tiny:
        module: nn.Module = VisionTransformer(
            image_size=_TINY_EDGE,
            patch_size=_TINY_PATCH,
            num_layers=2,
            num_heads=TINY_HEADS,
            hidden_dim=TINY_WIDTH,
            mlp_dim=TINY_INNER,
            num_classes=10,
        )
    else:
        module = full(weights=None)
    return Built(module, _image(setting), ["image"], ["logits"], [_BATCH], [_BATCH])


def vit_small_patch16_224(setting: Setting) -> Built:
    """timm's ViT-S/16: one fused QKV projection, and either the operator or plain MatMul and Softmax."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if setting.tiny:
        module: nn.Module = VisionTransformer(
            img_size=_TINY_EDGE,
            patch_size=_TINY_PATCH,
            embed_dim=TINY_WIDTH,
            depth=2,
            num_heads=TINY_HEADS,
            mlp_ratio=TINY_INNER / TINY_WIDTH,
            num_classes=10,
        )
    else:
        module = timm.create_model("vit_small_patch16_224", pretrained=False)
    choose_attention(module, setting)
    return Built(module, _image(setting), ["image"], ["logits"], [_BATCH], [_BATCH])


def deit_tiny_distilled(setting: Setting) -> Built:
    """timm's DeiT-Ti/16 distilled: a class token and a distillation token, two heads on top."""
    import timm
    from timm.models.deit import VisionTransformerDistilled

    if setting.tiny:
        module: nn.Module = VisionTransformerDistilled(
            img_size=_TINY_EDGE,
            patch_size=_TINY_PATCH,
            embed_dim=TINY_WIDTH,
            depth=2,
            num_heads=TINY_HEADS,
            mlp_ratio=TINY_INNER / TINY_WIDTH,
            num_classes=10,
        )
    else:
        module = timm.create_model("deit_tiny_distilled_patch16_224", pretrained=False)
    choose_attention(module, setting)
    return Built(module, _image(setting), ["image"], ["logits"], [_BATCH], [_BATCH])


def resnet50(setting: Setting) -> Built:
    """torchvision's ResNet-50, or two blocks of it: convolutions alone."""
    from torchvision.models.resnet import Bottleneck, ResNet

    layers, width = ([1, 1, 1, 1], 8) if setting.tiny else ([3, 4, 6, 3], 64)
    module = ResNet(Bottleneck, layers, num_classes=10, width_per_group=width)
    edge = 32 if setting.tiny else 224
    return Built(module, (normal(setting.images, 3, edge, edge),), ["image"], ["logits"], [_BATCH], [_BATCH])


def convnext_tiny(setting: Setting) -> Built:
    """torchvision's ConvNeXt-T: depthwise convolutions, layer norms, layer scales."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    tiny = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    full = [CNBlockConfig(w, n, d) for w, n, d in ((96, 192, 3), (192, 384, 3), (384, 768, 9), (768, None, 3))]
    module = ConvNeXt(tiny if setting.tiny else full, num_classes=10)
    edge = 32 if setting.tiny else 224
    return Built(module, (normal(setting.images, 3, edge, edge),), ["image"], ["logits"], [_BATCH], [_BATCH])


class ImageTower(nn.Module):
    """CLIP's image tower, from pixels to a plain pair of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The last hidden state and the pooled output."""
        output = self.model(pixel_values)
        return output.last_hidden_state, output.pooler_output


def clip_vision(setting: Setting) -> Built:
    """transformers' CLIPVisionModel: two layers, at the widths of ViT-B/32 in full size."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tiny = (TINY_WIDTH, TINY_HEADS, TINY_INNER, _TINY_PATCH)
    width, heads, inner, patch = tiny if setting.tiny else (768, 12, 3072, 32)
    options: dict[str, Any] = {"attn_implementation": setting.attn}
    config = CLIPVisionConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner,
        num_hidden_layers=2,
        image_size=_edge(setting),
        patch_size=patch,
        **options,
    )
    names = ["last_hidden_state", "pooler_output"]
    module = ImageTower(CLIPVisionModel(config))
    return Built(module, _image(setting), ["pixel_values"], names, [_BATCH], [_BATCH, _BATCH])
