"""TensorRT's and CUDA's Python bindings: imported late, checked, and asked in one way."""

from __future__ import annotations

import importlib.util
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

from .. import _optional
from ..errors import EngineError, MissingExtraError

__all__ = ["SUPPORTED", "Gpu", "cuda", "find_gpu", "import_cuda", "import_tensorrt", "logger"]

SUPPORTED = ((10, 13), (12, 0))  # from, and up to but without
_KEPT_MESSAGES = 50
_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its product name and compute capability such as ``"9.0"``."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def import_tensorrt() -> Any:
    """Import TensorRT's bindings.

    Raises
    ------
    MissingExtraError
        If they are not installed.
    EngineError
        If NVIDIA's library behind them does not load, or its version is not supported.
    """
    # The wheel of the bindings alone has this second name; NVIDIA's archive has only the first.
    alone = "tensorrt_bindings"
    names = [name for name in ("tensorrt", alone) if importlib.util.find_spec(name) is not None]
    try:
        trt = _optional.require(
            names[0] if names else "tensorrt", extra="tensorrt", purpose="run TensorRT engines"
        )
    except ImportError as error:
        raise EngineError(
            f"TensorRT's Python bindings are installed and NVIDIA's library is not: {error}. "
            "Install it with: pip install 'ltdeploy[tensorrt]', or add its folder to "
            "LD_LIBRARY_PATH."
        ) from error
    found = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if not SUPPORTED[0] <= found < SUPPORTED[1]:
        raise EngineError(
            f"TensorRT {trt.__version__} is installed; expected 10.13 to 11. Install another with: "
            "pip install 'ltdeploy[tensorrt]'"
        )
    return trt


def import_cuda() -> Any:
    """Import ``cuda.bindings.runtime``.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        return _optional.require(
            "cuda.bindings.runtime", extra="tensorrt", purpose="move images to the GPU"
        )
    except ModuleNotFoundError as error:  # other packages share the name 'cuda'
        raise MissingExtraError(
            "cuda-bindings is needed to move images to the GPU and is not installed. Install it "
            "with: pip install 'ltdeploy[tensorrt]'"
        ) from error


def cuda(call: str, *arguments: Any, during: str) -> Any:
    """Call a function of CUDA's runtime and return its value.

    Parameters
    ----------
    call : its name, for example ``"cudaMalloc"``.
    during : what was going on, with the batch's shape, for the message.

    Raises
    ------
    EngineError
        If CUDA reports an error; the text names the call and the batch.
    """
    runtime = import_cuda()
    error, *values = getattr(runtime, call)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(error)
        advice = (
            "Give tensorrt:max_batch or contexts a smaller value."
            if error.name == _OUT_OF_MEMORY
            else "What was answered before it is right; start again from there."
        )
        raise EngineError(
            f"CUDA failed in {call} while {during}: {error.name} ({text.decode()}). {advice}"
        )
    return values[0] if values else None


def find_gpu(device: int) -> Gpu:
    """Select a CUDA device for this thread and say what it is.

    Raises
    ------
    EngineError
        If there is no driver or no such device.
    """
    runtime = import_cuda()
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        _, text = runtime.cudaGetErrorString(error)
        reason = text.decode() if error != runtime.cudaError_t.cudaSuccess else "it counts none"
        raise EngineError(
            f"TensorRT needs an NVIDIA GPU and its driver, and CUDA finds none here: {reason}. "
            "See 'ltdeploy doctor'."
        )
    if device >= count:
        raise EngineError(f"There is no CUDA device {device}; expected 0 to {count - 1}.")
    cuda("cudaSetDevice", device, during=f"selecting device {device}")
    told = cuda("cudaGetDeviceProperties", device, during=f"asking what device {device} is")
    name = told.name.decode() if isinstance(told.name, bytes) else str(told.name)
    return Gpu(name.rstrip("\0"), f"{told.major}.{told.minor}")


@cache
def logger() -> Any:
    """Return the process's one TensorRT logger; ``take_errors()`` gives what it heard since.

    TensorRT keeps the first logger that any builder or runtime brings and ignores later ones.
    """
    trt = import_tensorrt()

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        """Keeps the last errors instead of printing them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=_KEPT_MESSAGES)

        def log(self, severity: Any, msg: str) -> None:
            """Keep an error; drop what is less."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(msg)

        def take_errors(self) -> list[str]:
            """Return the errors since the last call."""
            taken = []
            while self._errors:
                taken.append(self._errors.popleft())
            return taken

    return Logger()
