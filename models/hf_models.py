"""transformers' models from their configurations, two layers each: text, pictures, video, sound and layouts.

A table, since the library builds them all alike: the classes, what is small in the small variant, what the model is called
with, and what of its result is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from models.inputs import boxes, normal, padding, tokens
from models.reference import BATCH, SEQUENCE, TINY_HEADS, TINY_INNER, TINY_WIDTH, Axes, Built, Setting

Options = dict[str, Any]
_SEQUENCES = 2
_LAYERS = 2
_TEXT: Axes = {0: BATCH, 1: SEQUENCE}
_IMAGE: Axes = {0: BATCH}


@dataclass(frozen=True)
class Family:
    """One family of models. `config` and `model` are classes of transformers.

    common: options of both sizes; small, large: of one. inputs: which arguments the model gets. results: which fields it
    gives. sized: whether the sizes that most configurations share have a meaning. eager: it has no other attention.
    """

    config: str
    model: str
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    common: Options = field(default_factory=dict)
    small: Options = field(default_factory=dict)
    large: Options = field(default_factory=dict)
    results: tuple[str, ...] = ("last_hidden_state",)
    sized: bool = True
    eager: bool = False
    edge: int = 32


def _sizes(width: int, heads: int, inner: int, vocabulary: int) -> Options:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "num_hidden_layers": _LAYERS,
    }


SMALL, LARGE = _sizes(TINY_WIDTH, TINY_HEADS, TINY_INNER, 50), _sizes(768, 12, 3072, 4096)
_ENDS: Options = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_DECODER: Options = {"use_cache": False, **_ENDS}
_GROUPED: Options = {"num_key_value_heads": 2}
_PICTURE: Options = {"image_size": 32, "patch_size": 8}


def _encoder_decoder(width: int, heads: int, inner: int, vocabulary: int) -> Options:
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "encoder_layers": _LAYERS,
        "decoder_layers": _LAYERS,
    }


_SPEECH: Options = {"conv_dim": (32,) * 2, "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embeddings": 8}

FAMILIES: dict[str, Family] = {
    "electra": Family("ElectraConfig", "ElectraModel", small={"embedding_size": 24}),
    "mpnet": Family("MPNetConfig", "MPNetModel", eager=True),
    "mobilebert": Family(
        "MobileBertConfig",
        "MobileBertModel",
        small={"embedding_size": 24, "intra_bottleneck_size": 48},
        large={"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 512},
    ),
    "opt": Family(
        "OPTConfig", "OPTModel", common=_DECODER, small={"ffn_dim": TINY_INNER, "word_embed_proj_dim": TINY_WIDTH}
    ),
    "llama": Family("LlamaConfig", "LlamaModel", common=_DECODER, small=_GROUPED, large={"num_key_value_heads": 4}),
    "mistral": Family(
        "MistralConfig",
        "MistralModel",
        common=_DECODER,
        small={**_GROUPED, "sliding_window": 4, "head_dim": 24},
        large={"num_key_value_heads": 4},
    ),
    "qwen2": Family("Qwen2Config", "Qwen2Model", common=_DECODER, small=_GROUPED, large={"num_key_value_heads": 4}),
    "falcon": Family("FalconConfig", "FalconModel", common={**_DECODER, "multi_query": True, "alibi": False}),
    "falcon_alibi": Family(
        "FalconConfig",
        "FalconModel",
        common={**_DECODER, "multi_query": False, "alibi": True, "new_decoder_architecture": False},
    ),
    "phi": Family(
        "PhiConfig",
        "PhiModel",
        common={
            **_DECODER,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gptj": Family(
        "GPTJConfig",
        "GPTJModel",
        common={"use_cache": False, "n_layer": _LAYERS},
        small={
            "n_embd": TINY_WIDTH,
            "n_head": TINY_HEADS,
            "n_inner": TINY_INNER,
            "rotary_dim": 8,
            "vocab_size": 50,
            "n_positions": 64,
        },
        large={"n_embd": 768, "n_head": 12, "n_inner": 3072, "rotary_dim": 32, "vocab_size": 4096},
        sized=False,
    ),
    "cohere": Family("CohereConfig", "CohereModel", common=_DECODER, small=_GROUPED, large={"num_key_value_heads": 4}),
    "mpt": Family(
        "MptConfig",
        "MptModel",
        common={"use_cache": False, "n_layers": _LAYERS},
        small={"d_model": TINY_WIDTH, "n_heads": TINY_HEADS, "expansion_ratio": 1, "max_seq_len": 64},
        large={"d_model": 768, "n_heads": 12},
        eager=True,
    ),
    "marian": Family(
        "MarianConfig",
        "MarianModel",
        ("input_ids", "attention_mask", "decoder_input_ids"),
        common={"use_cache": False, "decoder_start_token_id": 0, "decoder_vocab_size": None, **_ENDS},
        small=_encoder_decoder(TINY_WIDTH, TINY_HEADS, TINY_INNER, 50) | {"max_position_embeddings": 64},
        large=_encoder_decoder(512, 8, 2048, 4096),
    ),
    "hf_vit": Family("ViTConfig", "ViTModel", ("pixel_values",), small=_PICTURE),
    "hf_deit": Family("DeiTConfig", "DeiTModel", ("pixel_values",), small=_PICTURE),
    "hf_swin": Family(
        "SwinConfig",
        "SwinModel",
        ("pixel_values",),
        small={
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 48,
            "depths": [2],
            "num_heads": [2],
            "window_size": 4,
            "mlp_ratio": 1,
        },
        sized=False,
        eager=True,
    ),
    "dpt": Family(
        "DPTConfig",
        "DPTModel",
        ("pixel_values",),
        common={"is_hybrid": False, "backbone_out_indices": [0, 1]},
        small=_PICTURE,
    ),
    "videomae": Family(
        "VideoMAEConfig",
        "VideoMAEModel",
        ("video",),
        small=_PICTURE | {"num_frames": 4, "tubelet_size": 2},
        large={"num_frames": 4},
    ),
    "timesformer": Family(
        "TimesformerConfig",
        "TimesformerModel",
        ("video",),
        small=_PICTURE | {"num_frames": 4},
        large={"num_frames": 4},
        eager=True,
    ),
    "hubert": Family(
        "HubertConfig",
        "HubertModel",
        ("input_values",),
        common={"apply_spec_augment": False, "num_conv_pos_embedding_groups": 4},
        small=_SPEECH,
        large=_SPEECH,
    ),
    "detr": Family(
        "DetrConfig",
        "DetrModel",
        ("pixel_values",),
        common={"use_timm_backbone": False, "use_pretrained_backbone": False, "num_queries": 5},
        small=_encoder_decoder(TINY_WIDTH, TINY_HEADS, TINY_INNER, 1),
        large=_encoder_decoder(256, 8, 2048, 1),
        eager=True,
        edge=64,
    ),
    "layoutlm": Family("LayoutLMConfig", "LayoutLMModel", ("input_ids", "bbox", "attention_mask"), eager=True),
}


NOTES = {
    "llama": ", heads shared, rotary",
    "mistral": ", heads shared, rotary, a sliding window",
    "qwen2": ", heads shared, rotary",
    "falcon": ", one head of K and V, rotary",
    "falcon_alibi": ", slopes of distances as biases, scaled with them",
    "phi": ", rotary on half of each head",
    "gptj": ", rotary on neighbouring channels of a part of each head",
    "cohere": ", heads shared, rotary on neighbouring channels",
    "mpt": ", slopes of distances as biases",
    "marian": ", encoder and decoder",
    "hf_swin": ", shifted windows",
    "mpnet": ", relative position buckets",
    "mobilebert": ", values of another width than keys",
    "timesformer": ", time and space in turn",
    "detr": ", learned queries",
}


class Called(nn.Module):
    """A model that is called with named tensors and gives plain ones."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], results: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = ["pixel_values" if name == "video" else name for name in inputs]
        self.results = results

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> tuple[Tensor, ...]:
        """The chosen fields of the model's output. (The exporters want every argument by its name.)"""
        output = self.model(**dict(zip(self.inputs, (first, second, third), strict=False)))
        return tuple(getattr(output, field) for field in self.results)


