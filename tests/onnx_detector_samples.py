"""Small ONNX detectors as people have them, with drawn weights: one for each layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from box_samples import NAMES, write_boxes
from onnx import TensorProto, helper, numpy_helper

__all__ = [
    "CLASSES",
    "MAPPINGS",
    "SIZE",
    "Graph",
    "classifier",
    "detr",
    "write",
    "write_all",
    "write_bundle",
    "yolov5",
    "yolov8",
]

CLASSES = 4
SIZE = 64
_PLAIN = {"fit": "squash", "channels": "rgb", "mean": [0, 0, 0], "std": [1, 1, 1]}
MAPPINGS: dict[str, dict[str, Any]] = {
    "yolov5": {"layout": "yolov5", "canvas": _PLAIN},
    "yolov8": {"layout": "yolov8", "canvas": {**_PLAIN, "channels": "bgr", "white": 255,
                                              "mean": [100, 110, 120], "std": [60, 55, 50]}},
    "detr": {"layout": "detr", "canvas": {**_PLAIN, "mean": [0.4, 0.5, 0.6]}},
}  # fmt: skip


class Graph:
    """Collects nodes and drawn weights; ``batch`` is 1 or any number."""

    def __init__(self, batch: int | str, seed: int = 0) -> None:
        self.batch = batch
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.outputs: list[Any] = []
        self._rng = np.random.default_rng(seed)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        number = len(self.nodes)
        names = [f"{kind}_{number}.{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"{kind}_{number}", **attributes))
        return names[0] if outputs == 1 else names

    def store(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"stored_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def drawn(self, *shape: int, spread: float = 1.0) -> str:
        return self.store(self._rng.normal(0, spread, shape))

    def whole(self, *values: int) -> str:
        return self.store(values, np.int64)

    def conv(self, x: str, few: int, many: int, side: int = 1, stride: int = 1) -> str:
        weight = self.drawn(many, few, side, side, spread=(2 / (few * side * side)) ** 0.5)
        return self.add("Conv", x, weight, self.drawn(many, spread=0.3), strides=[stride] * 2)

    def norm(self, x: str, many: int) -> str:
        values = [self._rng.uniform(0.5, 2, many), self._rng.normal(0, 0.5, many)]
        values += [self._rng.normal(0, 0.5, many), self._rng.uniform(0.5, 2, many)]
        return self.add("BatchNormalization", x, *map(self.store, values), epsilon=1e-3)

    def levels(self) -> list[str]:
        """Return features of strides 8 and 16, with 8 and 12 channels."""
        first = self.add("Tanh", self.conv("pixels", 3, 8, side=8, stride=8))
        return [first, self.add("Tanh", self.conv(first, 8, 12, side=2, stride=2))]

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape as exporters write it: constant for one image, else computed from the input."""
        if self.batch == 1:
            return self.add("Reshape", x, self.whole(1, *shape))
        whole = self.add("Shape", "pixels")
        batch = self.add("Slice", whole, self.whole(0), self.whole(1))
        sizes = self.add("Concat", batch, self.whole(*shape), axis=0)
        return self.add("Reshape", x, sizes)

    def result(self, x: str, name: str, *shape: int) -> None:
        self.nodes.append(helper.make_node("Identity", [x], [name]))
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, *shape])
        self.outputs.append(value)

    def model(self) -> onnx.ModelProto:
        shape = [self.batch, 3, SIZE, SIZE]
        pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "detector", [pixels], self.outputs, self.stored)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made


def yolov5(batch: int | str = 1) -> onnx.ModelProto:
    """Two levels, three anchors, boxes and all else in one convolution and one sigmoid."""
    graph, wide = Graph(batch), 5 + CLASSES
    levels = []
    for features, channels, side in zip(graph.levels(), (8, 12), (8, 4), strict=True):
        raw = graph.conv(features, channels, 3 * wide)
        split = graph.reshape(raw, 3, wide, side, side)
        shares = graph.add("Sigmoid", graph.add("Transpose", split, perm=[0, 1, 3, 4, 2]))
        xy, wh, rest = graph.add("Split", shares, graph.whole(2, 2, 1 + CLASSES), outputs=3, axis=4)
        down, right = np.mgrid[:side, :side]
        cells = graph.store(np.stack([right, down], -1)[None, None] - 0.5)
        stride = graph.store(SIZE / side)
        doubled = graph.add("Mul", xy, graph.store(2.0))
        centres = graph.add("Mul", graph.add("Add", doubled, cells), stride)
        sides = graph.add("Mul", graph.add("Mul", wh, wh), graph.store([[[[[30, 40]]]]]))
        joined = graph.add("Concat", centres, sides, rest, axis=4)
        levels.append(graph.reshape(joined, 3 * side * side, wide))
    count = 3 * (64 + 16)
    graph.result(graph.add("Concat", *levels, axis=1), "output0", count, wide)
    return graph.model()


