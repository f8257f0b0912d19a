"""A detector of four cells, made by hand, and photographs in which it finds things."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from box_samples import NAMES
from onnx import TensorProto, helper, numpy_helper

from ltdeploy.datasets.boxes import BoxDataset, BoxImage, BoxTruth

__all__ = ["coloured", "one_box_graph", "planted"]


def one_box_graph() -> onnx.ModelProto:
    """Return a graph that finds the same box in every photograph."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Shape", ["images"], ["n"], name="n", start=0, end=1),
        helper.make_node("Concat", ["n", "bs"], ["b"], name="b", axis=0),
        helper.make_node("Concat", ["n", "ls"], ["l"], name="l", axis=0),
        helper.make_node("Expand", ["box", "b"], ["boxes"], name="boxes"),
        helper.make_node("Expand", ["logit", "l"], ["logits"], name="logits"),
    ]
    stored = [
        numpy_helper.from_array(np.array([1, 4]), "bs"),
        numpy_helper.from_array(np.array([1, 4]), "ls"),
        numpy_helper.from_array(np.array([[0, 0, 9, 9]], np.float32), "box"),
        numpy_helper.from_array(np.array([[0, 1, 0, 0]], np.float32), "logit"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("images", TensorProto.UINT8, ["n", 96, 128, 3])],
        [
            value("boxes", TensorProto.FLOAT, ["n", 1, 4]),
            value("logits", TensorProto.FLOAT, ["n", 1, 4]),
        ],
        stored,
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def planted() -> onnx.ModelProto:
    """Return a detector of four cells whose second layer int8 destroys, and its inverse undoes."""
    value = helper.make_tensor_value_info
    stored: list[onnx.TensorProto] = []

    def constant(name: str, array: Any) -> str:
        stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    # Channels: red, green, blue and one that is 300 times too large and cancels itself.
    stem = np.zeros((4, 3, 1, 1), np.float32)
    stem[0, 0] = stem[1, 1] = stem[2, 2] = 1.0
    stem[3] = 300.0
    same = np.eye(4, dtype=np.float32)[:, :, None, None]
    head = np.zeros((4, 4, 1, 1), np.float32)
    head[1, 0] = head[2, 1] = head[3, 2] = 12.0
    head[1, 1] = head[1, 2] = head[2, 0] = head[2, 2] = head[3, 0] = head[3, 1] = -12.0
    cells = [[0, 0, 64, 48], [64, 0, 128, 48], [0, 48, 64, 96], [64, 48, 128, 96]]
    make = helper.make_node
    nodes = [
        make("Cast", ["images"], ["f"], name="cast", to=TensorProto.FLOAT),
        make("Transpose", ["f"], ["t"], name="turn", perm=[0, 3, 1, 2]),
        make("Mul", ["t", constant("k", np.float32(1 / 255))], ["x"], name="scale"),
        make("AveragePool", ["x"], ["p"], name="pool", kernel_shape=[48, 64], strides=[48, 64]),
        make("Conv", ["p", constant("w0", stem)], ["a"], name="stem"),
        make("Conv", ["a", constant("w1", same)], ["b"], name="harmed"),
        make("Conv", ["b", constant("w2", same)], ["c"], name="harmed too"),
        make("Mul", ["c", constant("m", small())], ["d"], name="tame"),
        make("Conv", ["d", constant("w3", same)], ["e"], name="harmless"),
        make("Conv", ["e", constant("w4", head)], ["g"], name="head"),
        make("Reshape", ["g", constant("s", np.array([0, 4, 4]))], ["r"], name="rows"),
        make("Transpose", ["r"], ["logits"], name="last", perm=[0, 2, 1]),
        make("Shape", ["images"], ["n"], name="n", start=0, end=1),
        make("Concat", ["n", constant("bs", np.array([4, 4]))], ["ns"], name="ns", axis=0),
        make("Expand", [constant("cells", np.array(cells, np.float32)), "ns"], ["boxes"], name="e"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("images", TensorProto.UINT8, ["n", 96, 128, 3])],
        [
            value("boxes", TensorProto.FLOAT, ["n", 4, 4]),
            value("logits", TensorProto.FLOAT, ["n", 4, 4]),
        ],
        stored,
    )
    opset = [helper.make_opsetid("", 18)]
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opset, ir_version=9)
    )


def small() -> np.ndarray:
    """Return factors that take the large channel out."""
    return np.array([1, 1, 1, 0], np.float32)[None, :, None, None]


def coloured(count: int, seed: int) -> BoxDataset:
    """Return photographs of the canvas' size: a cell is faintly tinted where its class is."""
    rng = np.random.default_rng(seed)
    pictures, truths = [], []
    for number in range(count):
        picture = np.full((96, 128, 3), 120, np.uint8)
        boxes, labels = [], []
        for cell in range(4):
            y, x = 48 * (cell // 2), 64 * (cell % 2)
            label = int(rng.choice(3, p=[0.45, 0.4, 0.15]))
            tint = int(rng.integers(6, 40))
            picture[y : y + 48, x : x + 64, label] += np.uint8(tint)
            if tint > 14:
                boxes.append([x, y, x + 64, y + 48])
                labels.append(label)
        many = len(labels)
        pictures.append(BoxImage(number, f"{seed}-{number}", picture, 128, 96))
        truths.append(
            BoxTruth(
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(labels, np.int64),
                np.zeros(many, bool),
                np.full(many, 64.0 * 48),
                np.arange(many) + 10 * number,
            )
        )
    return BoxDataset(f"coloured-{seed}", NAMES, pictures, truths)
