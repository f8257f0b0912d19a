"""Taking the sigmoid or softmax off an ONNX detector's classes and objectness."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from ..onnx_head import free_name, names_in, producer
from .onnx_trace import NOTHING, Activated

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

__all__ = ["without_activations"]


def without_activations(
    model: onnx.ModelProto, activations: Sequence[Activated]
) -> onnx.ModelProto:
    """Return a copy of a graph that gives logits where it gave probabilities.

    A node that handles classes and objectness alone is taken off. One that handles boxes too, as
    YOLOv5's sigmoid over everything, stays, and its input is chosen where classes and objectness
    stand; no such element is computed another way than before.
    """
    from onnx import helper, numpy_helper

    bare = copy.deepcopy(model)
    for one in activations:
        node = producer(bare, one.output)
        if (one.labels != NOTHING).all():
            node.op_type = "Identity"
            del node.attribute[:]
            continue
        taken = set(names_in(bare))
        mask, inner = free_name("classes.mask", taken), free_name(f"{one.output}.all", taken)
        chosen = one.labels != NOTHING
        for axis in range(chosen.ndim):  # as small as broadcasting lets it be, whatever the batch
            first = chosen.take([0], axis)
            chosen = first if (chosen == first).all() else chosen
        bare.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(chosen), mask))
        place = list(bare.graph.node).index(node)
        node.output[0] = inner
        choose = helper.make_node("Where", [mask, node.input[0], inner], [one.output])
        bare.graph.node.insert(place + 1, choose)
    return bare
