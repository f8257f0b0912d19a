"""The shapes inside somebody's ONNX graph, by running it once.

Exporters write shapes as computations (Shape, Gather, Concat, Reshape), which shape inference only
follows part of the way. One run for one image says all of them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..._optional import require
from ...errors import CheckpointError
from ..onnx_head import constant

if TYPE_CHECKING:
    import onnx

__all__ = ["LINEAR", "Probe", "probe"]

LINEAR = ("Conv", "Gemm", "MatMul")
_LARGEST_VALUE = 1 << 12  # numbers; what says shapes and places is small
_ERRORS_ONLY = 3


@dataclass(frozen=True, eq=False)
class Probe:
    """What a run for one image shows of the tensors behind the last linear layers.

    Attributes
    ----------
    shapes : of these tensors, of every Reshape's output, of the graph's inputs and weights.
    values : of those that are small and of whole numbers: shapes and places.
    """

    shapes: dict[str, tuple[int, ...]]
    values: dict[str, npt.NDArray[Any]]

    def constant(self, model: onnx.ModelProto, name: str) -> npt.NDArray[Any] | None:
        """Return a tensor that is the same for every image, or None."""
        known = constant(model, name)
        return self.values.get(name) if known is None else known


def probe(model: onnx.ModelProto, height_px: int, width_px: int, where: str) -> Probe:
    """Run a graph for one image of this size.

    Parameters
    ----------
    model : takes images [N, 3, H, W].
    where : names the file in errors.

    Raises
    ------
    CheckpointError
        If ONNX Runtime cannot run it.
    """
    from onnx import ValueInfoProto

    one = copy.deepcopy(model)
    stored = {tensor.name: tuple(tensor.dims) for tensor in one.graph.initializer}
    (images,) = (value for value in one.graph.input if value.name not in stored)
    size = (1, 3, height_px, width_px)
    for axis, length in zip(images.type.tensor_type.shape.dim, size, strict=True):
        axis.Clear()
        axis.dim_value = length
    names = sorted(_wanted(one) - set(stored) - {images.name})
    del one.graph.output[:]
    one.graph.output.extend(ValueInfoProto(name=name) for name in names)
    del one.graph.value_info[:]
    feeds = {images.name: np.zeros(size, np.float32)}
    found = dict(zip(names, _run(one, feeds, where), strict=True))
    values = {
        name: value
        for name, value in found.items()
        if value.dtype.kind in "iu" and value.size <= _LARGEST_VALUE
    }
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    return Probe({**stored, images.name: size, **shapes}, values)


def _wanted(model: onnx.ModelProto) -> set[str]:
    """Return the names of the tensors to look at: all that is computed behind linear layers."""
    makers = {name: node for node in model.graph.node for name in node.output}
    seen: set[str] = set()
    left = [value.name for value in model.graph.output]
    while left:
        name = left.pop()
        if name in makers and name not in seen:
            seen.add(name)
            if makers[name].op_type not in (*LINEAR, "Shape", "Constant"):
                left.extend(filter(None, makers[name].input))
    return seen | {n.output[0] for n in model.graph.node if n.op_type == "Reshape"}


def _run(model: onnx.ModelProto, feeds: dict[str, Any], where: str) -> Iterable[npt.NDArray[Any]]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, or it reports usage
    runtime: Any = require("onnxruntime", extra="cpu", purpose="look into ONNX detectors")
    options = runtime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found: list[npt.NDArray[Any]] = session.run(None, feeds)
    except Exception as error:  # onnxruntime raises its own types, none of them public
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{where} cannot be run on ONNX Runtime: {reason}") from error
    return found
