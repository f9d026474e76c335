"""Which GPU is at hand, as its driver tells: no CUDA library is needed for that."""

from __future__ import annotations

import ctypes
import sys


def gpu() -> int | None:
    """Compute capability times ten of the first CUDA GPU, as its driver tells; None without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, value, found = ctypes.c_int(), ctypes.c_int(), []
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
        found.append(value.value)
    return found[0] * 10 + found[1]
