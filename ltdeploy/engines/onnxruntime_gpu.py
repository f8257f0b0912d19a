"""ONNX Runtime on an NVIDIA GPU: its CUDA and its TensorRT provider.

What an error of a missing package, library, driver or device says was run with the real
onnxruntime-gpu on a machine without a GPU; the rest of this module has not run on one.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._optional import require
from ..arrays import FloatArray
from ..bundle import Bundle
from ..errors import EngineError
from ..files import default_cache
from .base import TensorSpec, check_feeds, failed_batch
from .cuda_graphs import GraphReplay
from .hardware import nvidia_devices
from .onnxruntime_engine import import_onnxruntime, open_session, tensor_spec

__all__ = [
    "CUDA",
    "TENSORRT",
    "OnnxRuntimeGpuEngine",
    "misplaced_nodes",
    "open_cuda",
    "open_tensorrt_provider",
    "require_provider",
    "split",
]

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_LIBRARIES = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
# Where pip puts TensorRT, and what of it the provider links.
_TENSORRT_WHEEL = "tensorrt_libs"
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
# ONNX Runtime computes shapes, a few integers, on the CPU whatever is asked for: it is faster, and
# no part of the model falls back with them. The same operators on anything else are the model.
_SHAPE_OPERATORS = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "Identity",
        "Mul",
        "Range",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    }
)
# TensorRT tunes for the second and builds again above the third; larger batches are split.
_PROFILE = (1, 16, 64)


def open_cuda(bundle: Bundle, *, device: int = 0, graphs: bool = False) -> OnnxRuntimeGpuEngine:
    """Return the bundle's graph on the CUDA provider.

    Parameters
    ----------
    device : number of the CUDA device.
    graphs : capture one CUDA graph for each of the first eight batch sizes, and replay it: less
        work for the CPU per batch, but one batch at a time.
    """
    settings = {"device_id": str(device), "use_tf32": "0"}  # 10 bits of a float32's 23 are not it
    if graphs:
        settings["enable_cuda_graph"] = "1"
    return OnnxRuntimeGpuEngine(bundle.graph_path, CUDA, settings, graphs=graphs)


def open_tensorrt_provider(
    bundle: Bundle, *, device: int = 0, cache: bool = True
) -> OnnxRuntimeGpuEngine:
    """Return the bundle's graph on the TensorRT provider, which builds an engine first.

    The precision is the graph's: without its own switches for fp16, bf16 and int8 the provider
    builds strongly typed networks.

    Parameters
    ----------
    device : number of the CUDA device.
    cache : keep the built engine in the user's cache folder, so that the next load takes it from
        there; never in the bundle, whose files other people may have written.
    """
    graph = bundle.manifest.graphs[0]
    low, tuned, most = _PROFILE
    settings = {"device_id": str(device)}
    for setting, images in (("min", low), ("opt", tuned), ("max", most)):
        settings[f"trt_profile_{setting}_shapes"] = ",".join(
            f"{entry.name}:"
            + "x".join(str(images if isinstance(a, str) else a) for a in entry.shape)
            for entry in graph.inputs
        )
    if cache:
        settings |= _cached(bundle.manifest.files[graph.file].sha256)
    return OnnxRuntimeGpuEngine(bundle.graph_path, TENSORRT, settings, most=most)


def _cached(sha256: str) -> dict[str, str]:
    """Return the settings that keep a graph's engine; none, and a warning, where nothing can be."""
    folder = default_cache() / "onnxruntime-tensorrt" / sha256
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        warnings.warn(
            f"The engine cannot be kept in {folder} ({error.strerror or error}); it is built again "
            "with every load. Set LTDEPLOY_CACHE to a folder that can be written to.",
            RuntimeWarning,
            stacklevel=3,
        )
        return {}
    return {
        setting: value
        for kind in ("engine", "timing")
        for setting, value in (
            (f"trt_{kind}_cache_enable", "1"),
            (f"trt_{kind}_cache_path", str(folder)),
        )
    }


class OnnxRuntimeGpuEngine:
    """An ONNX graph on a GPU provider of ONNX Runtime, every node of it. Thread-safe.

    Untested on a GPU.

    Parameters
    ----------
    model : path of an ``.onnx`` file, or its bytes.
    provider : :data:`CUDA` or :data:`TENSORRT`.
    settings : of the provider, by its own names.
    graphs : replay CUDA graphs; the settings must allow it.
    most : images per run; larger batches are split. None for any number.

    Raises
    ------
    EngineError
        If the provider, a library, the driver or a device is missing, or a node would run
        elsewhere.
    MissingExtraError
        If onnxruntime is not installed.
    """

    def __init__(
        self,
        model: Path | bytes,
        provider: str,
        settings: Mapping[str, str],
        *,
        graphs: bool = False,
        most: int | None = None,
    ) -> None:
        self.name = "onnxruntime-cuda" if provider == CUDA else "onnxruntime-tensorrt"
        runtime = require_provider(provider)
        devices = nvidia_devices()
        device = int(settings["device_id"])
        if device >= len(devices):
            raise EngineError(
                f"{self.name}:device is {device}; expected 0 to {len(devices) - 1}: "
                f"{', '.join(devices)}."
            )
        options = runtime.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = open_session(runtime, model, options, provider, settings)
        elsewhere = misplaced_nodes(session, provider, model)
        if elsewhere:
            raise EngineError(
                f"{self.name} cannot run the whole graph: {len(elsewhere)} nodes would run "
                f"elsewhere, the first are {', '.join(elsewhere[:5])}. Use another engine, or "
                "export with another --precision."
            )
        self._session: Any = session
        self._most = most
        self.inputs = tuple(tensor_spec(tensor) for tensor in session.get_inputs())
        self.outputs = tuple(tensor_spec(tensor) for tensor in session.get_outputs())
        self._graphs = (
            GraphReplay(runtime, session, self.inputs, self.outputs, ("cuda", device))
            if graphs
            else None
        )

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        session = self._session
        if session is None:
            raise EngineError(f"{self.name} was closed; load the bundle again.")
        check_feeds(self.name, self.inputs, feeds)
        names = [spec.name for spec in self.outputs]
        try:
            if self._graphs is not None:
                return self._graphs.run(feeds)
            parts = [session.run(names, part) for part in split(feeds, self.inputs, self._most)]
        except Exception as error:  # onnxruntime raises its own types, none of them public
            raise failed_batch(self.name, feeds, error) from error
        joined = (
            parts[0] if len(parts) == 1 else [np.concatenate(p) for p in zip(*parts, strict=True)]
        )
        return dict(zip(names, joined, strict=True))

    def close(self) -> None:
        """Release the session and what it holds on the device."""
        self._graphs = None
        self._session = None


