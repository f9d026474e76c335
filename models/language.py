"""Builders of the text models of transformers, two layers each, vocabulary cut."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.inputs import normal, padding, tokens
from models.reference import BATCH, SEQUENCE, TINY_HEADS, TINY_INNER, TINY_WIDTH, Axes, Built, Setting

_SEQUENCES = 2
_LAYERS = 2
_TINY = (TINY_WIDTH, TINY_HEADS, TINY_INNER, 32)
_TEXT: Axes = {0: BATCH, 1: SEQUENCE}


def _vocabulary(setting: Setting) -> int:
    return 50 if setting.tiny else 4096


def _implementation(setting: Setting) -> dict[str, Any]:
    """The choice of attention, an option of every configuration that its signature does not name."""
    return {"attn_implementation": setting.attn}


class MaskedText(nn.Module):
    """A text model called with token numbers and a padding mask."""

    def __init__(self, model: nn.Module, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The chosen fields of the model's output."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(getattr(output, field) for field in self.fields)


class PlainText(nn.Module):
    """A text model called with token numbers alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """The last hidden state."""
        return self.model(input_ids=input_ids).last_hidden_state


def _masked(setting: Setting, module: nn.Module, names: list[str], outputs: list[Axes]) -> Built:
    args = (tokens(_SEQUENCES, setting.length, _vocabulary(setting)), padding(_SEQUENCES, setting.length))
    return Built(module, args, ["input_ids", "attention_mask"], names, [_TEXT, _TEXT], outputs)


def bert(setting: Setting) -> Built:
    """BertModel with a padding mask; one row of the example is padded."""
    from transformers import BertConfig, BertModel

    width, heads, inner, positions = _TINY if setting.tiny else (768, 12, 3072, 512)
    config = BertConfig(
        vocab_size=_vocabulary(setting),
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        num_hidden_layers=_LAYERS,
        **_implementation(setting),
    )
    fields = ("last_hidden_state", "pooler_output")
    outputs: list[Axes] = [_TEXT, {0: BATCH}]
    return _masked(setting, MaskedText(BertModel(config), fields), list(fields), outputs)


def _gpt2_model(setting: Setting) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    width, heads, inner, positions = _TINY if setting.tiny else (768, 12, 3072, 1024)
    return GPT2Model(
        GPT2Config(
            vocab_size=_vocabulary(setting),
            n_positions=positions,
            n_embd=width,
            n_head=heads,
            n_inner=inner,
            n_layer=_LAYERS,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
            **_implementation(setting),
        )
    )


def gpt2(setting: Setting) -> Built:
    """GPT2Model without a cache, with a padding mask; one row of the example is padded."""
    module = MaskedText(_gpt2_model(setting), ("last_hidden_state",))
    return _masked(setting, module, ["last_hidden_state"], [_TEXT])


def gpt2_no_mask(setting: Setting) -> Built:
    """GPT2Model without a cache, from token numbers alone."""
    args = (tokens(_SEQUENCES, setting.length, _vocabulary(setting)),)
    module = PlainText(_gpt2_model(setting))
    return Built(module, args, ["input_ids"], ["last_hidden_state"], [_TEXT], [_TEXT])


def t5_encoder(setting: Setting) -> Built:
    """T5EncoderModel: no scale, relative position buckets computed in the graph, RMS norms without biases."""
    from transformers import T5Config, T5EncoderModel

    width, heads, inner, _ = _TINY if setting.tiny else (512, 8, 2048, 512)
    config = T5Config(
        vocab_size=_vocabulary(setting),
        d_model=width,
        d_kv=width // heads,
        num_heads=heads,
        d_ff=inner,
        num_layers=_LAYERS,
        dropout_rate=0.0,
        **_implementation(setting),
    )
    return _masked(setting, MaskedText(T5EncoderModel(config), ("last_hidden_state",)), ["last_hidden_state"], [_TEXT])


def clip_text(setting: Setting) -> Built:
    """CLIPTextModel: causal, from token numbers alone."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width, heads, inner, positions = _TINY if setting.tiny else (512, 8, 2048, 128)
    config = CLIPTextConfig(
        vocab_size=_vocabulary(setting),
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        num_hidden_layers=_LAYERS,
        bos_token_id=0,
        eos_token_id=2,
        **_implementation(setting),
    )
    args = (tokens(_SEQUENCES, setting.length, _vocabulary(setting)),)
    return Built(PlainText(CLIPTextModel(config)), args, ["input_ids"], ["last_hidden_state"], [_TEXT], [_TEXT])


class Spectrogram(nn.Module):
    """A speech encoder, from features to a plain tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_features: Tensor) -> Tensor:
        """The last hidden state."""
        return self.model(input_features).last_hidden_state


def whisper_encoder(setting: Setting) -> Built:
    """Whisper's encoder: biases on Q and V and none on K, pre-norm; the number of frames is fixed."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    width, heads, inner, _ = _TINY if setting.tiny else (384, 6, 1536, 0)
    frames = 16 if setting.tiny else 128
    config = WhisperConfig(
        d_model=width,
        encoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        encoder_layers=_LAYERS,
        max_source_positions=frames,
        num_mel_bins=16,
        dropout=0.0,
        **_implementation(setting),
    )
    batch: Axes = {0: BATCH}
    args = (normal(_SEQUENCES, 16, 2 * frames),)
    return Built(Spectrogram(WhisperEncoder(config)), args, ["input_features"], ["last_hidden_state"], [batch], [batch])