def _argument(name: str, setting: Setting, family: Family, vocabulary: int) -> tuple[Tensor, Axes]:
    edge = family.edge if setting.tiny else 224
    length = setting.length
    if name in ("input_ids", "decoder_input_ids"):
        length = length if name == "input_ids" else length // 2
        return tokens(_SEQUENCES, length, vocabulary), _TEXT if name == "input_ids" else {0: BATCH, 1: "target"}
    if name == "attention_mask":
        return padding(_SEQUENCES, length), _TEXT
    if name == "bbox":
        return boxes(_SEQUENCES, length), _TEXT
    if name == "input_values":
        return normal(setting.images, 20 * length), _IMAGE
    if name == "video":
        return normal(setting.images, 4, 3, edge, edge), _IMAGE
    return normal(setting.images, 3, edge, edge), _IMAGE


def transformers_model(name: str) -> Callable[[Setting], Built]:
    """The builder of a family."""

    def build(setting: Setting) -> Built:
        import transformers

        family = FAMILIES[name]
        shared = (SMALL if setting.tiny else LARGE) if family.sized else {}
        sizes = {**shared, **family.common, **(family.small if setting.tiny else family.large)}
        attention = "eager" if family.eager else setting.attn
        config = _configured(getattr(transformers, family.config), sizes, family, setting)
        config._attn_implementation = attention
        module = Called(getattr(transformers, family.model)(config), family.inputs, family.results)
        given = [_argument(each, setting, family, sizes.get("vocab_size", 0)) for each in family.inputs]
        args, axes = tuple(value for value, _ in given), [axes for _, axes in given]
        out: Axes = axes[-1] if "decoder_input_ids" in family.inputs else axes[0]
        return Built(module, args, list(family.inputs), list(family.results), axes, [out] * len(family.results))

    return build


def _configured(config: Any, sizes: Options, family: Family, setting: Setting) -> Any:
    import transformers

    if family.config == "DetrConfig":
        small = {
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "out_features": ["stage2"],
        }
        backbone = (
            transformers.ResNetConfig(**small) if setting.tiny else transformers.ResNetConfig(out_features=["stage4"])
        )
        return config(backbone_config=backbone, **sizes)
    return config(**sizes)
