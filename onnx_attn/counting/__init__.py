"""What a model consists of and what it costs: nodes by role, floating-point operations, bytes that live at a time."""
