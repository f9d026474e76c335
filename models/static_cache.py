"""A decoder whose caches have all their places from the start, and are written at the place of each new token.

    input_ids (B, 1)    cache_position (1)    pasts (B, N, MOST, H)    → logits (B, 1, vocabulary), presents (B, N, MOST, H)

transformers' StaticCache, its buffers inputs and outputs. The mask goes by the place alone: no key behind it is attended to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.decoders import DECODERS, cache_names, configured, presents, varied_like
from models.inputs import tokens
from models.reference import BATCH, Axes, Built, Setting

_SEQUENCES = 2
_LAYERS = 2


class Static(nn.Module):
    """A language model called with one token of each row, where it stands, and the buffers of each layer."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model = model
        self.most = most

    def forward(self, input_ids: Tensor, cache_position: Tensor, *pasts: Tensor) -> tuple[Tensor, ...]:
        """Logits, then the buffers with the new token in its place."""
        from transformers import StaticCache

        cache = StaticCache(self.model.config, self.most)
        for layer, keys, values in zip(cache.layers, pasts[::2], pasts[1::2], strict=True):
            layer.keys, layer.values = keys.clone(), values.clone()
            layer.cumulative_length = cache_position[0].clone()
            layer.device, layer.is_initialized = keys.device, True
        output = self.model(
            input_ids=input_ids,
            position_ids=cache_position.expand_as(input_ids),
            past_key_values=cache,
            use_cache=True,
        )
        return (output.logits, *presents(cache))


def static_decode(setting: Setting) -> Built:
    """Llama's next step at a place in the middle of its buffers."""
    model = configured(DECODERS["llama"], setting)
    config, most = model.config, setting.length
    width = config.hidden_size // config.num_attention_heads
    buffers = [torch.empty(_SEQUENCES, config.num_key_value_heads, most, width)] * (2 * _LAYERS)
    numbers = (tokens(_SEQUENCES, 1, config.vocab_size), torch.tensor([most // 2]))
    axes: list[Axes] = [{0: BATCH}, {}, *[{0: BATCH}] * len(buffers)]
    return Built(
        Static(model, most),
        (*numbers, *varied_like(tuple(buffers))),
        ["input_ids", "cache_position", *cache_names(_LAYERS, "past_key_values")],
        ["logits", *cache_names(_LAYERS, "present")],
        axes,
        [{0: BATCH}] * (1 + len(buffers)),
    )
