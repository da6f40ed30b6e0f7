"""How much memory a GPU has: by its name, or as the driver reports it."""

from __future__ import annotations

import ctypes
import math
import re

from vrft.errors import UserError, suggestion

GIB = 2**30
GPUS = {
    "rtx_3090_24gb": 24,
    "rtx_4090_24gb": 24,
    "rtx_5090_32gb": 32,
    "t4_16gb": 15,
    "l4_24gb": 22.5,
    "a10_24gb": 22.5,
    "a40_48gb": 45,
    "a6000_48gb": 48,
    "l40s_48gb": 45,
    "v100_32gb": 32,
    "a100_40gb": 40,
    "a100_80gb": 80,
    "h100_80gb": 80,
    "h200_141gb": 140,
    "b200_192gb": 180,
    "mi300x_192gb": 192,
}
"""GiB as the driver reports them, or slightly less."""


def gpu_bytes(name: str | float, *, key: str = "plan.gpu") -> int:
    """Memory in bytes of a GPU of the table, or of a number of GiB. Raises `UserError` naming the config's `key`."""
    if isinstance(name, (int, float)) and not isinstance(name, bool):
        if 0 < name < math.inf:
            return int(name * GIB)
    elif name in GPUS:
        return int(GPUS[name] * GIB)
    elif size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gb|gib)?", str(name).lower()):
        return int(float(size[1]) * GIB)
    raise UserError(
        f"{key} is {name!r}; {suggestion(str(name), GPUS)}known: {', '.join(GPUS)}, or a number of GiB: {key}=48"
    )


def gpu_at_hand() -> int | None:
    """Bytes of the smallest GPU that the driver shows to this process, or None. CUDA_VISIBLE_DEVICES is respected."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    n_devices, device, size = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(n_devices)):
        return None
    sizes = []
    for number in range(n_devices.value):
        is_found = driver.cuDeviceGet(ctypes.byref(device), number) == 0
        if is_found and driver.cuDeviceTotalMem_v2(ctypes.byref(size), device) == 0:
            sizes.append(size.value)
    return min(sizes, default=None)
