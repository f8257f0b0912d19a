"""Somebody's ONNX classifier to the bundle's graph: fix in the head, normalisation in front."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from ltdeploy.engines.torch_reference import require_suits
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.models.onnx_head import free_name, names_in
from ltdeploy.preprocessing import Preprocessing

from .fold import Folding, split
from .step_nodes import append_steps
from .to_onnx import INPUT, OUTPUT

if TYPE_CHECKING:
    import onnx

    from ltdeploy.models.onnx_classifier import OnnxClassifier

__all__ = ["onnx_from_foreign", "prepend_normalisation", "rename"]


def onnx_from_foreign(
    model: OnnxClassifier, fix: LogitMap, metadata: dict[str, str]
) -> tuple[onnx.ModelProto, Folding]:
    """Return the graph ``images`` uint8 (N, H, W, 3) → ``logits`` float32 (N, C), and the folding.

    What can go into the last Gemm or MatMul goes there; steps that cannot follow as nodes, those
    that look at features on that node's input. Cast, transpose and normalisation are put in front
    of the graph's own input.

    Raises
    ------
    FixError
        If the fix was made for another model.
    """
    require_suits(fix, model)
    weights, rest = split(fix, model.head)
    changed = copy.deepcopy(model.model) if weights is None else model.with_head(*weights)
    if rest:
        append_steps(changed, rest, model.features_name, model.output_name)
    rename(changed, model.output_name, OUTPUT)
    entry = free_name("ltdeploy_normalised", set(names_in(changed)))
    rename(changed, model.input_name, entry)
    prepend_normalisation(changed, entry, model.preprocessing)
    for key, value in metadata.items():
        changed.metadata_props.add(key=key, value=value)
    return changed, "nodes" if rest else "none" if weights is None else "weights"


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Call a tensor ``new`` wherever it is made or used; one that had that name gets ``old``."""
    swap = {old: new, new: old}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = swap.get(name, name)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = swap.get(value.name, value.name)


def prepend_normalisation(
    model: onnx.ModelProto, entry: str, preprocessing: Preprocessing, *, bgr: bool = False
) -> None:
    """Put Cast, Transpose, Mul and Add before ``entry`` and make ``images`` the graph's input.

    Parameters
    ----------
    bgr : whether the network takes blue first; the graph's input and mean and std are R, G, B.
    """
    from onnx import TensorProto, helper, numpy_helper

    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    constants = {
        f"{entry}.scale": (1 / (255 * std)).reshape(1, 3, 1, 1),
        f"{entry}.shift": (-mean / std).reshape(1, 3, 1, 1),
    }
    for name, value in constants.items():
        array = value.astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    scale, shift = constants
    steps = [
        helper.make_node("Cast", [INPUT], [f"{entry}.float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{entry}.float"], [f"{entry}.planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", [f"{entry}.planes", scale], [f"{entry}.scaled"]),
        helper.make_node("Add", [f"{entry}.scaled", shift], [f"{entry}.rgb" if bgr else entry]),
    ]
    if bgr:
        turned = numpy_helper.from_array(np.array([2, 1, 0]), f"{entry}.bgr")
        model.graph.initializer.append(turned)
        steps.append(helper.make_node("Gather", [f"{entry}.rgb", turned.name], [entry], axis=1))
    for place, node in enumerate(steps):
        model.graph.node.insert(place, node)
    size = (preprocessing.height_px, preprocessing.width_px)
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *size, 3])
    others = [value for value in model.graph.input if value.name != entry]
    del model.graph.input[:]
    model.graph.input.extend([images, *others])