def yolov8(batch: int | str = 1, *, norm: bool = True, mixed: bool = False) -> onnx.ModelProto:
    """Two levels, classes apart from boxes, a BatchNorm behind the layer of the classes.

    Parameters
    ----------
    mixed : let the graph reshape over the batch, so that it serves one image only.
    """
    graph = Graph(batch)
    levels = []
    for features, channels, side in zip(graph.levels(), (8, 12), (8, 4), strict=True):
        if mixed:
            turned = graph.add("Transpose", features, perm=[1, 0, 2, 3])
            flat = graph.add("Reshape", turned, graph.whole(channels, side * side))
            features = graph.add("Reshape", flat, graph.whole(1, channels, side, side))
        classes = graph.conv(features, channels, CLASSES)
        classes = graph.norm(classes, CLASSES) if norm else classes
        boxes = graph.add("Softplus", graph.conv(features, channels, 4))
        joined = graph.add("Concat", boxes, classes, axis=1)
        levels.append(graph.reshape(joined, 4 + CLASSES, side * side))
    whole = graph.add("Concat", *levels, axis=2)
    reach, logits = graph.add("Split", whole, graph.whole(4, CLASSES), outputs=2, axis=1)
    corner, far = graph.add("Split", reach, graph.whole(2, 2), outputs=2, axis=1)
    anchors, strides = [], []
    for side in (8, 4):
        down, right = np.mgrid[:side, :side]
        anchors.append(np.stack([right, down]).reshape(2, -1) + 0.5)
        strides.append(np.full(side * side, SIZE / side))
    grid = graph.store(np.concatenate(anchors, 1)[None])
    first, last = graph.add("Sub", grid, corner), graph.add("Add", grid, far)
    centre = graph.add("Mul", graph.add("Add", first, last), graph.store(0.5))
    boxes = graph.add("Concat", centre, graph.add("Sub", last, first), axis=1)
    scaled = graph.add("Mul", boxes, graph.store(np.concatenate(strides)[None, None]))
    both = graph.add("Concat", scaled, graph.add("Sigmoid", logits), axis=1)
    graph.result(both, "output0", 4 + CLASSES, 80)
    return graph.model()


def detr(batch: int | str = "n", *, bias: bool = True, classes: int = CLASSES) -> onnx.ModelProto:
    """Sixteen queries, a linear class layer with the background last, logits as they are."""
    graph = Graph(batch)
    features = graph.levels()[1]
    tokens = graph.add("Transpose", graph.reshape(features, 12, 16), perm=[0, 2, 1])
    logits = graph.add("MatMul", tokens, graph.drawn(12, classes + 1))
    if bias:
        logits = graph.add("Add", graph.drawn(classes + 1), logits)
    boxes = graph.add("Add", graph.add("MatMul", tokens, graph.drawn(12, 4)), graph.drawn(4))
    graph.result(logits, "logits", 16, classes + 1)
    graph.result(graph.add("Sigmoid", boxes), "pred_boxes", 16, 4)
    return graph.model()


def classifier() -> onnx.ModelProto:
    """One vector of logits for each image."""
    graph = Graph("n")
    mean = graph.add("GlobalAveragePool", graph.levels()[1])
    flat = graph.add("Flatten", mean)
    graph.result(graph.add("MatMul", flat, graph.drawn(12, CLASSES)), "logits", CLASSES)
    return graph.model()


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model and return where."""
    onnx.save(model, path)
    return path


def write_all(folder: Path, batch: int | str = 1) -> Path:
    """Write ``y.onnx`` (YOLOv8), its mapping, classes, photographs; return the photographs' json.

    A bundle of it is made in half a second, where tracing a torch detector takes half a minute.
    """
    write(yolov8(batch), folder / "y.onnx")
    (folder / "outputs.json").write_text(json.dumps(MAPPINGS["yolov8"]))
    data = write_boxes(folder)
    content = json.loads(data.read_text())
    content["categories"].append({"id": 99, "name": "star"})
    data.write_text(json.dumps(content))
    rows = zip((*NAMES, "star"), (300, 150, 30, 8), strict=True)
    told = "".join(f"{name},{count}\n" for name, count in rows)
    (folder / "classes.csv").write_text(f"name,train_count\n{told}")
    return data


def write_bundle(folder: Path) -> Path:
    """Write what `write_all` does, and a bundle of it; return the bundle."""
    from ltdeploy.datasets.labels import read_class_csv
    from ltdeploy.export.detection.detector_export import export_detector
    from ltdeploy.models.detectors.onnx_mapping import read_mapping
    from ltdeploy.models.loading import load_model
    from ltdeploy.models.options import LoadOptions

    write_all(folder, batch="n")
    options = LoadOptions(classes=read_class_csv(folder / "classes.csv"))
    mapping = read_mapping(folder / "outputs.json")
    model: Any = load_model(folder / "y.onnx", options=options, outputs=mapping)
    return export_detector(model, [], folder / "y.ltd").bundle.path
