"""Which engine ``auto`` takes, and why it did not take the others."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..errors import LtdeployError
from .hardware import nvidia_devices
from .onnxruntime_engine import OnnxRuntimeEngine
from .openvino_engine import OpenVinoEngine, import_openvino

__all__ = ["AUTO_OPTIONS", "AUTO_ORDER", "Candidate", "candidates", "computes", "refusal"]

# The fastest first. The TensorRT provider of ONNX Runtime is not among them: it builds for minutes
# on the first load, which nobody asked for.
AUTO_ORDER = ("tensorrt", "onnxruntime-cuda", "openvino", "onnxruntime")
# A plan is taken where one is ready; building one takes minutes.
AUTO_OPTIONS = {"tensorrt": {"rebuild": "off"}}
_BFLOAT16_ON_ONNX_RUNTIME = (
    "ONNX Runtime's CPU provider has no bfloat16 arithmetic: use --engine openvino, or export with "
    "--precision fp32 or int8."
)


@dataclass(frozen=True)
class Candidate:
    """An engine that ``auto`` thinks of; ``against`` is one sentence why not, or None."""

    name: str
    against: str | None = None


def refusal(engine: str, precision: str) -> str | None:
    """Return why an engine cannot run graphs of a precision, or None where it can."""
    if engine == "onnxruntime" and precision == "bf16":
        return _BFLOAT16_ON_ONNX_RUNTIME
    return None


def computes(engine: str, precision: str) -> bool:
    """Tell whether an engine rounds as a precision does; some on the CPU compute it in float32.

    Parameters
    ----------
    engine : the name that it gave itself.
    """
    if precision in ("fp32", "int8"):
        return True
    if engine == OpenVinoEngine.name:
        able = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return precision.upper() in able
    return engine != OnnxRuntimeEngine.name


def candidates(precision: str = "fp32", plans: Path | None = None) -> list[Candidate]:
    """Return the engines in the order in which ``auto`` tries them, and what speaks against each.

    Parameters
    ----------
    precision : of the graph.
    plans : folder of the bundle's engine files.
    """
    return [Candidate(name, _against(name, precision, plans)) for name in AUTO_ORDER]


def _against(engine: str, precision: str, plans: Path | None) -> str | None:
    if engine == "tensorrt":
        return _no_device() or _missing("tensorrt", "tensorrt") or _no_plan(plans)
    if engine == "onnxruntime-cuda":
        return _no_device() or _missing("onnxruntime", "gpu") or _no_cuda_provider()
    if engine == "openvino":
        return _missing("openvino", "openvino")
    return _missing("onnxruntime", "cpu") or refusal(engine, precision)


def _missing(module: str, extra: str) -> str | None:
    if importlib.util.find_spec(module) is not None:
        return None
    return f"{module} is not installed: pip install 'ltdeploy[{extra}]'"


def _no_plan(plans: Path | None) -> str | None:
    if plans is not None and any(plans.glob("*.plan")):
        return None
    return "The bundle holds no TensorRT plan; --engine tensorrt builds one."


def _no_device() -> str | None:
    try:
        nvidia_devices()
    except LtdeployError as error:
        return str(error)
    return None


def _no_cuda_provider() -> str | None:
    from .onnxruntime_gpu import CUDA, require_provider

    try:
        require_provider(CUDA)
    except LtdeployError as error:
        return str(error)
    return None
