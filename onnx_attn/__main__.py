"""`python -m onnx_attn`: the command line where its script is not on the path."""

from onnx_attn.cli import app

if __name__ == "__main__":
    app()
