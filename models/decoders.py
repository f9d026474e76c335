"""Decoders with key/value caches, as they are exported for generation: the prompt at once, then one token after another.

    prefill    input_ids (B, S)    attention_mask (B, S)                                   → logits (B, S, vocabulary), presents
    decode     input_ids (B, 1)    attention_mask (B, past + 1)    pasts (B, N, past, H)   → logits (B, 1, vocabulary), presents
    continue   input_ids (B, S)    attention_mask (B, past + S)    pasts (B, N, past, H)   → the same of S tokens, for any past

Pasts and presents are `past_key_values.LAYER.key` and `present.LAYER.key`, and `.value`, as Optimum calls them. The last row of
a prompt is padded on its left, since it goes on at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.hf_models import FAMILIES, LARGE, SMALL, Family
from models.inputs import left_padding, normal, tokens
from models.quiet import quiet
from models.reference import BATCH, PAST, SEQUENCE, TINY_HEADS, TINY_INNER, TINY_WIDTH, TOTAL, Axes, Built, Setting

_SEQUENCES = 2
_LAYERS = 2
PLAIN = ("input_ids", "attention_mask")
PLACED = (*PLAIN, "position_ids")


def _gpt2(width: int, heads: int, inner: int, positions: int, vocabulary: int) -> dict[str, Any]:
    return {"n_embd": width, "n_head": heads, "n_inner": inner, "n_positions": positions, "vocab_size": vocabulary}


def _language_model(name: str, model: str, inputs: tuple[str, ...] = PLACED) -> Family:
    """A family of hidden states with its head, and with caches."""
    family = FAMILIES[name]
    return replace(family, model=model, inputs=inputs, common={**family.common, "use_cache": True})


DECODERS: dict[str, Family] = {
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        PLAIN,
        common={"n_layer": _LAYERS, "bos_token_id": 0, "eos_token_id": 0},
        small=_gpt2(TINY_WIDTH, TINY_HEADS, TINY_INNER, 64, 50),
        large=_gpt2(768, 12, 3072, 1024, 4096),
        sized=False,
    ),
    "llama": _language_model("llama", "LlamaForCausalLM"),
    "mistral": _language_model("mistral", "MistralForCausalLM"),
    "qwen2": _language_model("qwen2", "Qwen2ForCausalLM"),
    "falcon": _language_model("falcon", "FalconForCausalLM"),
    "phi": _language_model("phi", "PhiForCausalLM"),
}


def cache_names(layers: int, start: str, parts: tuple[str, ...] = ("",)) -> list[str]:
    """`start.LAYER.key` and `.value`, of each part of a layer that has a cache of its own."""
    return [f"{start}.{layer}{part}.{what}" for layer in range(layers) for part in parts for what in ("key", "value")]


def presents(cache: Any) -> tuple[Tensor, ...]:
    """Keys and values of each layer of a transformers' cache."""
    return tuple(each for layer in cache.layers for each in (layer.keys, layer.values))


def pairs(pasts: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Keys with their values."""
    return list(zip(pasts[::2], pasts[1::2], strict=True))


class Cached(nn.Module):
    """A language model called with its numbers, then with the keys and values of each layer; none for a prompt."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Logits, then the keys and values of each layer with those of the new tokens behind them."""
        from transformers import DynamicCache

        numbers, pasts = given[: len(self.inputs)], given[len(self.inputs) :]
        cache = DynamicCache(pairs(pasts)) if pasts else DynamicCache()
        output = self.model(**dict(zip(self.inputs, numbers, strict=True)), past_key_values=cache, use_cache=True)
        return (output.logits, *presents(cache))


def configured(family: Family, setting: Setting) -> nn.Module:
    """The family's model in the size that is asked for."""
    import transformers

    shared = (SMALL if setting.tiny else LARGE) if family.sized else {}
    sizes = {**shared, **family.common, **(family.small if setting.tiny else family.large)}
    config = getattr(transformers, family.config)(**sizes)
    config._attn_implementation = "eager" if family.eager else setting.attn
    model: nn.Module = getattr(transformers, family.model)(config)
    return model.eval()


def varied_like(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Normal values in the shapes of these."""
    return tuple(normal(*tensor.shape, seed=number) for number, tensor in enumerate(tensors))


def places(mask: Tensor) -> Tensor:
    """Which token of its row each is, `(B, L)`; padding is the first."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _numbers(family: Family, mask: Tensor, new: int, vocabulary: int) -> tuple[Tensor, ...]:
    """input_ids, attention_mask and position_ids of the last `new` tokens of these."""
    every = {
        "input_ids": tokens(_SEQUENCES, new, vocabulary),
        "attention_mask": mask,
        "position_ids": places(mask)[:, -new:],
    }
    return tuple(every[name] for name in family.inputs)


def prefill(name: str) -> Callable[[Setting], Built]:
    """The builder of a family's prompt."""

    def build(setting: Setting) -> Built:
        family = DECODERS[name]
        model = configured(family, setting)
        mask = left_padding(_SEQUENCES, setting.length)
        args = _numbers(family, mask, setting.length, model.config.vocab_size)
        text: Axes = {0: BATCH, 1: SEQUENCE}
        made: Axes = {0: BATCH, 2: SEQUENCE}
        names = cache_names(_LAYERS, "present")
        outputs = [text, *[made] * len(names)]
        return Built(
            Cached(model, family.inputs),
            args,
            list(family.inputs),
            ["logits", *names],
            [text] * len(args),
            outputs,
        )

    return build


def decode(name: str, new: int = 1) -> Callable[[Setting], Built]:
    """The builder of a family's next tokens, so many behind as many as they are less than a prompt of the example. One token is
    one in every run; more are as many as there are."""
    own: Axes = {0: BATCH} if new == 1 else {0: BATCH, 1: SEQUENCE}

    def build(setting: Setting) -> Built:
        family = DECODERS[name]
        module = Cached(configured(family, setting), family.inputs)
        vocabulary = module.model.config.vocab_size
        past = setting.length - new
        with torch.no_grad(), quiet():
            prompt = _numbers(family, left_padding(_SEQUENCES, past), past, vocabulary)
            made = module(*prompt)[1:]
        numbers = _numbers(family, left_padding(_SEQUENCES, past + new), new, vocabulary)
        names = cache_names(_LAYERS, "past_key_values")
        axes = [{0: BATCH, 1: TOTAL} if each == "attention_mask" else own for each in family.inputs]
        return Built(
            module,
            (*numbers, *varied_like(made)),
            [*family.inputs, *names],
            ["logits", *cache_names(_LAYERS, "present")],
            [*axes, *[{0: BATCH, 2: PAST}] * len(names)],
            [own, *[{0: BATCH, 2: TOTAL}] * len(names)],
        )

    return build
