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
from .base import TensorSpec, check_feeds, check_threads, failed_batch
from .hardware import cpu_features

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime", "open_session", "tensor_spec"]

_PROVIDER = "CPUExecutionProvider"
_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
}
_ERRORS_ONLY = 3


def import_onnxruntime(extra: str = "cpu") -> Any:
    """Import onnxruntime with its telemetry off.

    From 1.29 on it reports usage unless this variable is set before the import.

    Parameters
    ----------
    extra : what the error names where it is missing: ``cpu`` or ``gpu``.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return _optional.require("onnxruntime", extra=extra, purpose="run a bundle on ONNX Runtime")


def open_session(
    runtime: Any,
    model: Path | bytes,
    options: Any,
    provider: str,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """Return a session of ``model`` on ``provider``, and never on another one.

    Parameters
    ----------
    runtime : the imported onnxruntime.
    options : its ``SessionOptions``.
    settings : of the provider.

    Raises
    ------
    EngineError
        If the graph does not load, or another provider took it.
    """
    options.log_severity_level = _ERRORS_ONLY
    shown = "the exported graph" if isinstance(model, bytes) else str(model)
    try:
        session = runtime.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model),
            sess_options=options,
            providers=[(provider, dict(settings or {}))],
            enable_fallback=0,  # or it would print and try again on the CPU
        )
    except Exception as error:  # onnxruntime raises its own types, none of them public
        raise EngineError(
            f"ONNX Runtime {runtime.__version__} cannot load {shown} on {provider}: {error}"
        ) from error
    took = session.get_providers()
    if took[0] != provider:  # the CPU's stands last in every list
        raise EngineError(
            f"ONNX Runtime was asked for {provider} and took {', '.join(took)}; see "
            "'ltdeploy doctor'."
        )
    return session


class OnnxRuntimeEngine:
    """An ONNX graph on ONNX Runtime's CPU provider. Thread-safe.

    Graphs in bfloat16 do not load: this provider has no arithmetic for them. Those in float16 are
    computed in float32.

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
        check_threads(threads)
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        # Without VNNI, products of uint8 and int8 overflow unless it is told not to; with it, being
        # told makes unsigned int8 graphs of other people slower than float32.
        if not {"avx512_vnni", "avx_vnni"}.intersection(cpu_features()):
            options.add_session_config_entry("session.x64quantprecision", "1")
        # Threads that wait by spinning take the cores from those that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = open_session(runtime, model, options, _PROVIDER)
        self.inputs = tuple(tensor_spec(tensor) for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor_spec(tensor) for tensor in self._session.get_outputs())

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        session = self._session
        if session is None:
            raise EngineError(f"{self.name} was closed; load the bundle again.")
        check_feeds(self.name, self.inputs, feeds)
        names = [spec.name for spec in self.outputs]
        try:
            results = session.run(names, dict(feeds))
        except Exception as error:  # see open_session
            raise failed_batch(self.name, feeds, error) from error
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Release the session."""
        self._session = None


def tensor_spec(tensor: Any) -> TensorSpec:
    """Return what ONNX Runtime says of an input or output."""
    shape = tuple(axis if isinstance(axis, int) else None for axis in tensor.shape)
    return TensorSpec(tensor.name, _DTYPES.get(tensor.type, tensor.type), shape)
