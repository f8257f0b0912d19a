"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _optional
from ..arrays import FloatArray
from ..errors import EngineError
from .base import TensorSpec, check_feeds, check_threads, failed_batch

__all__ = ["OpenVinoEngine", "import_openvino"]

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Import openvino with its telemetry off.

    Its Python package reports every import to an analytics service and writes an identifier into
    the user's home, unless ``openvino_telemetry`` cannot be imported: then it takes a stand-in of
    its own that does nothing. None in ``sys.modules`` is how Python says that a module cannot be
    imported.
    """
    if _TELEMETRY not in sys.modules and importlib.util.find_spec(_TELEMETRY) is not None:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    return _optional.require("openvino", extra="openvino", purpose="run a bundle on OpenVINO")


class OpenVinoEngine:
    """An ONNX graph on OpenVINO's CPU plugin. Thread-safe.

    The plugin would compute float32 graphs in bfloat16 wherever the processor can; here every node
    runs in the precision that the graph gives it. On processors without bfloat16 or float16
    arithmetic such nodes are computed in float32.

    Parameters
    ----------
    model : path of an ``.onnx`` file, or its bytes.
    hint : ``latency``: all threads work on one batch; ``throughput``: threads are shared out among
        the batches of several callers.
    threads : threads for the whole engine; None takes all cores.

    Raises
    ------
    EngineError
        If the graph does not load.
    MissingExtraError
        If openvino is not installed.
    """

    name = "openvino-cpu"

    def __init__(
        self, model: Path | bytes, *, hint: str = "latency", threads: int | None = None
    ) -> None:
        check_threads(threads)
        openvino = import_openvino()
        configuration = {
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_PRECISION_HINT": "f32",  # of what the graph leaves open: nothing
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # activations of int8 weights stay as they are
            # Pinned threads of two processes take the same cores and wait for each other.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            configuration["INFERENCE_NUM_THREADS"] = threads
        shown = "the exported graph" if isinstance(model, bytes) else str(model)
        try:
            core = openvino.Core()
            graph = core.read_model(model if isinstance(model, bytes) else os.fspath(model))
            self._compiled: Any = core.compile_model(graph, "CPU", configuration)
        except Exception as error:  # openvino raises RuntimeError and types of its own
            reason = " ".join(str(error).split())
            raise EngineError(
                f"OpenVINO {openvino.__version__} cannot load {shown}: {reason}"
            ) from error
        self.inputs = tuple(_spec(port) for port in self._compiled.inputs)
        self.outputs = tuple(_spec(port) for port in self._compiled.outputs)
        self._idle: list[Any] = []  # requests that no thread is using
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        check_feeds(self.name, self.inputs, feeds)
        request = self._request()
        try:
            # The inputs are read where they lie; the outputs are copied out of the request.
            results = request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        except Exception as error:  # see __init__
            raise failed_batch(self.name, feeds, error) from error
        answers = {spec.name: results[place] for place, spec in enumerate(self.outputs)}
        with self._lock:
            if self._compiled is not None:
                self._idle.append(request)
        self._check_rows(feeds, answers)
        return answers

    def _check_rows(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], answers: dict[str, FloatArray]
    ) -> None:
        """Raise unless every image has its row: OpenVINO cuts what does not fit, in silence."""
        images = [len(feeds[spec.name]) for spec in self.inputs if spec.shape[:1] == (None,)]
        for spec in self.outputs:
            rows = len(answers[spec.name])
            if images and spec.shape[:1] == (None,) and rows != images[0]:
                raise failed_batch(
                    self.name, feeds, ValueError(f"{spec.name} has {rows} rows, not {images[0]}")
                )

    def _request(self) -> Any:
        with self._lock:
            if self._compiled is None:
                raise EngineError(f"{self.name} was closed; load the bundle again.")
            return self._idle.pop() if self._idle else self._compiled.create_infer_request()

    def close(self) -> None:
        """Release the graph and its buffers; batches under way still end."""
        with self._lock:
            self._compiled = None
            self._idle.clear()


def _spec(port: Any) -> TensorSpec:
    # A tensor that a graph only passes on has several names; its place in the graph is called by
    # the one that the graph gives it.
    place = port.get_node().get_friendly_name().partition("/sink_port")[0]
    name = place if place in port.get_names() else port.any_name
    shape = tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
    return TensorSpec(name, str(np.dtype(port.element_type.to_dtype())), shape)
