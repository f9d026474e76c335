"""The small exports that are checked in under tests/exports: which they are, and how each is made.

`python -m models fixtures` makes those that are missing (delete a file to have it made again). `tests/exports/made_by.tsv`
records for each file the true number of attention sites, counted while the model ran, and the command that made it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("tests/exports")
RECORD = "made_by.tsv"
EXPORTERS = ("torchscript:17", "dynamo:18", "dynamo:23")
OTHERS = ("torchscript:20", "dynamo:20")
SMALL = ("sdpa", "sdpa_scale", "sdpa_causal", "sdpa_mask", "sdpa_prescaled")
"""Bare operators: a few KB each, so in every spelling."""


@dataclass(frozen=True)
class Fixture:
    """One export. `spelling` is exporter:opset."""

    name: str
    spelling: str
    dynamic: bool = False
    half: bool = False
    attn: str = "sdpa"

    @property
    def file(self) -> str:
        parts = [self.name, *self.spelling.split(":"), "dynamic" if self.dynamic else "static"]
        parts += ["eager"] if self.attn == "eager" else []
        parts += ["half"] if self.half else []
        return ".".join([*parts, "onnx"])

    @property
    def arguments(self) -> list[str]:
        exporter, opset = self.spelling.split(":")
        arguments = ["export", self.name, "--size", "tiny", "--exporter", exporter, "--opset", opset]
        arguments += ["--attn", self.attn] if self.attn != "sdpa" else []
        arguments += ["--dynamic"] if self.dynamic else []
        arguments += ["--half"] if self.half else []
        return [*arguments, "-o", str(FOLDER / self.file)]


def fixtures() -> Iterator[Fixture]:
    """All of them: every bare operator in every spelling, every model in at least one, all axes covered."""
    for name in SMALL:
        for spelling in EXPORTERS:
            for dynamic in (False, True):
                yield Fixture(name, spelling, dynamic)
    ts, d18, d23 = EXPORTERS
    t20, d20 = OTHERS
    yield from (
        Fixture("vit_b_16", ts),
        Fixture("vit_b_16", d18, dynamic=True),
        Fixture("vit_b_16", ts, half=True),
        Fixture("vit_small_patch16_224", d18, attn="eager"),
        Fixture("vit_small_patch16_224", d23, dynamic=True),
        Fixture("swin_t", d18, half=True),
        Fixture("swin_v2_t", ts, dynamic=True),
        Fixture("bert", ts, dynamic=True),
        Fixture("bert", d18, half=True, attn="eager"),
        Fixture("bert", d23, dynamic=True),
        Fixture("gpt2", ts, dynamic=True),
        Fixture("gpt2", d18, attn="eager"),
        Fixture("gpt2", d23),
        Fixture("gpt2_no_mask", d18, dynamic=True),
        Fixture("clip_vision", ts, dynamic=True),
        Fixture("clip_vision", ts, half=True, attn="eager"),
        Fixture("clip_vision", d23),
        Fixture("mha", ts),
        Fixture("mha", ts, dynamic=True),
        Fixture("mha", d18, dynamic=True),
        Fixture("mha", d23),
        Fixture("mha_seq_first", ts),
        Fixture("mha_seq_first", d18, dynamic=True),
        Fixture("mha_no_bias", ts),
        Fixture("mha_no_bias", d23, dynamic=True),
        Fixture("mha_averaged", ts),
        Fixture("mha_averaged", d18, dynamic=True),
        Fixture("mha_weights", ts),
        Fixture("mha_weights", d18, dynamic=True),
        Fixture("handwritten", ts, dynamic=True),
        Fixture("handwritten", d18, half=True),
        Fixture("handwritten_no_bias", ts),
        Fixture("handwritten_no_bias", d23, dynamic=True),
        Fixture("handwritten_dropout", ts),
        Fixture("deit_tiny_distilled", ts),
        Fixture("deit_tiny_distilled", d23, dynamic=True),
        Fixture("deit_tiny_distilled", d20, half=True, attn="eager"),
        Fixture("clip_text", ts),
        Fixture("clip_text", t20, dynamic=True, attn="eager"),
        Fixture("clip_text", d23),
        Fixture("t5_encoder", ts, dynamic=True),
        Fixture("t5_encoder", d18, half=True, attn="eager"),
        Fixture("t5_encoder", d23),
        Fixture("whisper_encoder", ts),
        Fixture("whisper_encoder", d20, dynamic=True),
        Fixture("whisper_encoder", d23, half=True),
        Fixture("mha_weights_heads", t20),
        Fixture("mha_weights_heads", d23, dynamic=True),
        Fixture("mha_mask", ts, dynamic=True),
        Fixture("mha_mask", d23),
        Fixture("mha_mask_bool", t20),
        Fixture("mha_mask_bool", d18, dynamic=True),
        Fixture("mha_padding", ts),
        Fixture("mha_padding", d20, dynamic=True),
        Fixture("mha_zero_attn", ts),
        Fixture("mha_zero_attn", d23, dynamic=True),
        Fixture("mha_bias_kv", ts, dynamic=True),
        Fixture("mha_bias_kv", d18),
        Fixture("mha_cross", ts),
        Fixture("mha_cross", t20, dynamic=True),
        Fixture("mha_cross", d18, half=True),
        Fixture("text_cross", d18, half=True),
        Fixture("mha_cross", d23, dynamic=True),
        Fixture("mha_kdim", ts, dynamic=True),
        Fixture("mha_kdim", d20),
        Fixture("encoder_layer", ts, dynamic=True),
        Fixture("encoder_layer", d23),
        Fixture("encoder_layer_pre", t20),
        Fixture("encoder_layer_pre", d18, half=True),
        Fixture("decoder_layer", ts),
        Fixture("decoder_layer", d20, dynamic=True),
        Fixture("decoder_layer_pre", ts, half=True),
        Fixture("decoder_layer_pre", d23),
        *(Fixture(name, d18) for name in ("sdpa_gqa", "sdpa_mqa", "gqa_block")),
        *(Fixture(name, d23, dynamic=True) for name in ("sdpa_gqa", "sdpa_mqa", "gqa_block")),
        Fixture("gqa_block", d18, half=True),
        Fixture("sdpa_mask_bool", ts),
        Fixture("sdpa_mask_bool", d18, dynamic=True),
        Fixture("sdpa_mask_bool", d23),
        Fixture("vit_qk_norm", d18, attn="eager"),
        Fixture("vit_qk_norm", ts, dynamic=True),
        Fixture("swin_tiny", ts, dynamic=True),
        Fixture("swin_tiny", d23, half=True),
        Fixture("swinv2_tiny_window8", d18, dynamic=True),
        Fixture("edgenext_small", d18),
        Fixture("visformer_tiny", ts, attn="eager", dynamic=True),
        Fixture("davit_tiny", d23, dynamic=True),
        Fixture("tnt_s", ts, attn="eager"),
        Fixture("crossvit_9", d18, attn="eager", dynamic=True),
        Fixture("hf_swin", d18, attn="eager", dynamic=True),
        Fixture("llama", ts, dynamic=True),
        Fixture("llama", d18, attn="eager", dynamic=True),
        Fixture("mistral", d18),
        Fixture("falcon", ts),
        Fixture("phi", d23),
        Fixture("gptj", d23, dynamic=True),
        Fixture("cohere", d23, half=True, attn="eager"),
        Fixture("eva02_small", ts, dynamic=True, attn="eager"),
        Fixture("dinov3_small", d18),
        Fixture("mpt", ts, attn="eager", dynamic=True),
        Fixture("mobilebert", d18, attn="eager", dynamic=True),
        Fixture("mpnet", ts, attn="eager"),
        Fixture("hubert", d20, dynamic=True),
        Fixture("fastvit_t8", ts),
        Fixture("poolformer_s12", d18),
        Fixture("convnext_tiny", ts, dynamic=True),
        Fixture("volo_d1", d18, attn="eager"),
        Fixture("gpt2_prefill", ts, dynamic=True),
        Fixture("gpt2_decode", ts, dynamic=True),
        Fixture("t5_decoder_first", ts, dynamic=True),
        Fixture("t5_decoder_step", ts, dynamic=True),
        Fixture("llama_static", d18),
        Fixture("llama_decode", d23, dynamic=True),
        Fixture("mistral_decode", d18, half=True),
        Fixture("no_attention", ts),
        Fixture("no_attention", d18, dynamic=True),
    )


def main() -> int:
    """Make every fixture that is not there yet, each in a process of its own, and the record of how."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = FOLDER / RECORD
    made = {row.split("\t")[0]: row for row in record.read_text().splitlines()} if record.exists() else {}
    rows = []
    for fixture in fixtures():
        if fixture.file not in made or not (FOLDER / fixture.file).exists():
            command = [sys.executable, "-m", "models", *fixture.arguments]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                print(run.stderr.strip().splitlines()[-1], file=sys.stderr)
                return 1
            sites = next(word.split("=")[1] for word in run.stdout.split() if word.startswith("true_sites="))
            made[fixture.file] = f"{fixture.file}\t{sites}\tpython -m models {' '.join(fixture.arguments)}"
            print(made[fixture.file])
        rows.append(made[fixture.file])
    record.write_text("\n".join(["file\ttrue_sites\tcommand", *rows]) + "\n")
    return 0
