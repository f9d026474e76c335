"""`polygraphy run MODEL --onnxrt --fuse-attention`: the fused model as one more runner beside polygraphy's own.

polygraphy loads this whenever anybody calls it, for whatever: so it imports nothing that polygraphy has not imported by then.
The rest of the package comes in when the model is fused, by the script that is made here.
"""

from __future__ import annotations

import argparse
from typing import Any

from polygraphy.tools.args import ModelArgs, OnnxLoadArgs, OnnxrtSessionArgs
from polygraphy.tools.args import util as args_util
from polygraphy.tools.args.base import BaseArgs, BaseRunnerArgs
from polygraphy.tools.script import Script, make_invocable

OPTION = "fuse-attention"

CHOICES = {
    "target": ("tensorrt", "onnx", "onnxruntime"),
    "form": ("auto", "function", "attention", "primitives", "contrib"),
    "precision": ("keep", "fp16", "bf16"),
}


class FuseAttentionRunnerArgs(BaseRunnerArgs):
    """
    Fused Attention Inference: running inference with ONNX-Runtime on the model with its attention fused by onnx-attn.

    Depends on:

        - ModelArgs
        - OnnxLoadArgs
        - OnnxrtSessionArgs
    """

    def get_name_opt_impl(self) -> tuple[str, str]:
        return "ONNX-Runtime with fused attention", OPTION

    def get_extra_help_text_impl(self) -> str:
        return "The model is rewritten by onnx-attn first. Select another runner too, to compare with"

    def add_parser_args_impl(self) -> None:
        def add(name: str, help_text: str, **settings: Any) -> None:
            self.group.add_argument(f"--{OPTION}-{name}", help=help_text, default=None, **settings)

        add("target", "Runtime that is to read the fused model. Defaults to tensorrt", choices=CHOICES["target"])
        add("target-version", "TensorRT version to fuse for: 8.6, 10.0 ... 11.x, or rtx")
        add("form", "How sites are written. Defaults to auto", choices=CHOICES["form"])
        add("precision", "Half-precision islands around sites of float32", choices=CHOICES["precision"])
        add("plan", "What is done to each site: a plan that `onnx-attn fuse --write-plan` wrote", metavar="IN.json")
        add("expect", "Fail unless exactly so many sites are fused", type=int, metavar="N")
        add("allow-recompute", "Also fuse sites whose attention weights are read elsewhere", action="store_true")
        add("no-pack", "Leave the Q/K/V projections as they are", action="store_false", dest=_dest("pack"))
        add("no-algebra", "Leave biases and scales where they are", action="store_false", dest=_dest("algebra"))
        add(
            "no-verify",
            "Rewrite without the proof of each site and of the whole model; this comparison is all there is then",
            action="store_false",
            dest=_dest("verify"),
        )
        add("save", "Keep the fused model in this file; also for models past 2 GB", metavar="PATH")

    def parse_impl(self, args: argparse.Namespace) -> None:
        """
        Parses command-line arguments and populates the following attributes:

        Attributes:
            options (Dict[str, Any]): Options of onnx_attn.fuse; None for those that were not given.
            save (str): Where to keep the fused model, or None.
        """
        names = ("target", "target_version", "form", "precision", "plan", "expect", "allow_recompute")
        self.options = {name: args_util.get(args, _dest(name)) for name in (*names, "pack", "algebra", "verify")}
        self.save = args_util.get(args, _dest("save"))

    def add_to_script_impl(self, script: Script) -> None:
        load = self.arg_groups[OnnxLoadArgs]
        # By its path where nothing is changed: then weights can stay in their file.
        model = load.add_to_script(script) if load.must_use_onnx_loader() else self.arg_groups[ModelArgs].path
        if self.save is None:
            script.add_import(imports=["BytesFromOnnx"], frm="polygraphy.backend.onnx")
            fused = script.add_loader(self._loader(script, "FuseAttention", model), "fuse_attention")
            source = script.add_loader(make_invocable("BytesFromOnnx", fused), "serialize_fused")
        else:
            source = script.add_loader(self._loader(script, "FuseAttentionToFile", model, self.save), "fuse_attention")
        script.add_import(imports=["OnnxrtRunner"], frm="polygraphy.backend.onnxrt")
        session = self.arg_groups[OnnxrtSessionArgs].add_to_script(script, source)
        script.add_runner(make_invocable("OnnxrtRunner", session, name=OPTION))

    def _loader(self, script: Script, loader: str, *arguments: Any) -> Any:
        script.add_import(imports=[loader], frm="onnx_attn.polygraphy")
        return make_invocable(loader, *arguments, **self.options)


def _dest(name: str) -> str:
    return f"{OPTION}-{name}".replace("-", "_")


def argument_groups() -> list[BaseArgs]:
    """What the entry point gives to `polygraphy run`."""
    return [FuseAttentionRunnerArgs()]
