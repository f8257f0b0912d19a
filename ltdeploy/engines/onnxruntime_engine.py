"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _optional
from ..arrays import FloatArray
from ..errors import EngineError
from .base import TensorSpec

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime"]

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off.

    From 1.29 on it reports usage unless this variable is set before the import.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return _optional.require("onnxruntime", extra="cpu", purpose="run a bundle on this machine")


class OnnxRuntimeEngine:
    """An ONNX graph on ONNX Runtime's CPU provider. Thread-safe.

    Parameters
    ----------
    model : path of an ``.onnx`` file, or its bytes.
    threads : threads for one run; None takes all cores.

    Raises
    ------
    EngineError
        If the graph does not load, or another provider than the CPU took it.
    """

    name = "onnxruntime-cpu"

    def __init__(self, model: Path | bytes, *, threads: int | None = None) -> None:
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        shown = "the exported graph" if isinstance(model, bytes) else str(model)
        try:
            session = runtime.InferenceSession(
                model if isinstance(model, bytes) else os.fspath(model),
                sess_options=options,
                providers=[_PROVIDER],
            )
        except Exception as error:  # onnxruntime raises its own types, none of them public
            raise EngineError(
                f"ONNX Runtime {runtime.__version__} cannot load {shown}: {error}"
            ) from error
        if session.get_providers() != [_PROVIDER]:
            raise EngineError(
                f"ONNX Runtime was asked for {_PROVIDER} and took {session.get_providers()}; see "
                "'ltdeploy doctor'."
            )
        self._session: Any = session
        self.inputs = tuple(_spec(tensor) for tensor in session.get_inputs())
        self.outputs = tuple(_spec(tensor) for tensor in session.get_outputs())

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        if self._session is None:
            raise EngineError(f"{self.name} was closed; load the bundle again.")
        names = [spec.name for spec in self.outputs]
        try:
            results = self._session.run(names, dict(feeds))
        except Exception as error:  # see __init__
            shapes = {name: array.shape for name, array in feeds.items()}
            raise EngineError(f"{self.name} failed on inputs of shape {shapes}: {error}") from error
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Release the session."""
        self._session = None


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else None for axis in tensor.shape)
    return TensorSpec(tensor.name, _DTYPES.get(tensor.type, tensor.type), shape)
