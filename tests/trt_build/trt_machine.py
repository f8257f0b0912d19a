"""A machine with a GPU and TensorRT that are not there: recorder, device, and one small network.

Its network answers ``logits[n, c] = (c + 1) · mean(images[n])``, times ``gain``.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from trt_device import Device
from trt_recorder import Recorder

from ltdeploy.engines import tensorrt_library as library

__all__ = ["Machine"]


class Machine:
    """The stand-ins, wired up.

    Attributes
    ----------
    recorder, device : of TensorRT and of CUDA.
    shapes : the network's tensors; -1 is the batch.
    gain : factor of its logits; refitting sets it.
    out_of_memory_from : workspaces of this many bytes and more make the builder fail.
    """

    def __init__(self, described: dict[str, Any], real_cuda: Any) -> None:
        self.recorder = Recorder(described)
        self.device = Device(real_cuda)
        self.shapes = {"images": (-1, 32, 32, 3), "logits": (-1, 6)}
        self.gain = 1.0
        self.out_of_memory_from = 1 << 62
        self.recorder.answers.update(self._builder() | self._engine() | self._context())
        self.trt = self.recorder.trt

    def say(self, text: str) -> None:
        """Let TensorRT log an error."""
        library.logger().log(self.trt.ILogger.Severity.ERROR, text)

    def expected(self, images: np.ndarray) -> np.ndarray:
        """Return the network's logits."""
        means = images.reshape(len(images), math.prod(images.shape[1:])).mean(axis=1)
        return (self.gain * means[:, None] * np.arange(1, 7)).astype(np.float32)

    def _builder(self) -> dict[str, Any]:
        def tensor(network: Any, index: int) -> Any:
            made = self.recorder.make("ITensor")
            object.__setattr__(made, "_set_name", "images")
            object.__setattr__(made, "_set_shape", self.shapes["images"])
            return made

        def build(builder: Any, network: Any, config: Any) -> bytes | None:
            if config._workspace >= self.out_of_memory_from:
                self.say("Out of memory: requested more than there is")
                return None
            return b"a plan"

        def set_limit(config: Any, pool: Any, size: int) -> None:
            config._workspace = size

        return {
            "INetworkDefinition.num_inputs": 1,
            "INetworkDefinition.num_layers": 9,
            "INetworkDefinition.get_input": tensor,
            "OnnxParser.num_errors": 0,
            "IBuilderConfig.get_memory_pool_limit": 1 << 30,
            "IBuilderConfig.set_memory_pool_limit": set_limit,
            "Builder.build_serialized_network": build,
            "ITimingCache.serialize": b"timings",
        }

    def _engine(self) -> dict[str, Any]:
        names = list(self.shapes)

        def mode(engine: Any, name: str) -> Any:
            modes = self.trt.TensorIOMode
            return modes.INPUT if name == "images" else modes.OUTPUT

        def dtype(engine: Any, name: str) -> Any:
            return self.trt.DataType.UINT8 if name == "images" else self.trt.DataType.FLOAT

        return {
            "ICudaEngine.num_io_tensors": 2,
            "ICudaEngine.get_tensor_name": lambda engine, index: names[index],
            "ICudaEngine.get_tensor_shape": lambda engine, name: self.shapes[name],
            "ICudaEngine.get_tensor_dtype": dtype,
            "ICudaEngine.get_tensor_mode": mode,
            "ICudaEngine.device_memory_size_v2": 4096,
            "ICudaEngine.refittable": True,
            "OnnxParserRefitter.num_errors": 0,
        }

    def _context(self) -> dict[str, Any]:
        def set_shape(context: Any, name: str, shape: tuple[int, ...]) -> bool:
            context._shape = shape
            return True

        def set_address(context: Any, name: str, address: int) -> bool:
            context._addresses = getattr(context, "_addresses", {}) | {name: address}
            return True

        def execute(context: Any, stream: int) -> bool:
            shape, addresses = context._shape, dict(context._addresses)

            def compute() -> None:
                size = math.prod(shape)
                images = np.frombuffer(ctypes.string_at(addresses["images"], size), np.uint8)
                logits = self.expected(images.reshape(shape)).tobytes()
                ctypes.memmove(addresses["logits"], logits, len(logits))

            self.device.enqueue(stream, compute)
            return True

        return {
            "IExecutionContext.set_input_shape": set_shape,
            "IExecutionContext.set_tensor_address": set_address,
            "IExecutionContext.execute_async_v3": execute,
        }
