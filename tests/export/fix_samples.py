"""Drawn maps of every kind, fix files that hold them, and networks that export in no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from samples import write_checkpoint
from torch import nn

from ltdeploy.classes import ClassTable
from ltdeploy.fixes import AffineMap, FixFile
from ltdeploy.fixes.encoding import MethodEntry, encode
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import Blend, LogSoftmax, NewHead, compose
from ltdeploy.models.classifier import Classifier, load_checkpoint
from ltdeploy.models.head import Head
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.models.options import LoadOptions


def maps_by_kind(classes: int, features: int) -> dict[str, LogitMap]:
    """Return one map of every kind and the chains that fixes make of them."""
    rng = np.random.default_rng(classes)

    def vector() -> np.ndarray:
        return rng.normal(size=classes)

    weight, centre = rng.normal(size=(classes, features)), rng.uniform(size=features)
    diagonal = AffineMap(rng.uniform(0.5, 2, size=classes), vector())
    full = AffineMap(np.eye(classes) + 0.3 * rng.normal(size=(classes, classes)), vector())
    blend = Blend(
        rng.uniform(0.5, 2, size=classes), vector(), rng.normal(size=features) / features, 0.2
    )
    head = NewHead(weight, vector())
    return {
        "diagonal": diagonal,
        "full": full,
        "head": head,
        "head without bias": NewHead(weight, np.zeros(classes)),
        "centred head": NewHead(weight, vector(), centre),
        "l2 head": NewHead(weight, vector(), None, True),
        "centred l2 head": NewHead(weight, vector(), centre, True),
        "log-softmax": LogSoftmax(classes),
        "blend": blend,
        "affine, blend, affine": compose(diagonal, blend, diagonal),
        "Dirichlet": compose(LogSoftmax(classes), full),
        "affine, Dirichlet": compose(diagonal, LogSoftmax(classes), full),
        "head, Dirichlet": compose(head, LogSoftmax(classes), full),
        "l2 head, blend": compose(NewHead(weight, vector(), None, True), blend),
        "blend, log-softmax, affine": compose(blend, LogSoftmax(classes), diagonal),
    }


# What goes into a linear head's weights whole; all else takes nodes.
IN_WEIGHTS = {"diagonal", "full", "head", "head without bias"}

TOLD = LoadOptions(
    classes=ClassTable.from_counts([200, 90, 40, 20, 10, 2], [f"species {i}" for i in range(6)]),
    resize="none",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)


def fix_file(fix: LogitMap, method: str = "temperature", **more: object) -> FixFile:
    """Return a file that holds a fitted map, under some method's name."""
    methods = (MethodEntry(method=method, parameters={}),)
    return FixFile.model_validate({"methods": methods, "steps": encode(fix), **more})


class PooledMap(nn.Module):
    """A network that classifies with a 1×1 convolution of its pooled features."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 4, stride=4)
        self.head: nn.Module = nn.Conv2d(9, 6, 1, bias=bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.stem(images).relu().mean(dim=(2, 3), keepdim=True)
        return self.head(pooled).flatten(1)


class PooledVector(PooledMap):
    """The same with a linear layer."""

    def __init__(self, bias: bool) -> None:
        super().__init__(bias)
        self.head = nn.Linear(9, 6, bias=bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(images).relu().mean(dim=(2, 3)))


def small_model(folder: Path, layer: str = "linear", *, bias: bool = True) -> Classifier:
    """Return a network of two layers in the place of a checkpoint's, which is written."""
    torch.manual_seed(0)
    module = (PooledMap if layer == "convolution" else PooledVector)(bias).eval()
    weight = module.head.weight.detach().double().flatten(1).numpy()
    shift = module.head.bias.detach().double().numpy() if bias else None
    loaded = load_checkpoint(write_checkpoint(folder / "small.pt"))
    assert isinstance(loaded, Classifier)
    return replace(loaded, module=module, head=Head("linear", weight, shift), head_path="head")


def onnx_model(folder: Path, *, gemm: bool = True, opset: int = 17) -> OnnxClassifier:
    """Write a small ONNX classifier: patches, ReLU, pooling, and a linear head on 12 features."""
    rng = np.random.default_rng(0)
    arrays = {"k": (12, 3, 4, 4), "w": (12, 6), "b": (6,)}
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["images", "k"], ["patches"], strides=[4, 4]),
        helper.make_node("Relu", ["patches"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["ltdeploy_head"]),  # a name that we would take
    ]
    if gemm:
        nodes.append(helper.make_node("Gemm", ["ltdeploy_head", "w", "b"], ["logits"]))
    else:
        nodes.append(helper.make_node("MatMul", ["ltdeploy_head", "w"], ["product"]))
        nodes.append(helper.make_node("Add", ["product", "b"], ["logits"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "foreign",
        [value("images", onnx.TensorProto.FLOAT, ["n", 3, 32, 32])],
        [value("logits", onnx.TensorProto.FLOAT, ["n", 6])],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in arrays.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, folder / "foreign.onnx")
    loaded = load_checkpoint(folder / "foreign.onnx", options=TOLD)
    assert isinstance(loaded, OnnxClassifier)
    return loaded
