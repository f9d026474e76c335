"""timm's image models, by name, and a small variant of each that keeps the family's own attention.

The small variants are the library's classes with narrow widths and few blocks: what an exporter makes of a block does not
depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from models.inputs import normal
from models.reference import BATCH, TINY_HEAD, TINY_HEADS, TINY_WIDTH, Axes, Built, Setting

_BATCH: Axes = {0: BATCH}
Options = dict[str, Any]

_VIT: Options = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": TINY_WIDTH,
    "depth": 2,
    "num_heads": TINY_HEADS,
    "mlp_ratio": 0.5,
}
_ROTARY: Options = {"use_abs_pos_emb": False, "use_rot_pos_emb": True}
_SWIN: Options = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 2 * TINY_HEAD,
    "depths": (2,),
    "num_heads": (2,),
}

Tiny = tuple[str, int, Options]
"""The class within timm.models, the edge of the images, the options."""

TINY: dict[str, Tiny] = {
    "beit_base_patch16_224": (
        "beit.Beit",
        16,
        _VIT | {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1},
    ),
    "eva02_small_patch14_224": ("eva.Eva", 16, _VIT | _ROTARY | {"swiglu_mlp": True, "scale_mlp": True}),
    "vit_small_patch16_dinov3": (
        "eva.Eva",
        16,
        _VIT | _ROTARY | {"rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 2, "no_embed_class": True},
    ),
    "swin_tiny_patch4_window7_224": ("swin_transformer.SwinTransformer", 32, _SWIN),
    "swinv2_tiny_window8_256": ("swin_transformer_v2.SwinTransformerV2", 32, _SWIN),
    "coat_lite_mini": (
        "coat.CoaT",
        64,
        {"img_size": 64, "patch_size": 4, "embed_dims": (64,) * 4, "serial_depths": (1,) * 4, "mlp_ratios": (0.5,) * 4},
    ),
    "crossvit_9_240": (
        "crossvit.CrossVit",
        120,
        {
            "img_size": 120,
            "img_scale": (1.0, 224 / 240),
            "patch_size": (12, 16),
            "embed_dim": (24, 48),
            "depth": ((1, 2, 0),),
            "num_heads": (2, 2),
            "mlp_ratio": (1, 1, 1),
        },
    ),
    "edgenext_small": (
        "edgenext.EdgeNeXt",
        64,
        {
            "dims": (16, 24, 48, 96),
            "depths": (1, 2, 2, 2),
            "global_block_counts": (0, 1, 1, 1),
            "heads": (4, 4, 4, 4),
            "d2_scales": (2, 2, 3, 4),
            "expand_ratio": 1,
        },
    ),
    "gcvit_xxtiny": (
        "gcvit.GlobalContextVit",
        64,
        {
            "img_size": 64,
            "window_ratio": (16, 16, 16, 32),
            "embed_dim": 12,
            "depths": (1, 1, 2, 1),
            "num_heads": (1, 2, 4, 8),
            "mlp_ratio": 1.0,
        },
    ),
    "davit_tiny": (
        "davit.DaVit",
        64,
        {"depths": (1, 1), "embed_dims": (24, 48), "num_heads": (2, 4), "window_size": 4, "mlp_ratio": 1.0},
    ),
    "nest_tiny": (
        "nest.Nest",
        32,
        {"img_size": 32, "embed_dims": (24, 48, 96), "num_heads": (1, 2, 4), "depths": (1, 1, 1), "mlp_ratio": 0.5},
    ),
    "tnt_s_patch16_224": (
        "tnt.TNT",
        32,
        {"img_size": 32, "embed_dim": 48, "inner_dim": 12, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 2},
    ),
    "visformer_tiny": (
        "visformer.Visformer",
        64,
        {
            "img_size": 64,
            "embed_dim": 48,
            "init_channels": 8,
            "num_heads": 2,
            "depth": (1, 1, 2),
            "mlp_ratio": 1.0,
            "attn_stage": "011",
            "spatial_conv": "100",
        },
    ),
    "volo_d1_224": (
        "volo.VOLO",
        32,
        {
            "img_size": 32,
            "layers": (1, 1, 1),
            "embed_dims": (24, 48, 48),
            "num_heads": (1, 2, 2),
            "stem_hidden_dim": 8,
            "mlp_ratio": 1.0,
            "outlook_attention": (True, False, False),
            "downsamples": (True, False, False),
        },
    ),
    "mixer_b16_224": ("mlp_mixer.MlpMixer", 32, {"img_size": 32, "patch_size": 16, "embed_dim": 48, "num_blocks": 2}),
    "poolformer_s12": ("metaformer.MetaFormer", 64, {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}),
    "fastvit_t8": (
        "fastvit.FastVit",
        64,
        {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "mlp_ratios": (1,) * 4, "cls_ratio": 1.0},
    ),
}


def timm_built(module: nn.Module, setting: Setting, edge: int) -> Built:
    """A timm module with its choice of attention, called with images."""
    choose_attention(module, setting)
    return Built(module, (normal(setting.images, 3, edge, edge),), ["image"], ["logits"], [_BATCH], [_BATCH])


def choose_attention(module: nn.Module, setting: Setting) -> None:
    """timm's blocks decide by an attribute whether they call the operator or plain products."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = setting.attn == "sdpa"


def timm_model(name: str, full_edge: int = 224) -> Callable[[Setting], Built]:
    """The builder of a timm model."""

    def build(setting: Setting) -> Built:
        import timm

        module_name, edge, options = TINY[name]
        if setting.tiny:
            file, _, kind = module_name.partition(".")
            module = getattr(import_module(f"timm.models.{file}"), kind)(num_classes=10, **options)
        else:
            edge = full_edge
            module = timm.create_model(name, pretrained=False)
        return timm_built(module, setting, edge)

    return build


def vit_qk_norm(setting: Setting) -> Built:
    """A ViT that normalises Q and K of every head by a LayerNorm."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = _VIT if setting.tiny else {"embed_dim": 384, "depth": 12, "num_heads": 6}
    module = VisionTransformer(qk_norm=True, num_classes=10, **sizes)
    return timm_built(module, setting, 16 if setting.tiny else 224)
