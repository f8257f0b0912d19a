"""Which engines work here, found out by running each, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .._optional import require
from ..errors import EngineError, LtdeployError
from ..manifest import PRECISIONS
from .base import Engine
from .choice import candidates
from .hardware import nvidia_devices

__all__ = ["diagnose_choice", "diagnose_engines", "missing_for"]

# A serialised ONNX model (opset 17) of one node, y = Relu(x), with x and y float32 of length 1.
_ONE_NODE = bytes.fromhex(
    "080812003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a0808011204"
    "0a020801620f0a0179120a0a08080112040a02080142040a001011"
)
_PROVIDERS = {
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}


def diagnose_engines() -> dict[str, dict[str, Any]]:
    """Return by engine whether it ``works`` and a ``detail``: what it is, or all that is missing.

    An import alone proves nothing: each runs a graph of one node.
    """
    checks: dict[str, Callable[[], str]] = {
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        **{name: partial(_on_gpu, provider) for name, provider in _PROVIDERS.items()},
        "tensorrt": _tensorrt,
        "torch": _torch,
    }
    return {name: _try(check) for name, check in checks.items()}


def missing_for(engine: str) -> list[str]:
    """Return in sentences all that an engine on a GPU lacks here, the driver first."""
    if engine == "tensorrt":
        from .tensorrt_doctor import missing_of_tensorrt

        return missing_of_tensorrt()
    provider = _PROVIDERS.get(engine)
    return [] if provider is None else _missing_of(provider)


def diagnose_choice(engines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what ``auto`` takes here for a new bundle of each precision, and why not the others.

    Parameters
    ----------
    engines : as :func:`diagnose_engines` gives them; one that does not work is not taken.
    """
    choice: dict[str, Any] = {}
    for precision in PRECISIONS:
        against = {}
        for candidate in candidates(precision):
            found = engines[candidate.name]
            against[candidate.name] = candidate.against or (
                None if found["works"] else found["detail"]
            )
        takes = next((name for name, reason in against.items() if reason is None), None)
        for name, reason in against.items():
            if reason is None and name != takes:
                against[name] = f"{takes} works, and is tried before it."
        choice[precision] = {"takes": takes, "against": against}
    return choice


def _try(check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"works": True, "detail": check()}
    except Exception as error:  # whatever a broken installation raises is what we are to report
        return {"works": False, "detail": str(error).splitlines()[0] if str(error) else repr(error)}


def _run_one_node(engine: Engine) -> None:
    try:
        (answer,) = engine.run({"x": np.array([2.5], dtype=np.float32)}).values()
    finally:
        engine.close()
    if answer.tolist() != [2.5]:
        raise EngineError(f"max(0, 2.5) came out as {answer.tolist()}")


def _onnxruntime() -> str:
    from .onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime

    runtime = import_onnxruntime()
    _run_one_node(OnnxRuntimeEngine(_ONE_NODE))
    providers = ", ".join(runtime.get_available_providers())
    return f"{runtime.__version__}, CPU; fp32, fp16 as fp32, int8; providers built in: {providers}"


def _openvino() -> str:
    from .openvino_engine import OpenVinoEngine, import_openvino

    openvino = import_openvino()
    _run_one_node(OpenVinoEngine(_ONE_NODE))
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    low = "bf16" if "BF16" in able else "bf16 as fp32 (this processor has no bfloat16)"
    half = "fp16" if "FP16" in able else "fp16 as fp32"
    return f"{openvino.__version__.partition('-')[0]}, CPU; fp32, {half}, {low}, int8"


def _missing_of(provider: str) -> list[str]:
    from .onnxruntime_gpu import require_provider

    missing: list[str] = []
    for needed in (nvidia_devices, lambda: require_provider(provider)):
        try:
            needed()
        except LtdeployError as error:
            if not (missing and "libcuda.so" in str(error)):  # the driver, said already
                missing.append(str(error))
    return missing


def _on_gpu(provider: str) -> str:
    from .onnxruntime_gpu import OnnxRuntimeGpuEngine, require_provider

    missing = _missing_of(provider)
    if missing:
        raise EngineError(" ".join(missing))
    _run_one_node(OnnxRuntimeGpuEngine(_ONE_NODE, provider, {"device_id": "0"}))
    return f"{require_provider(provider).__version__} on {', '.join(nvidia_devices())}"


def _tensorrt() -> str:
    from .tensorrt_doctor import diagnose_tensorrt

    return diagnose_tensorrt()


def _torch() -> str:
    torch: Any = require("torch", extra="torch", purpose="run the reference")
    total = float(torch.ones(2, 2).matmul(torch.ones(2, 2)).sum())
    if total != 8.0:
        raise EngineError(f"a 2 × 2 product of ones sums to {total}, expected 8")
    return f"{torch.__version__}, CPU (the reference for verification)"
