"""Run a deserialised TensorRT engine: contexts, streams, buffers, CUDA graphs.

The one path that is right on TensorRT 10 and 11: ``set_input_shape``, ``set_tensor_address``,
``execute_async_v3``. Untested on a GPU: the order of calls and their arguments are checked against
the signatures of both majors' bindings, on a machine without one.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from . import tensorrt_library as library
from .base import TensorSpec
from .tensorrt_library import cuda

__all__ = ["Lane", "Tensor", "deserialise", "tensors_of"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_GRAPHS_PER_LANE = 8  # each holds a context; a stream of odd batch sizes must not fill the memory


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine."""

    spec: TensorSpec
    is_input: bool

    def shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape at a batch size."""
        return tuple(batch if axis is None else axis for axis in self.spec.shape)

    def bytes(self, batch: int) -> int:
        """Return the memory it takes at a batch size."""
        return math.prod(self.shape(batch)) * np.dtype(self.spec.dtype).itemsize


def deserialise(plan: bytes, lean_runtime: str | None = None) -> Any:
    """Return the ``ICudaEngine`` of a plan that may be trusted.

    Parameters
    ----------
    lean_runtime : path of the library of the older version that built the plan, or None.

    Raises
    ------
    EngineError
        If TensorRT refuses the plan or the library.
    """
    trt = library.import_tensorrt()
    log = library.logger()
    log.take_errors()
    runtime = trt.Runtime(log)
    if lean_runtime is not None:
        if not Path(lean_runtime).is_file():
            raise EngineError(f"There is no lean runtime at {lean_runtime}.")
        runtime = runtime.load_runtime(lean_runtime)
        if runtime is None:
            raise EngineError(
                f"TensorRT {trt.__version__} cannot load the lean runtime {lean_runtime}: "
                f"{_reason()}"
            )
    # Off by default; said aloud, since code inside a plan would run in this process.
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot load this plan: {_reason()}")
    return engine


def tensors_of(engine: Any) -> tuple[Tensor, ...]:
    """Return an engine's inputs and outputs, in its own order.

    Raises
    ------
    EngineError
        If one has a type that NumPy has not, or an axis beside the first that is not fixed.
    """
    trt = library.import_tensorrt()
    found = []
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        kind = engine.get_tensor_dtype(name).name
        shape = tuple(int(axis) for axis in engine.get_tensor_shape(name))
        if kind not in _DTYPES or -1 in shape[1:]:
            raise EngineError(
                f"The TensorRT engine's tensor {name!r} is {kind} of shape {shape}; expected "
                f"one of {', '.join(_DTYPES)} with all axes but the first fixed."
            )
        spec = TensorSpec(name, _DTYPES[kind], tuple(None if a == -1 else a for a in shape))
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found.append(Tensor(spec, is_input))
    return tuple(found)


class Lane:
    """One stream with buffers for the largest batch, and the contexts that run on it.

    Not for two threads at once: an engine has several lanes. All contexts of a lane share its
    scratch memory, which is right because its stream runs one after the other. A CUDA graph holds
    its context's state, so that each batch size that is captured has a context of its own.

    Parameters
    ----------
    engine : ``ICudaEngine``.
    tensors : as :func:`tensors_of` gives them.
    max_batch : the profile's largest batch.
    cuda_graph : capture and replay.

    Raises
    ------
    EngineError
        If the GPU's memory does not suffice.
    """

    def __init__(
        self, engine: Any, tensors: Iterable[Tensor], max_batch: int, *, cuda_graph: bool
    ) -> None:
        self._engine = engine
        self._tensors = tuple(tensors)
        self._cuda_graph = cuda_graph
        self._release = contextlib.ExitStack()
        self._graphs: dict[int, tuple[Any, Any]] = {}  # batch size → executable graph, its context
        what = f"making room for batches of {max_batch}"
        try:
            self._stream = cuda("cudaStreamCreate", during=what)
            self._release.callback(cuda, "cudaStreamDestroy", self._stream, during="closing")
            self._device = {
                tensor.spec.name: self._device_memory(tensor.bytes(max_batch), what)
                for tensor in self._tensors
            }
            self._host = {
                tensor.spec.name: self._pinned_memory(tensor, max_batch, what)
                for tensor in self._tensors
            }
            size = int(engine.device_memory_size_v2)
            self._scratch = (self._device_memory(size, what), size)
            self._release.callback(self._drop_contexts)  # before the memory that they use
            self._context = self._new_context()
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], batch: int) -> dict[str, npt.NDArray[Any]]:
        """Run one batch that fits the profile and return copies of the outputs.

        Raises
        ------
        EngineError
            If a call of TensorRT or CUDA fails; the text names it and the batch.
        """
        what = f"running a batch of {batch}"
        for tensor in self._tensors:
            if tensor.is_input:
                self._rows(tensor, batch)[...] = feeds[tensor.spec.name]
        if not self._cuda_graph:
            self._enqueue(self._context, batch, what)
        elif batch in self._graphs:
            cuda("cudaGraphLaunch", self._graphs[batch][0], self._stream, during=what)
        elif len(self._graphs) < _GRAPHS_PER_LANE:
            self._capture(batch, what)
        else:
            self._enqueue(self._context, batch, what)
        cuda("cudaStreamSynchronize", self._stream, during=what)
        return {
            tensor.spec.name: self._rows(tensor, batch).copy()
            for tensor in self._tensors
            if not tensor.is_input
        }

    def close(self) -> None:
        """Release everything; a GPU that is lost already is not asked to."""
        with contextlib.suppress(EngineError):
            self._release.close()

    def _drop_contexts(self) -> None:
        self._graphs.clear()
        self._context = None

    def _capture(self, batch: int, what: str) -> None:
        """Run a batch, then record the same calls; the run that is recorded computes nothing."""
        runtime = library.import_cuda()
        context = self._new_context()
        self._enqueue(context, batch, what)  # TensorRT initialises itself in the first run
        cuda("cudaStreamSynchronize", self._stream, during=what)
        # Other threads go on calling CUDA meanwhile: only this one's calls are recorded.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        what = f"capturing a CUDA graph for a batch of {batch} (tensorrt:cuda_graph=off avoids it)"
        cuda("cudaStreamBeginCapture", self._stream, mode, during=what)
        self._enqueue(context, batch, what, shaped=True)
        graph = cuda("cudaStreamEndCapture", self._stream, during=what)
        executable = cuda("cudaGraphInstantiate", graph, 0, during=what)
        self._release.callback(cuda, "cudaGraphExecDestroy", executable, during="closing")
        cuda("cudaGraphDestroy", graph, during=what)
        self._graphs[batch] = (executable, context)

    def _enqueue(self, context: Any, batch: int, what: str, *, shaped: bool = False) -> None:
        """Put the copies and the computation on the stream."""
        runtime = library.import_cuda()
        inputs = [tensor for tensor in self._tensors if tensor.is_input]
        outputs = [tensor for tensor in self._tensors if not tensor.is_input]
        if not shaped:
            for tensor in inputs:
                shape = tensor.shape(batch)
                if not context.set_input_shape(tensor.spec.name, shape):
                    raise _refused(f"set_input_shape({tensor.spec.name!r}, {shape})", what)
        to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for tensor in inputs:
            device, host, size = self._ends(tensor, batch)
            cuda("cudaMemcpyAsync", device, host, size, to_device, self._stream, during=what)
        if not context.execute_async_v3(int(self._stream)):
            raise _refused("execute_async_v3", what)
        for tensor in outputs:
            device, host, size = self._ends(tensor, batch)
            cuda("cudaMemcpyAsync", host, device, size, to_host, self._stream, during=what)

    def _new_context(self) -> Any:
        trt = library.import_tensorrt()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise _refused("create_execution_context", "opening the engine")
        context.set_device_memory(*self._scratch)
        for name, address in self._device.items():
            if not context.set_tensor_address(name, address):
                raise _refused(f"set_tensor_address({name!r})", "opening the engine")
        return context

    def _rows(self, tensor: Tensor, batch: int) -> npt.NDArray[Any]:
        """Return the part of a host buffer that a batch takes."""
        flat = self._host[tensor.spec.name][: tensor.bytes(batch)]
        return flat.view(tensor.spec.dtype).reshape(tensor.shape(batch))

    def _ends(self, tensor: Tensor, batch: int) -> tuple[int, int, int]:
        """Return the addresses on the device and on the host, and the bytes of a batch."""
        name = tensor.spec.name
        return self._device[name], int(self._host[name].ctypes.data), tensor.bytes(batch)

    def _device_memory(self, size: int, what: str) -> int:
        address = cuda("cudaMalloc", max(size, 1), during=what)
        self._release.callback(cuda, "cudaFree", address, during="closing")
        return int(address)

    def _pinned_memory(self, tensor: Tensor, batch: int, what: str) -> npt.NDArray[np.uint8]:
        size = tensor.bytes(batch)
        address = cuda("cudaMallocHost", size, during=what)
        self._release.callback(cuda, "cudaFreeHost", address, during="closing")
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))


def _refused(call: str, what: str) -> EngineError:
    return EngineError(
        f"TensorRT refused {call} while {what}: {_reason()}. What was answered before it is right; "
        "build the engine again, or run the bundle with onnxruntime-cuda."
    )


def _reason() -> str:
    errors = library.logger().take_errors()
    return errors[-1].strip() if errors else "it gives no reason"
