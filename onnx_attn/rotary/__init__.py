"""Rotary embeddings as the standard operator, where a target has it, and as plain nodes where it has not."""
