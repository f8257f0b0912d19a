"""Small classifiers and labelled images that the tests of precision share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from samples import draw_photo, write_checkpoint

from ltdeploy.datasets import Dataset
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.export.clean_up import clean_up
from ltdeploy.export.to_onnx import onnx_from_classifier
from ltdeploy.images import normalise
from ltdeploy.models.classifier import load_checkpoint


class DrawnDataset(Dataset):
    """Smooth pictures of 32 pixels with labels from whoever asks."""

    def __init__(
        self, labels: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64] | None = None
    ) -> None:
        super().__init__("drawn", None, labels)
        self.seeds = np.arange(len(labels)) if seeds is None else seeds

    def source(self, index: int) -> npt.NDArray[np.uint8]:
        return np.asarray(draw_photo(int(self.seeds[index]), 32, 32))

    def identifier(self, index: int) -> str:
        return f"drawn#{index}"


def pictures(count: int, first: int = 0) -> npt.NDArray[np.uint8]:
    """Return drawn pictures, array of shape (count, 32, 32, 3)."""
    return np.stack([np.asarray(draw_photo(first + i, 32, 32)) for i in range(count)])


def float32_graph(folder: Path, *, outlier: float = 1.0) -> onnx.ModelProto:
    """Return the cleaned-up graph of a ResNet-20 of six classes.

    Parameters
    ----------
    outlier : one channel between two convolutions is that many times as large as it was, and the
        second takes it back: the function is the same, its int8 form is not.
    """
    model = load_checkpoint(write_checkpoint(folder / f"ckpt-{outlier}.pt"))
    block = model.module.get_submodule("layer2.1")
    with torch.no_grad():
        block.bn1.weight[3] *= outlier
        block.bn1.bias[3] *= outlier
        block.conv2.weight[:, 3] /= outlier
        # Drawn weights prefer one class always; taking the mean off lets every class win.
        images = torch.from_numpy(normalise(pictures(200), model.preprocessing))
        model.module.get_submodule(model.head_path).bias -= model.module(images).mean(dim=0)
    return clean_up(onnx_from_classifier(model.module, model.preprocessing, {}))


def answers(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return logits on ONNX Runtime."""
    engine = OnnxRuntimeEngine(model.SerializeToString())
    try:
        return engine.run({"images": images})["logits"]
    finally:
        engine.close()


def named(model: onnx.ModelProto, names: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes of these names."""
    return [node for node in model.graph.node if node.name in names]