def require_provider(provider: str) -> Any:
    """Return onnxruntime if it has the provider and its libraries load.

    Raises
    ------
    EngineError
        Saying what is missing: the package, a library or the driver.
    MissingExtraError
        If onnxruntime is not installed.
    """
    runtime = import_onnxruntime("gpu")
    if len(installed := [name for name in _DISTRIBUTIONS if _is_installed(name)]) > 1:
        raise EngineError(
            f"Both {' and '.join(installed)} are installed; each overwrites the other's files. "
            "Remove both, then install one: pip uninstall -y onnxruntime onnxruntime-gpu && "
            "pip install 'ltdeploy[gpu]'"
        )
    if provider not in runtime.get_available_providers():
        raise EngineError(
            f"The installed onnxruntime {runtime.__version__} has no {provider}: it is built for "
            f"{', '.join(runtime.get_available_providers())}. For the GPU: pip uninstall -y "
            "onnxruntime && pip install 'ltdeploy[gpu]'"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        runtime.preload_dlls()
    _preload_tensorrt()
    reason = _load_error(Path(runtime.__file__).parent / "capi", provider)
    if reason is not None:
        raise EngineError(
            f"{provider} of onnxruntime {runtime.__version__} does not load: {reason}. "
            f"{_advice(reason)}"
        )
    return runtime


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _preload_tensorrt() -> None:
    """Load TensorRT 10 from where pip puts it, off the loader's path."""
    found = importlib.util.find_spec(_TENSORRT_WHEEL)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for library in _TENSORRT_LIBRARIES:
            with contextlib.suppress(OSError):  # what is then missing is said when all is loaded
                ctypes.CDLL(str(Path(folder) / library), mode=ctypes.RTLD_GLOBAL)


def _load_error(folder: Path, provider: str) -> str | None:
    """Return why the loader cannot load a provider's library, in its own words; None if it can."""
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARIES[provider]))
    except OSError as error:
        return str(error)
    return None


def _advice(reason: str) -> str:
    if "libcuda.so" in reason:
        return "That is the NVIDIA driver's: there is none, or the container is started without it."
    if "libnvinfer" in reason or "libnvonnxparser" in reason:
        return "It links TensorRT 10, not 11: pip install 'tensorrt-cu13<11'"
    return "That belongs to CUDA 13 or cuDNN 9: pip install 'ltdeploy[gpu]'"


def misplaced_nodes(session: Any, provider: str, model: Path | bytes) -> list[str]:
    """Return the nodes that do not run on ``provider``, as ``name (operator) on provider``.

    Those that compute shapes do not count; what a node computes stands in the model, and of a node
    that ONNX Runtime made itself nothing is known.

    Parameters
    ----------
    session : made with ``session.record_ep_graph_assignment_info``.
    model : what it was made from.
    """
    elsewhere = [
        (node, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    ]
    if any(node.op_type in _SHAPE_OPERATORS for node, _ in elsewhere):
        excused = _shape_nodes(model)
        elsewhere = [(n, place) for n, place in elsewhere if (n.name, n.op_type) not in excused]
    return [f"{n.name or 'a node'} ({n.op_type}) on {place}" for n, place in elsewhere]


def _shape_nodes(model: Path | bytes) -> set[tuple[str, str]]:
    """Return name and operator of nodes that compute integers or truth values alone.

    Where several nodes share a name, or have none, all of them must.
    """
    onnx = require("onnx", extra="gpu", purpose="tell the nodes that compute shapes")
    loaded = onnx.load_from_string(model if isinstance(model, bytes) else model.read_bytes())
    graph = onnx.shape_inference.infer_shapes(loaded).graph
    whole = {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
    values = (*graph.value_info, *graph.output)
    integers = {v.name for v in values if v.type.tensor_type.elem_type in whole}
    others = {
        (node.name, node.op_type)
        for node in graph.node
        if node.op_type not in _SHAPE_OPERATORS or not integers.issuperset(node.output)
    }
    return {(node.name, node.op_type) for node in graph.node} - others


def split(
    feeds: Mapping[str, npt.NDArray[np.generic]], inputs: tuple[TensorSpec, ...], most: int | None
) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Yield the feeds in runs of at most ``most`` images; inputs without a batch axis whole."""
    batched = [spec.name for spec in inputs if spec.shape and spec.shape[0] is None]
    images = len(feeds[batched[0]]) if batched else 1
    most = most or max(images, 1)
    for first in range(0, max(images, 1), most):
        yield {
            name: array[first : first + most] if name in batched else array
            for name, array in feeds.items()
        }
