"""The reference architectures by name."""

from __future__ import annotations

from functools import partial

from models import (
    basic,
    decoders,
    encoder_decoders,
    hf_models,
    language,
    multihead,
    static_cache,
    swin,
    timm_vision,
    vision,
)
from models.reference import Attn, Built, Reference, Setting, Size
from models.variation import vary

_mha = partial(Reference, fixed_sequence=("torchscript",))
"""torch's module as traced by TorchScript: the length of K and V is a constant of the file."""


_both = partial(Reference, both_ways=True)


def _timm(name: str, model: str, what: str, edge: int = 224, both_ways: bool = False) -> Reference:
    return Reference(name, f"timm {model}: {what}", timm_vision.timm_model(model, edge), both_ways=both_ways)


_REFERENCES = (
    Reference("vit_b_16", "torchvision ViT-B/16", vision.vit_b_16),
    _both("vit_small_patch16_224", "timm ViT-S/16", vision.vit_small_patch16_224),
    _both(
        "deit_tiny_distilled", "timm DeiT-Ti/16 distilled, two tokens beside the patches", vision.deit_tiny_distilled
    ),
    Reference("swin_t", "torchvision Swin-T, shifted windows, relative position bias", swin.swin_t),
    Reference("swin_v2_t", "torchvision Swin-V2-T, cosine attention, a scale a head", swin.swin_v2_t),
    Reference(
        "swin_v2_t_256", "the same at 256 × 256, where nothing is padded", partial(swin.swin_v2_t, full_edge=256)
    ),
    _both("bert", "transformers BertModel, padding mask, 2 layers", language.bert),
    _both("gpt2", "transformers GPT2Model, padding mask, 2 layers", language.gpt2),
    _both("gpt2_no_mask", "transformers GPT2Model, token numbers alone", language.gpt2_no_mask),
    _both("clip_vision", "transformers CLIPVisionModel, 2 layers", vision.clip_vision),
    _both("clip_text", "transformers CLIPTextModel, causal, 2 layers", language.clip_text),
    Reference("t5_encoder", "transformers T5EncoderModel, position buckets, no scale, 2 layers", language.t5_encoder),
    _both("whisper_encoder", "transformers WhisperEncoder, no bias on K, 2 layers", language.whisper_encoder),
    _mha("mha", "nn.MultiheadAttention, batch first", basic.mha),
    _mha("mha_seq_first", "nn.MultiheadAttention, sequence first", partial(basic.mha, batch_first=False)),
    _mha("mha_no_bias", "nn.MultiheadAttention without biases", partial(basic.mha, bias=False)),
    _mha("mha_averaged", "need_weights=True, weights unused", partial(basic.mha, averaged=True)),
    _mha(
        "mha_weights",
        "need_weights=True, weights a second output",
        basic.mha_weights,
        leave_alone="the attention weights are an output of the model",
    ),
    _mha(
        "mha_weights_heads",
        "the weights of every head a second output",
        partial(multihead.mha_self, per_head=True),
        leave_alone="the attention weights are an output of the model",
    ),
    _mha("mha_mask", "a float attn_mask", partial(multihead.mha_self, mask="float")),
    _mha("mha_mask_bool", "a boolean attn_mask", partial(multihead.mha_self, mask="bool")),
    _mha("mha_padding", "a key_padding_mask", partial(multihead.mha_self, mask="padding")),
    _mha("mha_zero_attn", "add_zero_attn: one more key of zeros", partial(multihead.mha_self, zero_attn=True)),
    _mha("mha_bias_kv", "bias_k and bias_v: one more key that is learned", partial(multihead.mha_self, bias_kv=True)),
    _mha("mha_cross", "keys and values from another sequence", multihead.mha_cross),
    _mha("mha_kdim", "keys and values of other widths, from two sequences", multihead.mha_kdim),
    Reference("text_cross", "the cross-attention of diffusers' UNets: a picture asks a text", multihead.text_cross),
    _mha("encoder_layer", "nn.TransformerEncoderLayer, post-norm, ReLU", multihead.encoder_layer),
    _mha(
        "encoder_layer_pre",
        "nn.TransformerEncoderLayer, pre-norm, GELU",
        partial(multihead.encoder_layer, norm_first=True),
    ),
    _mha("decoder_layer", "nn.TransformerDecoderLayer, post-norm", multihead.decoder_layer),
    _mha(
        "decoder_layer_pre", "nn.TransformerDecoderLayer, pre-norm", partial(multihead.decoder_layer, norm_first=True)
    ),
    Reference("sdpa_mask_bool", "scaled_dot_product_attention with a boolean mask", basic.sdpa_mask_bool),
    Reference("sdpa_gqa", "the same with enable_gqa", basic.sdpa_gqa),
    Reference("sdpa_mqa", "the same with one head of K and V", partial(basic.sdpa_gqa, kv_heads=1)),
    Reference("gqa_block", "projections of unequal widths around it", basic.gqa_block),
    Reference("sdpa", "scaled_dot_product_attention", basic.sdpa),
    Reference("sdpa_scale", "the same with scale=0.3", partial(basic.sdpa, scale=0.3)),
    Reference("sdpa_causal", "the same with is_causal=True", partial(basic.sdpa, causal=True)),
    Reference("sdpa_mask", "the same with a float mask", partial(basic.sdpa, mask=True)),
    Reference("sdpa_prescaled", "Q scaled before, scale=1.0", partial(basic.sdpa, prescaled=True)),
    Reference("handwritten", "plain operators, biases, mask, Div", basic.handwritten),
    Reference("handwritten_no_bias", "plain operators, Mul on Q", basic.handwritten_no_bias),
    Reference("handwritten_dropout", "with nn.Dropout in eval mode", partial(basic.handwritten, dropout=0.1)),
    Reference("resnet50", "torchvision ResNet-50: no attention", vision.resnet50),
    Reference("convnext_tiny", "torchvision ConvNeXt-T: no attention", vision.convnext_tiny),
    _both("vit_qk_norm", "timm ViT-S whose Q and K are normalised", timm_vision.vit_qk_norm),
    _timm("beit_base", "beit_base_patch16_224", "relative position bias", both_ways=True),
    _timm("eva02_small", "eva02_small_patch14_224", "rotary by height and by width", both_ways=True),
    _timm(
        "dinov3_small", "vit_small_patch16_dinov3", "rotary by halves, beside tokens of no place", 256, both_ways=True
    ),
    _timm("swin_tiny", "swin_tiny_patch4_window7_224", "shifted windows", both_ways=True),
    _timm("swinv2_tiny_window8", "swinv2_tiny_window8_256", "cosine attention", 256),
    _timm("coat_lite_mini", "coat_lite_mini", "factorised, which is linear attention: no site"),
    _timm(
        "crossvit_9", "crossvit_9_240", "two branches, a class token that asks the other's patches", 240, both_ways=True
    ),
    _timm("edgenext_small", "edgenext_small", "cross-covariance: channels attend to channels"),
    _timm("gcvit_xxtiny", "gcvit_xxtiny", "windows, and queries from the whole picture"),
    _timm("davit_tiny", "davit_tiny", "windows and channel groups in turn", both_ways=True),
    _timm("nest_tiny", "nest_tiny", "blocks of patches on an axis of their own", both_ways=True),
    _timm("tnt_s", "tnt_s_patch16_224", "pixels within patches"),
    _timm("visformer_tiny", "visformer_tiny", "channels first, projections by 1 × 1 convolutions", both_ways=True),
    _timm("volo_d1", "volo_d1_224", "outlook attention, which is none, and class attention", both_ways=True),
    _timm("mixer_b16", "mixer_b16_224", "no attention"),
    _timm("poolformer_s12", "poolformer_s12", "no attention"),
    _timm("fastvit_t8", "fastvit_t8", "no attention"),
    *(
        Reference(
            name,
            f"transformers {family.model}, 2 layers{note}",
            hf_models.transformers_model(name),
            both_ways=not family.eager,
        )
        for name, family, note in ((n, f, hf_models.NOTES.get(n, "")) for n, f in hf_models.FAMILIES.items())
    ),
    *(
        _both(f"{name}_{step}", f"transformers {family.model}, 2 layers, {what}", builder(name))
        for name, family in decoders.DECODERS.items()
        for step, what, builder in (
            ("prefill", "its prompt, with caches as outputs", decoders.prefill),
            ("decode", "its next token behind a past", decoders.decode),
            ("continue", "its next tokens behind any past, or none", partial(decoders.decode, new=4)),
        )
    ),
    *(
        _both(f"{name}_decoder_{step}", f"transformers {family.model}, 2 layers, {what}", builder(name))
        for name, family in encoder_decoders.ENCODER_DECODERS.items()
        for step, what, builder in (
            ("first", "the decoder's first tokens, with caches as outputs", encoder_decoders.first),
            ("step", "the decoder's next token, the encoder's keys cached", encoder_decoders.step),
        )
    ),
    _both("llama_static", "transformers LlamaForCausalLM, 2 layers, caches of one size", static_cache.static_decode),
    Reference("no_attention", "convolutions and a softmax over classes", basic.no_attention),
)

REGISTRY: dict[str, Reference] = {reference.name: reference for reference in _REFERENCES}


def build(
    name: str,
    size: Size = "full",
    attn: Attn = "sdpa",
    half: bool = False,
    dynamic: bool = False,
    seed: int = 0,
) -> Built:
    """Build a reference with varied parameters, in eval mode, with its example inputs.

    `dynamic` makes the example inputs fit for an export with a varying batch. Raises KeyError for a name
    that is not in the registry.
    """
    built = REGISTRY[name].builder(Setting(size, attn, dynamic))
    vary(built.module, seed)
    return built.half() if half else built
