"""Three patterns to start from, each a module that runs: `python -m onnx_attn.match.examples.scaled_softmax MODEL`."""
