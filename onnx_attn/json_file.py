"""JSON files: what the tool writes, and reads back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from onnx_attn.errors import InputError, UsageError, one_line


def read_json(path: Path, wanted: str) -> Any:
    """What is in a file; wanted: what it should be, in words. Raises InputError if it cannot be read, UsageError for no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); pass {wanted}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no JSON ({one_line(error)}); pass {wanted}") from error


def strict(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
