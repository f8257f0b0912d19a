"""What ``ltdeploy doctor`` says of TensorRT: everything that is missing, or the versions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from ..errors import EngineError, LtdeployError
from . import tensorrt_library as library

__all__ = ["diagnose_tensorrt", "missing_of_tensorrt"]

_DRIVER = "libcuda.so.1"


def diagnose_tensorrt() -> str:
    """Return the versions of TensorRT, CUDA and the driver, and the GPU, on one line.

    Raises
    ------
    EngineError
        Naming, on one line, everything that is missing and what to do about it.
    """
    missing = missing_of_tensorrt()
    if missing:
        raise EngineError(" ".join(missing))
    trt, gpu = library.import_tensorrt(), library.find_gpu(0)
    if trt.Builder(library.logger()) is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot make a builder on {gpu}.")
    supports = library.cuda("cudaDriverGetVersion", during="asking for the driver's version")
    runtime = library.cuda("cudaRuntimeGetVersion", during="asking for the runtime's version")
    return (
        f"TensorRT {trt.__version__}, {gpu}, driver for CUDA {_shown(supports)}, runtime "
        f"{_shown(runtime)}, cuda-bindings {version('cuda-bindings')}"
    )


def missing_of_tensorrt() -> list[str]:
    """Return in sentences all that TensorRT lacks here, the driver first."""
    missing: list[str] = []

    def asked(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except LtdeployError as error:
            missing.append(str(error))
            return None

    driver = asked(_driver)
    bindings = asked(library.import_cuda)
    if driver and bindings:  # without a driver there is no GPU, and that was said
        asked(lambda: library.find_gpu(0))
    asked(library.import_tensorrt)
    return missing


def _driver() -> str:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise EngineError(
            f"No NVIDIA driver ({error}): TensorRT needs an NVIDIA GPU with its driver; start a "
            "container with the GPU passed in."
        ) from error
    return _DRIVER


def _shown(number: int) -> str:
    """Return CUDA's version number, such as 13010, as ``13.1``."""
    return f"{number // 1000}.{number % 1000 // 10}"
