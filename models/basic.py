"""Builders of the references that are one module each."""

from __future__ import annotations

from torch import Tensor, nn

from models.inputs import additive_padding, additive_scores, allowed_scores, normal
from models.modules import (
    ConvClassifier,
    GroupedBlock,
    GroupedScaledDotProduct,
    Handwritten,
    HandwrittenPlain,
    MaskedScaledDotProduct,
    ScaledDotProduct,
    SelfAttention,
    WeightedSelfAttention,
)
from models.reference import BATCH, SEQUENCE, TINY_HEAD, TINY_HEADS, TINY_WIDTH, Axes, Built, Setting

_SEQUENCES = 2


def _width(setting: Setting) -> tuple[int, int]:
    """Embedding width and heads."""
    return (TINY_WIDTH, TINY_HEADS) if setting.tiny else (256, 8)


def _one_source(module: nn.Module, setting: Setting, batch_first: bool = True) -> Built:
    """A module from one sequence to one of the same shape."""
    width, _ = _width(setting)
    shape = (_SEQUENCES, setting.length) if batch_first else (setting.length, _SEQUENCES)
    axes: Axes = {0: BATCH, 1: SEQUENCE} if batch_first else {0: SEQUENCE, 1: BATCH}
    return Built(module, (normal(*shape, width),), ["x"], ["output"], [axes], [axes])


def mha(setting: Setting, batch_first: bool = True, bias: bool = True, averaged: bool = False) -> Built:
    """nn.MultiheadAttention whose output alone is used."""
    width, heads = _width(setting)
    return _one_source(SelfAttention(width, heads, batch_first, bias, averaged), setting, batch_first)


def mha_weights(setting: Setting) -> Built:
    """nn.MultiheadAttention whose averaged weights are a second output."""
    built = _one_source(WeightedSelfAttention(*_width(setting)), setting)
    weights: Axes = {0: BATCH, 1: SEQUENCE, 2: SEQUENCE}
    names = [*built.output_names, "weights"]
    return Built(built.module, built.args, ["x"], names, built.input_axes, [*built.output_axes, weights])


def sdpa(
    setting: Setting,
    scale: float | None = None,
    causal: bool = False,
    prescaled: bool = False,
    mask: bool = False,
) -> Built:
    """F.scaled_dot_product_attention on q, k, v, and a mask if asked for."""
    heads, size = (TINY_HEADS, TINY_HEAD) if setting.tiny else (8, 64)
    shape = (_SEQUENCES, heads, setting.length, size)
    axes: Axes = {0: BATCH, 2: SEQUENCE}
    args: tuple[Tensor, ...] = tuple(normal(*shape, seed=seed) for seed in range(3))
    if not mask:
        module = ScaledDotProduct(scale, causal, prescaled)
        return Built(module, args, ["q", "k", "v"], ["output"], [axes] * 3, [axes])
    args = (*args, additive_scores(_SEQUENCES, setting.length, seed=3))
    every: list[Axes] = [axes, axes, axes, {0: BATCH, 2: SEQUENCE, 3: SEQUENCE}]
    return Built(MaskedScaledDotProduct(), args, ["q", "k", "v", "mask"], ["output"], every, [axes])


def sdpa_mask_bool(setting: Setting) -> Built:
    """F.scaled_dot_product_attention with a boolean mask that leaves every query a key."""
    built = sdpa(setting)
    args = (*built.args, allowed_scores(_SEQUENCES, setting.length))
    axes: list[Axes] = [*built.input_axes, {0: BATCH, 2: SEQUENCE, 3: SEQUENCE}]
    return Built(MaskedScaledDotProduct(), args, ["q", "k", "v", "mask"], ["output"], axes, built.output_axes)


def sdpa_gqa(setting: Setting, kv_heads: int = 2) -> Built:
    """F.scaled_dot_product_attention with enable_gqa: several query heads share a head of K and V."""
    heads, size = (TINY_HEADS, TINY_HEAD) if setting.tiny else (8, 64)
    axes: Axes = {0: BATCH, 2: SEQUENCE}
    args = tuple(
        normal(_SEQUENCES, count, setting.length, size, seed=seed)
        for seed, count in enumerate((heads, kv_heads, kv_heads))
    )
    return Built(GroupedScaledDotProduct(), args, ["q", "k", "v"], ["output"], [axes] * 3, [axes])


def gqa_block(setting: Setting) -> Built:
    """Projections of unequal widths around grouped-query attention."""
    width, heads = _width(setting)
    return _one_source(GroupedBlock(width, heads, heads // 2), setting)


def handwritten(setting: Setting, dropout: float = 0.0) -> Built:
    """Attention in plain operators, with biases and an additive mask."""
    built = _one_source(Handwritten(*_width(setting), dropout=dropout), setting)
    args = (*built.args, additive_padding(_SEQUENCES, setting.length))
    axes: list[Axes] = [*built.input_axes, {0: BATCH, 3: SEQUENCE}]
    return Built(built.module, args, ["x", "mask"], built.output_names, axes, built.output_axes)


def handwritten_no_bias(setting: Setting) -> Built:
    """Attention in plain operators, without biases and mask."""
    return _one_source(HandwrittenPlain(*_width(setting)), setting)


def no_attention(setting: Setting) -> Built:
    """An image classifier that ends in a softmax over its classes."""
    edge, width, classes = (32, 64, 10) if setting.tiny else (224, 256, 1000)
    args = (normal(setting.images, 3, edge, edge),)
    batch: Axes = {0: BATCH}
    return Built(ConvClassifier(width, classes), args, ["image"], ["probabilities"], [batch], [batch])
