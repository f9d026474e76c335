"""Builders of nn.MultiheadAttention in its spellings, and of torch's own transformer layers around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.inputs import blocked_keys, causal_scores, normal
from models.modules import TextCrossAttention
from models.reference import BATCH, SEQUENCE, TINY_HEADS, TINY_INNER, TINY_WIDTH, Axes, Built, Setting

_SEQUENCES = 2
MEMORY = "memory"
"""The varying length of what is attended to."""


def _width(setting: Setting) -> tuple[int, int]:
    """Embedding width and heads."""
    return (TINY_WIDTH, TINY_HEADS) if setting.tiny else (256, 8)


class Multihead(nn.Module):
    """nn.MultiheadAttention with one thing more: a mask by its keyword, or another source of keys and values."""

    def __init__(self, attention: nn.MultiheadAttention, other: str = "", per_head: bool = False):
        super().__init__()
        self.attention = attention
        self.other = other
        self.per_head = per_head

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The attention output, and the weights of every head where these are kept."""
        memory = other if self.other == MEMORY else x
        masks = {self.other: other} if self.other not in ("", MEMORY) else {}
        output, weights = self.attention(
            x, memory, memory, need_weights=self.per_head, average_attn_weights=False, **masks
        )
        return (output, weights) if self.per_head else output


class TwoSources(nn.Module):
    """nn.MultiheadAttention whose keys and values have widths and sources of their own."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention output."""
        return self.attention(x, key, value, need_weights=False)[0]


def _sources(setting: Setting, width: int) -> tuple[list[Tensor], list[Axes]]:
    return [normal(_SEQUENCES, setting.length, width)], [{0: BATCH, 1: SEQUENCE}]


def mha_self(
    setting: Setting,
    mask: str = "",
    zero_attn: bool = False,
    bias_kv: bool = False,
    per_head: bool = False,
) -> Built:
    """Self-attention, batch first: `mask` is "float", "bool" (True blocks), "padding" or "" for none."""
    width, heads = _width(setting)
    attention = nn.MultiheadAttention(width, heads, batch_first=True, add_zero_attn=zero_attn, add_bias_kv=bias_kv)
    args, axes = _sources(setting, width)
    names, outputs, made = ["x"], ["output"], [dict(axes[0])]
    keyword = {"float": "attn_mask", "bool": "attn_mask", "padding": "key_padding_mask", "": ""}[mask]
    if mask:
        names.append("mask")
    if mask == "padding":
        args.append(blocked_keys(_SEQUENCES, setting.length))
        axes.append({0: BATCH, 1: SEQUENCE})
    elif mask:
        scores = causal_scores(setting.length)
        args.append(scores if mask == "float" else scores < 0)
        axes.append({0: SEQUENCE, 1: SEQUENCE})
    if per_head:
        outputs.append("weights")
        made.append({0: BATCH, 2: SEQUENCE, 3: SEQUENCE})
    module = Multihead(attention, keyword, per_head=per_head)
    return Built(module, tuple(args), names, outputs, axes, made)


def mha_cross(setting: Setting) -> Built:
    """Cross-attention of equal widths: three slices of one weight."""
    width, heads = _width(setting)
    args, axes = _sources(setting, width)
    args.append(normal(_SEQUENCES, setting.length + 8, width, seed=1))
    axes.append({0: BATCH, 1: MEMORY})
    module = Multihead(nn.MultiheadAttention(width, heads, batch_first=True), MEMORY)
    return Built(module, tuple(args), ["x", "memory"], ["output"], axes, [axes[0]])


def mha_kdim(setting: Setting) -> Built:
    """Cross-attention with kdim and vdim: three weights of their own."""
    width, heads = _width(setting)
    args, axes = _sources(setting, width)
    for seed, other in ((1, width // 2), (2, width // 4)):
        args.append(normal(_SEQUENCES, setting.length + 8, other, seed=seed))
        axes.append({0: BATCH, 1: MEMORY})
    attention = nn.MultiheadAttention(width, heads, kdim=width // 2, vdim=width // 4, batch_first=True)
    return Built(TwoSources(attention), tuple(args), ["x", "key", "value"], ["output"], axes, [axes[0]])


def text_cross(setting: Setting) -> Built:
    """Cross-attention of diffusers' UNets: 8 × 8 places of a picture and the 77 tokens of a text, or fewer of both."""
    width, heads = (TINY_WIDTH, TINY_HEADS) if setting.tiny else (1280, 8)
    text, places, tokens = (64, 16, 11) if setting.tiny else (768, 64, 77)
    args = normal(_SEQUENCES, places, width), normal(_SEQUENCES, tokens, text, seed=1)
    axes: list[Axes] = [{0: BATCH, 1: SEQUENCE}, {0: BATCH, 1: MEMORY}]
    return Built(TextCrossAttention(width, text, heads), args, ["x", "text"], ["output"], axes, [axes[0]])


@contextmanager
def _slow_path() -> Iterator[None]:
    """Without torch's fused layers, which no exporter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer on one sequence."""

    def __init__(self, layer: nn.TransformerEncoderLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes."""
        with _slow_path():
            return self.layer(x)


class DecoderLayer(nn.Module):
    """nn.TransformerDecoderLayer on a sequence, what it attends to, and a mask for the sequence itself."""

    def __init__(self, layer: nn.TransformerDecoderLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """What the layer makes."""
        with _slow_path():
            return self.layer(x, memory, tgt_mask=mask)


def encoder_layer(setting: Setting, norm_first: bool = False) -> Built:
    """nn.TransformerEncoderLayer; with `norm_first` GELU too."""
    width, heads = _width(setting)
    layer = nn.TransformerEncoderLayer(
        width,
        heads,
        TINY_INNER if setting.tiny else 4 * width,
        dropout=0.0,
        activation="gelu" if norm_first else "relu",
        batch_first=True,
        norm_first=norm_first,
    )
    args, axes = _sources(setting, width)
    return Built(EncoderLayer(layer), tuple(args), ["x"], ["output"], axes, axes)


def decoder_layer(setting: Setting, norm_first: bool = False) -> Built:
    """nn.TransformerDecoderLayer: self-attention under a causal mask, and cross-attention."""
    width, heads = _width(setting)
    inner = TINY_INNER if setting.tiny else 4 * width
    layer = nn.TransformerDecoderLayer(width, heads, inner, dropout=0.0, batch_first=True, norm_first=norm_first)
    args, axes = _sources(setting, width)
    args += [normal(_SEQUENCES, setting.length + 8, width, seed=1), causal_scores(setting.length)]
    axes += [{0: BATCH, 1: MEMORY}, {0: SEQUENCE, 1: SEQUENCE}]
    return Built(DecoderLayer(layer), tuple(args), ["x", "memory", "mask"], ["output"], axes, [axes[0]])
