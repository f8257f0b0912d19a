"""A float32 graph to int8 with QuantizeLinear and DequantizeLinear nodes, as TensorRT reads it.

Symmetric (zero point 0), weights per output channel, biases in float32, and only the inputs of
layers are quantised, so that a convolution and its activation stay one step. The stem and the head
are left alone: the head is where the tail's classes are told apart; the stem is a few percent of
the work, and OpenVINO 2026.4 loses a quantised stem's bias in graphs that ask for their own batch
size, see docs/precision.md.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy._optional import require
from ltdeploy.engines.onnxruntime_engine import import_onnxruntime
from ltdeploy.errors import ExportError

from .layers import GraphLayers
from .lookups import read_unrounded
from .work import images_at_once

if TYPE_CHECKING:
    import onnx

__all__ = ["Ranges", "measure_ranges", "quantise"]

_MULTIPLYING = ["Conv", "MatMul", "Gemm"]
_BATCH = 8  # the ranges follow from it: a batch counts with its largest value


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest value of every tensor that can be quantised, as ONNX Runtime's JSON.

    Attributes
    ----------
    content : what :func:`onnxruntime.quantization.quantize_static` reads back.
    images : they were measured on.
    """

    content: bytes
    images: int


def measure_ranges(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> Ranges:
    """Run the graph on calibration images and keep the ranges of its tensors.

    Parameters
    ----------
    model : a float32 graph with inferred shapes and named nodes.
    images : array of shape (N, H, W, 3), uint8.

    Raises
    ------
    ExportError
        If ONNX Runtime's quantiser fails, with its reason.
    """
    with tempfile.TemporaryDirectory(prefix="ltdeploy-int8-") as folder:
        cache = Path(folder) / "ranges.json"
        reader = _reader(model.graph.input[0].name, images, images_at_once(model, _BATCH))
        _quantize(model, Path(folder) / "all.onnx", cache, reader, keep=())
        return Ranges(cache.read_bytes(), len(images))


def quantise(model: onnx.ModelProto, ranges: Ranges, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return the graph in int8 but for its stem, its head and the layers named.

    Parameters
    ----------
    model : as for :func:`measure_ranges`; it is not changed.
    keep : names of weighted layers that stay in float32.

    Raises
    ------
    ExportError
        As :func:`measure_ranges`.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="ltdeploy-int8-") as folder:
        cache, out = Path(folder) / "ranges.json", Path(folder) / "int8.onnx"
        cache.write_bytes(ranges.content)
        _quantize(model, out, cache, None, keep)
        made: onnx.ModelProto = onnx.load(out)
    read_unrounded(made)
    return made


def _quantize(
    model: onnx.ModelProto, out: Path, cache: Path, reader: Any, keep: Collection[str]
) -> None:
    import copy

    import_onnxruntime()  # with its telemetry off
    library: Any = require(
        "onnxruntime.quantization", extra="cpu", purpose="quantise a graph to int8"
    )
    layers = GraphLayers(model)
    chosen = [layer.name for layer in layers.body if layer.name not in keep]
    if not chosen:
        raise ExportError(
            "No layer of the graph is left to quantise: it has none between its first and its "
            "last one, or everything was restored. Use --precision fp32."
        )
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it warns of steps that were taken here before it
    try:
        library.quantize_static(
            copy.deepcopy(model),  # it changes what it is given
            out,
            reader,
            quant_format=library.QuantFormat.QDQ,
            op_types_to_quantize=_MULTIPLYING,
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=library.QuantType.QInt8,
            weight_type=library.QuantType.QInt8,
            calibrate_method=library.CalibrationMethod.MinMax,
            calibration_cache_path=cache,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                # Only what is multiplied: a layer and its activation stay one step.
                "OpTypesToExcludeOutputQuantization": _MULTIPLYING,
                # The largest value of a batch, on average over batches: one outlier among 512
                # images would make every step coarser.
                "CalibMovingAverage": True,
            },
        )
    except Exception as error:  # ValueErrors, KeyErrors and types of its own
        raise ExportError(
            f"ONNX Runtime's quantiser failed on this graph ({type(error).__name__}: {error}). "
            "Use --precision bf16 or fp16 instead."
        ) from error
    finally:
        root.setLevel(level)


def _reader(name: str, images: npt.NDArray[np.uint8], size: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its base is untyped
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, npt.NDArray[np.uint8]]] = (
                {name: images[start : start + size]} for start in range(0, len(images), size)
            )

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            return next(self.batches, None)

    return Reader()
