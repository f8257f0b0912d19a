"""What the manifests of classifiers and detectors have in common, filled in."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy import __version__
from ltdeploy._optional import installed_version
from ltdeploy.manifest import ClassEntry, GraphEntry, TensorEntry

from .precision import Lowered, Request

if TYPE_CHECKING:
    import onnx

    from ltdeploy.classes import ClassTable

__all__ = ["class_entries", "graph_entry", "npz", "package_versions"]


def class_entries(table: ClassTable) -> tuple[ClassEntry, ...]:
    """Return the classes as the manifest lists them, in label order."""
    rows = zip(table.names, table.counts, table.groups, strict=True)
    return tuple(ClassEntry(name=n, train_count=c, group=g) for n, c, g in rows)


def graph_entry(
    graph: onnx.ModelProto,
    precision: Request[Any] | None,
    lowered: Lowered | None,
    golden_difference: float,
) -> GraphEntry:
    """Return what the manifest says of ``model.onnx``.

    Parameters
    ----------
    precision, lowered : None for float32.
    golden_difference : largest difference from the golden samples.
    """
    import onnx

    def entry(value: Any) -> TensorEntry:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        return TensorEntry(name=value.name, dtype=str(dtype), shape=shape)

    return GraphEntry(
        file="model.onnx",
        precision=precision.precision if precision is not None else "fp32",
        opset=next(o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")),
        nodes=len(graph.graph.node),
        inputs=tuple(entry(value) for value in graph.graph.input),
        outputs=tuple(entry(value) for value in graph.graph.output),
        golden_difference=golden_difference,
        lowering=lowered.entry if lowered is not None else None,
    )


def npz(**arrays: npt.NDArray[Any]) -> bytes:
    """Return arrays as the content of a compressed ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def package_versions() -> dict[str, str]:
    """Return the versions of what makes a bundle, those that are installed."""
    packages = ("numpy", "onnx", "onnxruntime", "onnxscript", "PIL", "torch")
    found = {package: installed_version(package) for package in packages}
    return {"ltdeploy": __version__, **{k: v for k, v in found.items() if v is not None}}
