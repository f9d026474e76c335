"""Decoders that ask an encoder, with both of their caches: the first step makes them, each later one reads them.

    first    input_ids (B, S)    encoder_hidden_states (B, M, D)    encoder_attention_mask (B, M)
             → logits, presents (B, N, S, H) of the decoder and (B, N, M, H) of the encoder
    step     input_ids (B, 1)    encoder_attention_mask (B, M)      pasts of both
             → logits, presents of the decoder; what is cached of the encoder stays as it is

Pasts and presents are `past_key_values.LAYER.decoder.key`, `present.LAYER.encoder.value` and so on, as Optimum calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.decoders import cache_names, configured, pairs, presents, varied_like
from models.hf_models import FAMILIES, Family
from models.inputs import normal, padding, tokens
from models.quiet import quiet
from models.reference import (
    BATCH,
    MEMORY,
    PAST,
    SEQUENCE,
    TINY_HEADS,
    TINY_INNER,
    TINY_WIDTH,
    TOTAL,
    Axes,
    Built,
    Setting,
)

_SEQUENCES = 2
_LAYERS = 2
_STATES = ("encoder_hidden_states", "encoder_attention_mask")


def _t5(width: int, heads: int, inner: int, vocabulary: int) -> dict[str, Any]:
    return {"d_model": width, "num_heads": heads, "d_kv": width // heads, "d_ff": inner, "vocab_size": vocabulary}


def _of_marian(config: str, model: str) -> Family:
    """The sizes of Marian, which others share."""
    return Family(config, model, _STATES, _COMMON, FAMILIES["marian"].small, FAMILIES["marian"].large)


_COMMON = {"decoder_start_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

ENCODER_DECODERS: dict[str, Family] = {
    "t5": Family(
        "T5Config",
        "T5ForConditionalGeneration",
        _STATES,
        common={"num_layers": _LAYERS, "decoder_start_token_id": 0},
        small=_t5(TINY_WIDTH, TINY_HEADS, TINY_INNER, 50),
        large=_t5(512, 8, 2048, 4096),
        sized=False,
    ),
    "marian": _of_marian("MarianConfig", "MarianMTModel"),
    "pegasus": _of_marian("PegasusConfig", "PegasusForConditionalGeneration"),
    "whisper": Family(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        _STATES[:1],
        common={**_COMMON, "num_mel_bins": 16},
        small={**FAMILIES["marian"].small, "max_source_positions": 16, "max_target_positions": 64},
        large={**FAMILIES["marian"].large, "max_source_positions": 128, "max_target_positions": 448},
    ),
}
"""Their inputs are those of the first step besides the token numbers."""


class _Called(nn.Module):
    """A model for generation, called with what its decoder reads."""

    def __init__(self, model: nn.Module, masked: bool) -> None:
        super().__init__()
        self.model = model
        self.masked = masked

    def decoded(self, tokens: Tensor, states: Tensor, mask: Tensor | None, own: Any, other: Any) -> Tensor:
        """The logits; both caches are filled."""
        from transformers import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        given = {"attention_mask": mask} if self.masked else {}
        output = self.model(
            **given,
            decoder_input_ids=tokens,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            past_key_values=EncoderDecoderCache(own, other),
            use_cache=True,
        )
        logits: Tensor = output.logits
        return logits


class First(_Called):
    """The first step: from an encoder's states, and the mask of their padding where the model takes one."""

    def forward(self, input_ids: Tensor, states: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits, then of each layer the keys and values of the decoder and of the encoder."""
        from transformers import DynamicCache

        own, other = DynamicCache(), DynamicCache()
        logits = self.decoded(input_ids, states, mask, own, other)
        ways = zip(pairs(presents(own)), pairs(presents(other)), strict=True)
        return (logits, *(each for decoder, encoder in ways for each in (*decoder, *encoder)))


class Step(_Called):
    """A later step: the caches of each layer, as the first step gives them; the encoder's states themselves are not read."""

    def forward(self, input_ids: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Logits, then the decoder's keys and values of each layer."""
        from transformers import DynamicCache

        mask, pasts = (given[0], given[1:]) if self.masked else (None, given)
        every = pairs(pasts)
        own, other = DynamicCache(every[::2]), DynamicCache(every[1::2])
        batch, length = pasts[2].shape[0], pasts[2].shape[2]
        states = pasts[2].new_zeros((batch, length, self.model.config.d_model))
        return (self.decoded(input_ids, states, mask, own, other), *presents(own))


def _of(name: str, setting: Setting) -> tuple[Family, Any, bool]:
    """A family, its model, and whether that takes a mask of the encoder's padding."""
    family = ENCODER_DECODERS[name]
    return family, configured(family, setting), len(family.inputs) == 2


def _example(family: Family, setting: Setting, width: int, masked: bool) -> tuple[tuple[Tensor, ...], list[Axes]]:
    """The encoder's states and the mask of their padding."""
    length = setting.length
    args = (normal(_SEQUENCES, length, width), padding(_SEQUENCES, length))
    axes: list[Axes] = [{0: BATCH, 1: MEMORY}, {0: BATCH, 1: MEMORY}]
    return (args, axes) if masked else (args[:1], axes[:1])


_BOTH = (".decoder", ".encoder")


def first(name: str) -> Callable[[Setting], Built]:
    """The builder of a family's first step."""

    def build(setting: Setting) -> Built:
        family, model, masked = _of(name, setting)
        states, axes = _example(family, setting, model.config.d_model, masked)
        text: Axes = {0: BATCH, 1: SEQUENCE}
        numbers = tokens(_SEQUENCES, setting.length // 2, model.config.vocab_size)
        made: list[Axes] = [{0: BATCH, 2: SEQUENCE}] * 2 + [{0: BATCH, 2: MEMORY}] * 2
        return Built(
            First(model, masked),
            (numbers, *states),
            ["input_ids", *family.inputs],
            ["logits", *cache_names(_LAYERS, "present", _BOTH)],
            [text, *axes],
            [text, *made * _LAYERS],
        )

    return build


def step(name: str) -> Callable[[Setting], Built]:
    """The builder of a family's later steps, behind as many tokens as its first one has."""

    def build(setting: Setting) -> Built:
        family, model, masked = _of(name, setting)
        states, axes = _example(family, setting, model.config.d_model, masked)
        with torch.no_grad(), quiet():
            start = tokens(_SEQUENCES, setting.length // 2, model.config.vocab_size)
            made = First(model, masked)(start, *states)[1:]
        numbers = tokens(_SEQUENCES, 1, model.config.vocab_size)
        pasts: list[Axes] = [{0: BATCH, 2: PAST}] * 2 + [{0: BATCH, 2: MEMORY}] * 2
        own = cache_names(_LAYERS, "present", _BOTH[:1])
        return Built(
            Step(model, masked),
            (numbers, *states[1:], *varied_like(made)),
            ["input_ids", *family.inputs[1:], *cache_names(_LAYERS, "past_key_values", _BOTH)],
            ["logits", *own],
            [{0: BATCH}, *axes[1:], *pasts * _LAYERS],
            [{0: BATCH}, *[{0: BATCH, 2: TOTAL}] * len(own)],
        )

    return build
