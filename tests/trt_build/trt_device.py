"""A CUDA device made of memory blocks: what ``cuda.bindings.runtime`` would do, in order.

Functions have the signatures of the real bindings; copies and computations wait on their stream
until it is synchronised, so that who does not wait reads what was there before.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

__all__ = ["Device"]

Work = Callable[[], None]


class Device:
    """A stand-in for ``cuda.bindings.runtime``; what it does not act on is the real one.

    Attributes
    ----------
    calls : the functions called, in order.
    fails : by function, how many calls succeed before it fails for good, with an error's name.
    gpu : name and compute capability that it gives itself.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        self._blocks: dict[int, Any] = {}
        self._waiting: dict[int, list[Work]] = {}
        self._captured: dict[int, list[Work]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._handles = 0
        self.calls: list[str] = []
        self.fails: dict[str, tuple[int, str]] = {}
        self.gpu = ("NVIDIA Test 1", 9, 0)

    def __getattr__(self, name: str) -> Any:
        thing = getattr(self._real, name)
        if not callable(thing) or isinstance(thing, type) or name == "cudaGetErrorString":
            return thing
        signature = inspect.signature(thing)

        def call(*arguments: Any) -> tuple[Any, ...]:
            signature.bind(*arguments)
            self.calls.append(name)
            left, error = self.fails.get(name, (1, ""))
            if name in self.fails:
                self.fails[name] = (left - 1, error)
            if left <= 0:
                return (getattr(self._real.cudaError_t, error), None)
            values = getattr(self, f"_{name}")(*arguments)
            return (self._real.cudaError_t.cudaSuccess, *(() if values is None else (values,)))

        return call

    @property
    def held(self) -> int:
        """Return how many blocks, streams and graphs were not given back."""
        return len(self._blocks) + len(self._waiting) + len(self._graphs)

    def enqueue(self, stream: int, work: Work) -> None:
        """Put work on a stream, or into the graph that captures it."""
        self._captured.get(stream, self._waiting[stream]).append(work)

    def _handle(self) -> int:
        self._handles += 1
        return self._handles

    def _cudaGetDeviceCount(self) -> int:
        return 1

    def _cudaSetDevice(self, device: int) -> None:
        assert device == 0

    def _cudaGetDeviceProperties(self, device: int) -> Any:
        name, major, minor = self.gpu
        for field in ("name", "major", "minor"):
            assert hasattr(self._real.cudaDeviceProp, field)
        return SimpleNamespace(name=name.encode(), major=major, minor=minor)

    def _cudaMalloc(self, size: int) -> int:
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self._blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaFree(self, address: int) -> None:
        del self._blocks[address]

    _cudaMallocHost = _cudaMalloc
    _cudaFreeHost = _cudaFree

    def _cudaStreamCreate(self) -> Any:
        handle = self._handle()
        self._waiting[handle] = []
        return self._real.cudaStream_t(handle)

    def _cudaStreamDestroy(self, stream: Any) -> None:
        del self._waiting[int(stream)]

    def _cudaStreamSynchronize(self, stream: Any) -> None:
        waiting = self._waiting[int(stream)]
        while waiting:
            waiting.pop(0)()

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> None:
        assert isinstance(kind, self._real.cudaMemcpyKind)
        self.enqueue(int(stream), lambda: ctypes.memmove(target, source, size) and None)

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        assert isinstance(mode, self._real.cudaStreamCaptureMode)
        assert not self._waiting[int(stream)]
        self._captured[int(stream)] = []

    def _cudaStreamEndCapture(self, stream: Any) -> int:
        handle = self._handle()
        self._graphs[handle] = self._captured.pop(int(stream))
        return handle

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        handle = self._handle()
        self._graphs[handle] = list(self._graphs[graph])
        return handle

    def _cudaGraphLaunch(self, graph: int, stream: Any) -> None:
        self._waiting[int(stream)].extend(self._graphs[graph])

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self._graphs[graph]

    _cudaGraphExecDestroy = _cudaGraphDestroy
