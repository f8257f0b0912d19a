"""Somebody's ONNX classifier, loaded as far as the file and the caller tell."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..classes import ClassTable
from ..errors import CheckpointError
from ..preprocessing import Preprocessing
from .classifier import Source, class_table, complete_table
from .head import Head
from .layouts import Parts
from .onnx_graph import OnnxGraph, read_onnx
from .onnx_head import head_nodes, replace_head
from .options import LoadOptions, adjust_preprocessing
from .reading import source_sha256

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxClassifier", "load_onnx", "missing_options"]


@dataclass(eq=False)
class OnnxClassifier:
    """A classifier that came as ONNX; the attributes are those of :class:`Classifier`.

    Parameters
    ----------
    graph : the network, as :func:`read_onnx` brought it into form.
    """

    graph: OnnxGraph
    head: Head
    preprocessing: Preprocessing
    classes: ClassTable | None
    source: Source
    arch: str = "onnx"
    trained_with: str | None = None
    train_hashes: npt.NDArray[np.uint64] | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The graph from normalised float32 images [N, 3, H, W] to logits."""
        return self.graph.model

    @property
    def head_path(self) -> str:
        """Name of the head's node."""
        return self.graph.head_node

    @property
    def input_name(self) -> str:
        """Name of the graph's input."""
        return self.graph.input_name

    @property
    def output_name(self) -> str:
        """Name of the graph's output, the logits."""
        return self.graph.output_name

    @property
    def features_name(self) -> str:
        """Name of the tensor that the head is given, float32 [N, D]."""
        node, _ = head_nodes(self.graph.model, self.output_name, "The graph")
        name: str = node.input[0]
        return name

    def logits_model(self, *, features: bool = False) -> bytes:
        """Return the graph, serialised; with ``features``, what the head is given is an output."""
        model = self.graph.model
        if features:
            from onnx import TensorProto, helper

            shape = ["batch", self.head.weight.shape[1]]
            value = helper.make_tensor_value_info(self.features_name, TensorProto.FLOAT, shape)
            model = copy.deepcopy(model)
            model.graph.output.append(value)
        content: bytes = model.SerializeToString()
        return content

    def with_head(
        self, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64] | None
    ) -> onnx.ModelProto:
        """Return a copy of the graph whose head has other weights, rounded once to float32.

        No node is added: a MatMul that gets a bias becomes a Gemm.

        Parameters
        ----------
        weight : array of shape (C, D).
        bias : array of shape (C,), or None for no bias.
        """
        changed = copy.deepcopy(self.graph.model)
        replace_head(changed, self.output_name, weight, bias)
        return changed

    def require_complete(self) -> ClassTable:
        """Return the class table that export and verification need.

        Raises
        ------
        CheckpointError
            If it is missing; with what was recognised and the option that provides it.
        """
        return complete_table(self)


def load_onnx(path: Path, options: LoadOptions) -> OnnxClassifier:
    """Load an ONNX classifier; its preprocessing must be told, as the file does not tell it.

    Raises
    ------
    CheckpointError
        If it is not a classifier that ends in a Gemm or MatMul, or options are missing.
    """
    graph = read_onnx(path)
    missing = missing_options(graph, options)
    if missing:
        size = f"{graph.height_px}×{graph.width_px}" if graph.height_px else "of any size"
        raise CheckpointError(
            f"{path} is an ONNX classifier, and ONNX files do not tell how images are prepared. "
            f"Recognised: head {graph.head_node!r} {graph.head.classes} × "
            f"{graph.head.weight.shape[1]}, images {size}. Missing: {', '.join(missing)}."
        )
    notes = list(graph.notes)
    preprocessing = options.preprocessing or _told_preprocessing(graph, options, notes)
    seen = preprocessing.height_px, preprocessing.width_px
    takes = graph.height_px or seen[0], graph.width_px or seen[1]
    if seen != takes:
        raise CheckpointError(
            f"The image size told is {seen[0]}×{seen[1]}, but the graph in {path} takes images of "
            f"{takes[0]}×{takes[1]} pixels only. Leave --image-size out."
        )
    parts = Parts("ONNX", {})
    classes = class_table(path, parts, options, graph.head.classes, notes)
    source = Source(path.resolve(), source_sha256(path), "ONNX", tuple(notes))
    return OnnxClassifier(graph, graph.head, preprocessing, classes, source)


def _told_preprocessing(graph: OnnxGraph, options: LoadOptions, notes: list[str]) -> Preprocessing:
    told = options.preprocessing_changes()
    size: int | None = told.pop("image_size", None)
    height, width = size or graph.height_px, size or graph.width_px
    assert height is not None  # else missing_options has said so
    assert width is not None
    base = Preprocessing(height_px=height, width_px=width)
    if "interpolation" not in told and told.get("resize") != "none":
        notes.append(f"--interpolation was not given; assumed is {base.interpolation}.")
    return adjust_preprocessing(base, told)


def missing_options(graph: OnnxGraph, options: LoadOptions) -> list[str]:
    """Return the preprocessing options that an ONNX file needs and that were not given."""
    if options.preprocessing is not None:
        return []
    needed = {
        "--image-size": options.image_size is None and graph.height_px is None,
        "--resize or --crop-pct": options.resize is None and options.crop_pct is None,
        "--mean r,g,b (0,0,0 if the graph normalises)": options.mean is None,
        "--std r,g,b (1,1,1 if the graph normalises)": options.std is None,
    }
    return [name for name, is_missing in needed.items() if is_missing]
