"""The reference architectures by name."""

from __future__ import annotations

from functools import partial

from models import basic, language, swin, vision
from models.reference import Attn, Built, Reference, Setting, Size
from models.variation import vary

_mha = partial(Reference, fixed_sequence=("torchscript",))
"""torch's module as traced by TorchScript: the length of K and V is a constant of the file."""

_REFERENCES = (
    Reference("vit_b_16", "torchvision ViT-B/16", vision.vit_b_16),
    Reference("vit_small_patch16_224", "timm ViT-S/16", vision.vit_small_patch16_224),
    Reference("swin_t", "torchvision Swin-T, shifted windows, relative position bias", swin.swin_t),
    Reference("swin_v2_t", "torchvision Swin-V2-T, cosine attention, a scale a head", swin.swin_v2_t),
    Reference(
        "swin_v2_t_256", "the same at 256 × 256, where nothing is padded", partial(swin.swin_v2_t, full_edge=256)
    ),
    Reference("bert", "transformers BertModel, padding mask, 2 layers", language.bert),
    Reference("gpt2", "transformers GPT2Model, padding mask, 2 layers", language.gpt2),
    Reference("gpt2_no_mask", "transformers GPT2Model, token numbers alone", language.gpt2_no_mask),
    Reference("clip_vision", "transformers CLIPVisionModel, 2 layers", vision.clip_vision),
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
    Reference("sdpa", "scaled_dot_product_attention", basic.sdpa),
    Reference("sdpa_scale", "the same with scale=0.3", partial(basic.sdpa, scale=0.3)),
    Reference("sdpa_causal", "the same with is_causal=True", partial(basic.sdpa, causal=True)),
    Reference("sdpa_mask", "the same with a float mask", partial(basic.sdpa, mask=True)),
    Reference("sdpa_prescaled", "Q scaled before, scale=1.0", partial(basic.sdpa, prescaled=True)),
    Reference("handwritten", "plain operators, biases, mask, Div", basic.handwritten),
    Reference("handwritten_no_bias", "plain operators, Mul on Q", basic.handwritten_no_bias),
    Reference("handwritten_dropout", "with nn.Dropout in eval mode", partial(basic.handwritten, dropout=0.1)),
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
