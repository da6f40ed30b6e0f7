"""How much memory a GPU has: by its name, or as the driver reports it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
import runpy
from pathlib import Path

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

_LARGEST_GIB = 512


def gpu_bytes(name: str | float, *, key: str = "plan.gpu") -> int:
    """Memory in bytes of a GPU of the table, or of a number of GiB. Raises `UserError` naming the config's `key`."""
    near = gpus_called(name)
    if len(near) == 1:
        return int(GPUS[near[0]] * GIB)
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gb|gib)?", str(name).lower())
    if size and not near and 0 < float(size[1]) <= _LARGEST_GIB:
        return int(float(size[1]) * GIB)
    meant = f"did you mean {' or '.join(near)}? " if near else suggestion(str(name), GPUS)
    is_huge = size and not near and float(size[1]) > _LARGEST_GIB
    most = f" is more GiB than any GPU has (at most {_LARGEST_GIB} are taken)" if is_huge else ""
    raise UserError(f"{key} is {name!r}{most}; {meant}known: {', '.join(GPUS)}, or a number of GiB: {key}=48")


def gpus_called(name: str | float) -> list[str]:
    """The GPUs of the table that people and nvidia-smi call so: with or without maker, size, socket and punctuation.

    >>> gpus_called(4090), gpus_called("NVIDIA A100 80GB"), gpus_called("a100"), gpus_called(48)
    (['rtx_4090_24gb'], ['a100_80gb'], ['a100_40gb', 'a100_80gb'], [])
    """
    wanted = re.sub(r"nvidia|geforce|tesla|amd|instinct|sxm\d|pcie|hbm\d|[\s_-]", "", str(name).lower())
    found = []
    for gpu in GPUS:
        model, _, size = gpu.replace("rtx_", "rtx").partition("_")
        number = model.lstrip("abrtx")  # four digits are no size
        if wanted in (model, model + size, f"rtx{model}", *((number,) if len(number) == 4 else ())):
            found.append(gpu)
    return found


def gpu_at_hand() -> int | None:
    """Bytes of the smallest GPU that the driver shows to this process (CUDA_VISIBLE_DEVICES is respected), or None.

    The driver is ROCm's where torch was built for ROCm, else CUDA's; the functions differ in their names alone.
    """
    rocm = _rocm_of_torch()
    driver = _loaded(_rocm_libraries(rocm) if rocm else ["libcuda.so.1"])
    if driver is None:
        return None
    names = _ROCM_FUNCTIONS if rocm else _CUDA_FUNCTIONS
    start, count, get, total = (getattr(driver, name) for name in names)
    n_devices, device, size = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    if start(0) or count(ctypes.byref(n_devices)):
        return None
    sizes = []
    for number in range(n_devices.value):
        if get(ctypes.byref(device), number) == 0 and total(ctypes.byref(size), device) == 0:
            sizes.append(size.value)
    return min(sizes, default=None)


_CUDA_FUNCTIONS = ("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceTotalMem_v2")
_ROCM_FUNCTIONS = ("hipInit", "hipGetDeviceCount", "hipDeviceGet", "hipDeviceTotalMem")


def _torch_folder() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def _rocm_of_torch() -> str | None:
    """The version of ROCm that torch was built for, or None. From torch's version file: its import takes seconds."""
    folder = _torch_folder()
    return runpy.run_path(str(folder / "version.py")).get("hip") if folder else None


def _rocm_libraries(rocm: str) -> list[str]:
    """Where ROCm's library may lie: in torch's wheel, or on the system, where only its major version may be named."""
    name = "libamdhip64.so"
    return [str(_torch_folder() / "lib" / name), name, f"{name}.{rocm.partition('.')[0]}"]


def _loaded(names: list[str]) -> ctypes.CDLL | None:
    """The first library of these that there is."""
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None
