"""Put a fix into a PyTorch model: into its head's weights where that is exact, else as nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from ltdeploy.engines.torch_reference import require_suits
from ltdeploy.fixes import AffineMap
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import NewHead, compose, steps_of
from ltdeploy.models.head import Head

if TYPE_CHECKING:
    from torch import nn

    from ltdeploy.models.classifier import Classifier

__all__ = ["Folding", "folded", "split"]

Folding = Literal["weights", "nodes", "none"]
Weights = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]


def split(fix: LogitMap, head: Head) -> tuple[Weights | None, tuple[LogitMap, ...]]:
    """Return what a head's weights take of a fix, W' and b' in float64, and the steps that remain.

    The first step goes in if it is affine and the head linear (``W' = A W``, ``b' = A b + c``), or
    if it is a new head on the features as they are. None where no weight changes.
    """
    steps = tuple(step for step in steps_of(compose(fix)) if not step.is_identity)
    if not steps or not head.foldable:
        return None, steps
    first = steps[0]
    if isinstance(first, AffineMap) and head.kind == "linear":
        return first.fold(head.weight, head.bias), steps[1:]
    if isinstance(first, NewHead) and first.is_linear:
        return (first.weight, first.bias if first.bias.any() else None), steps[1:]
    return None, steps


@contextlib.contextmanager
def folded(model: Classifier, fix: LogitMap) -> Iterator[tuple[nn.Module, Folding]]:
    """Give the model with ``fix`` inside; afterwards its head is as it was.

    A linear head, or a 1×1 convolution that acts as one, takes an affine map in its weights; a new
    linear head takes any head's place. Weights are computed in float64 and rounded once to float32.
    Of what remains, steps that look at features stand in the head's place, where the features are,
    and steps that look at logits alone behind the model.

    Yields
    ------
    the module to export, and how the fix went in.

    Raises
    ------
    FixError
        If the fix was made for another model, or looks at features that there are not.
    """
    from .step_modules import FixedHead, FixedModel, linear_like

    require_suits(fix, model)
    weights, rest = split(fix, model.head)
    if weights is None and not rest:
        yield model.module, "none"
        return
    original = model.module.get_submodule(model.head_path)
    head = original if weights is None else linear_like(original, *weights)
    if any(step.needs_features for step in rest):
        head, rest = FixedHead(head, rest).eval(), ()
    model.module.set_submodule(model.head_path, head)
    try:
        whole = FixedModel(model.module, rest).eval() if rest else model.module
        plain = weights is not None and whole is model.module and not isinstance(head, FixedHead)
        yield whole, "weights" if plain else "nodes"
    finally:
        model.module.set_submodule(model.head_path, original)
