"""What this machine has that an engine could use: CPU features and NVIDIA devices."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

from ..errors import EngineError

__all__ = ["cpu_features", "nvidia_devices"]

_CPU_INFO = Path("/proc/cpuinfo")
# What quantised and bfloat16 graphs are fast with, as Linux names it.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx_vnni")
_DRIVER = "libcuda.so.1"
_NAME_LENGTH = 256


def cpu_features(info: Path = _CPU_INFO) -> tuple[str, ...]:
    """Return which of the instruction sets that matter here this processor has.

    Empty where Linux does not tell, as on processors that are not x86.
    """
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return tuple(feature for feature in _FEATURES if feature in flags)


def nvidia_devices() -> tuple[str, ...]:
    """Return the names of the NVIDIA devices that answer, asked through the driver.

    What it returns on a machine with a GPU has not been run; the errors have.

    Raises
    ------
    EngineError
        If there is no driver, or it finds no device; the text says which.
    """
    if not list(Path("/dev").glob("nvidia*")) and platform.system() == "Linux":
        place = "this machine has no /dev/nvidia*"
    else:
        place = "there is /dev/nvidia*, so the driver's library is missing or not on the path"
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise EngineError(
            f"No NVIDIA driver ({error}; {place}). Install the driver, or start the container with "
            "the GPU passed in."
        ) from error
    code = driver.cuInit(0)
    count = ctypes.c_int()
    code = code or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        raise EngineError(
            f"The NVIDIA driver finds no device (CUDA error {code}); see what nvidia-smi says, and "
            "whether CUDA_VISIBLE_DEVICES hides it."
        )
    return tuple(_name(driver, number) for number in range(count.value))


def _name(driver: ctypes.CDLL, number: int) -> str:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, _NAME_LENGTH, device)
    return name.value.decode(errors="replace")
