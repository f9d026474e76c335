"""The parts of bench.py: the tools that are compared, what is asked of each, and how the answers are shown."""
