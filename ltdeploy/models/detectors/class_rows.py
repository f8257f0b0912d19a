"""Which rows of which layers are a detector's classes, by family, and folding a fix into them.

What the layers' outputs go through before they are logits decides what folds:

- R-CNNs, DETR: one linear layer, the logits are its output.
- Cascade R-CNNs: one linear layer per stage, the logits are the mean of their outputs, and
  ``A z + c`` is the mean of ``A z_t + c``: each layer takes the same fix.
- RetinaNet, FCOS: a convolution whose channels are all classes of the first anchor, then of the
  second, and so on; each anchor's rows take the same fix.
- RT-DETR v2, D-FINE: one linear layer per decoder layer, of which only the one that is evaluated
  gives logits. Queries are chosen by another one (``model.enc_score_head``), which no fix touches:
  a fix changes scores, not what is looked at.
- D-FINE adds one number per query, its estimate of the box's quality, to all logits:
  ``z = W x + b + q 1``. Then ``A z + c = A W x + A b + c + q (A 1)``: the layer that gives q gets
  the rows ``A 1`` times its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..._optional import require
from ...errors import CheckpointError, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from ...postprocess import Activation

__all__ = [
    "CLASS_ROWS",
    "ClassRows",
    "background_warning",
    "class_paths",
    "class_weights",
    "fold_into",
]

Array = npt.NDArray[np.float64]

_CLEARLY = 1.0  # a factor e in the odds: what is drawn at random or hardly trained lies closer


@dataclass(frozen=True)
class ClassRows:
    """Where a family's classes are.

    Parameters
    ----------
    paths : of layers with one row per class (and anchor); ``{last}`` is the decoder layer that is
        evaluated. Several paths are several names of the same layer, unless ``averaged``.
    background : ``"first"`` or ``"last"`` column of the logits, None where there is none.
    tiled : whether the rows are those of all classes for each anchor in turn.
    added : path of a layer whose one output is added to all logits, where there is one.
    averaged : whether the paths are layers apart, the mean of whose outputs are the logits.
    own_boxes : whether each class has boxes of its own, and not all of a row the same.
    activation : what turns logits into scores.
    linear : whether nothing but a mean is between the layers and the logits, so that a fix folds.
    """

    paths: tuple[str, ...]
    background: Literal["first", "last"] | None
    activation: Activation
    tiled: bool = False
    added: str | None = None
    averaged: bool = False
    own_boxes: bool = False
    linear: bool = True


_DECODER = ("model.decoder.class_embed.{last}", "class_embed.{last}")

CLASS_ROWS: dict[str, ClassRows] = {
    "rcnn": ClassRows(("roi_heads.box_predictor.cls_score",), "first", "softmax", own_boxes=True),
    "cascade_rcnn": ClassRows(
        tuple(f"roi_heads.stages.{stage}.box_predictor.cls_score" for stage in range(3)),
        "first",
        "softmax",
        averaged=True,
    ),
    "retinanet": ClassRows(("head.classification_head.cls_logits",), None, "sigmoid", tiled=True),
    "fcos": ClassRows(("head.classification_head.cls_logits",), None, "sigmoid", tiled=True),
    "detr": ClassRows(("class_labels_classifier",), "last", "softmax"),
    "rt_detr_v2": ClassRows(_DECODER, None, "sigmoid"),
    "d_fine": ClassRows(
        _DECODER, None, "sigmoid", added="model.decoder.lqe_layers.{last}.reg_conf.layers.{end}"
    ),
}


def class_paths(module: Any, family: str) -> tuple[str, ...]:
    """Return the dotted paths of the class layers that a fix goes into.

    Raises
    ------
    UsageError
        For an unknown family.
    """
    return tuple(_path(path, module) for path in _rows(family).paths)


def class_weights(module: Any, family: str) -> tuple[Array, Array | None]:
    """Return the class layers' rows, one block per anchor or averaged layer.

    Returns
    -------
    weight : array of shape (blocks, C, D), float64; one block where nothing is tiled or averaged.
    bias : array of shape (blocks, C), float64, or None.

    Raises
    ------
    UsageError
        For an unknown family.
    """
    rows = _rows(family)
    layers = [module.get_submodule(path) for path in _layers(rows, module)]
    anchors = module.head.classification_head.num_anchors if rows.tiled else 1
    blocks = len(layers) * anchors
    weight = np.concatenate([layer.weight.detach().double().numpy() for layer in layers])
    weight = weight.reshape(blocks, weight.shape[0] // blocks, -1)
    if any(layer.bias is None for layer in layers):
        return weight, None
    bias = np.concatenate([layer.bias.detach().double().numpy() for layer in layers])
    return weight, bias.reshape(blocks, -1)


def fold_into(module: Any, family: str, scale: Array, shift: Array) -> nn.Module:
    """Return a copy of a detector whose logits are ``A z + c`` of the original's.

    ``W' = A W`` and ``b' = A b + c`` in float64, rounded once, for each block of rows. The copy
    shares all other weights with the original, which stays as it is.

    Parameters
    ----------
    scale : A, array of shape (C,) for a diagonal or (C, C).
    shift : c, array of shape (C,).

    Raises
    ------
    UsageError
        For an unknown family.
    CheckpointError
        If the fix is for another number of columns than the class layer has.
    """
    torch: Any = require("torch", extra="torch", purpose="fold a fix into a detector")
    rows = _rows(family)
    weight, bias = class_weights(module, family)
    columns = weight.shape[1]
    if shift.shape != (columns,) or scale.shape not in ((columns,), (columns, columns)):
        raise CheckpointError(
            f"The fix has A of shape {scale.shape} and c of shape {shift.shape}; this detector's "
            f"class layer has {columns} columns, the background included where it has one."
        )
    matrix = np.diag(scale) if scale.ndim == 1 else scale
    weight = np.einsum("ck,akd->acd", matrix, weight)
    bias = shift + (np.zeros((len(weight), columns)) if bias is None else bias @ matrix.T)
    shared = {id(held): held for held in (*module.parameters(), *module.buffers())}
    folded: Any = copy.deepcopy(module, shared)
    layers = _layers(rows, module)
    parts = np.split(weight, len(layers)), np.split(bias, len(layers))
    for path, of_layer, shifts in zip(layers, *parts, strict=True):
        old = folded.get_submodule(path)
        layer = _with_rows(torch, old, of_layer.reshape(old.weight.shape), shifts.reshape(-1))
        for name in (path,) if rows.averaged else class_paths(module, family):
            folded.set_submodule(name, layer)
    sums = matrix.sum(axis=1)
    if rows.added is not None and not np.array_equal(sums, np.ones(columns)):
        path = _path(rows.added, module)
        old = folded.get_submodule(path)
        one, number = old.weight.detach().double().numpy(), old.bias.detach().double().numpy()
        folded.set_submodule(path, _with_rows(torch, old, sums[:, None] * one, sums * number))
    made: nn.Module = folded
    return made


def _rows(family: str) -> ClassRows:
    if family not in CLASS_ROWS:
        raise UsageError(
            f"No detector family is called {family!r}; known are {', '.join(CLASS_ROWS)}."
            f"{did_you_mean(family, CLASS_ROWS)}"
        )
    return CLASS_ROWS[family]


def _layers(rows: ClassRows, module: Any) -> list[str]:
    """Return one path for each class layer."""
    paths = rows.paths if rows.averaged else rows.paths[:1]
    return [_path(path, module) for path in paths]


def _path(path: str, module: Any) -> str:
    """Return a path with the decoder layer that gives the logits."""
    if "{last}" not in path:
        return path
    decoder = module.model.decoder
    last = getattr(decoder, "eval_idx", len(decoder.class_embed) - 1)
    if "{end}" not in path:
        return path.format(last=last)
    return path.format(last=last, end=len(decoder.lqe_layers[last].reg_conf.layers) - 1)


def _with_rows(torch: Any, old: Any, weight: Array, bias: Array) -> nn.Module:
    """Return a layer like the old one with other rows, rounded once to float32."""
    layer: Any = copy.deepcopy(old)
    layer.weight = torch.nn.Parameter(torch.from_numpy(weight).float(), requires_grad=False)
    layer.bias = torch.nn.Parameter(torch.from_numpy(bias).float(), requires_grad=False)
    if isinstance(layer, torch.nn.Linear):
        layer.out_features = len(weight)
    made: nn.Module = layer.eval()
    return made


def background_warning(bias: Array | None, background: int | None, told: str) -> list[str]:
    """Return a warning where the bias looks as if the background stood at the other end.

    A softmax learns that most of what it is shown is background, so that its bias is mostly the
    largest.

    Parameters
    ----------
    bias : of the class layer, shape (C,).
    background : the column that is taken for it; None warns of nothing.
    told : what says so, as a sentence's beginning.

    Returns
    -------
    one text, or none.
    """
    if bias is None or background is None or len(bias) < 3:
        return []
    other = len(bias) - 1 - background
    if int(bias.argmax()) != other or bias[other] - bias[background] < _CLEARLY:
        return []
    return [
        f"Warning: {told} has the background in column {background}, and the largest bias of the "
        f"class layer is that of column {other}, at the other end ({float(bias[other]):.3g}; of "
        f"column {background} {float(bias[background]):.3g}). If the background stands there, "
        "every class is off by one: compare what is found with the class table."
    ]
