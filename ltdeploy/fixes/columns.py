"""Which columns of a detector's logits are classes, and maps that leave the others alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..classes import ClassTable
from ..errors import FixError
from ..models.head import Head
from .affine import AffineMap
from .base import FixContext, require_uncorrected

__all__ = [
    "foreground_columns",
    "foreground_counts",
    "on_foreground",
    "require_detector",
    "require_unbalanced",
]

Float64 = npt.NDArray[np.float64]

_SEESAW_OBJECTNESS = 2


def foreground_columns(head: Head) -> IntArray:
    """Return the columns of the logits that are classes of the class table, in label order.

    ========== =================================== ============================================
    activation columns                             not classes
    ========== =================================== ============================================
    softmax    F + 1, background anywhere, or F    ``background``
    sigmoid    F, or F + 1                         ``background``, where there is one
    eqlv2      F + 1 (Tan et al. 2021, 2012.08548) ``background``: the objectness sigmoid
    seesaw     F + 2 (Wang et al. 2021, 2008.10032) the last two: objectness and background
    ========== =================================== ============================================

    Seesaw's order is mmdetection's, which detectors with that loss are trained with.

    Raises
    ------
    FixError
        If the background is no column of the head, or no column is left for classes.
    """
    columns = _class_columns(head.activation, head.background, head.classes)
    if not columns.size:
        raise FixError(
            f"The head has {head.classes} columns and none of them is a class; expected at least "
            f"one beside what its activation ({head.activation}) needs."
        )
    return columns


def _class_columns(activation: str, background: int | None, columns: int) -> IntArray:
    every = np.arange(columns, dtype=np.int64)
    if activation == "seesaw":
        return every[: max(columns - _SEESAW_OBJECTNESS, 0)]
    if background is None:
        if activation == "eqlv2":
            raise FixError(
                "An eqlv2 head has one column for the background and this one names none; give its "
                f"index, which is the last, {columns - 1}, in mmdetection's files."
            )
        return every
    if not 0 <= background < columns:
        raise FixError(
            f"The background is said to be column {background} and the head has the columns 0 to "
            f"{columns - 1}; expected one of these (0 in torchvision's detectors, {columns - 1} in "
            "detectron2's, mmdetection's and DETR)."
        )
    classes: IntArray = every[every != background]
    return classes


def require_detector(head: Head | None, method: str, *, instead: str) -> Head:
    """Return the head, or refuse one that is a classifier's.

    Parameters
    ----------
    instead : what suits a classifier, as the user would type it.

    Raises
    ------
    FixError
        If there is no head, or it is a softmax over classes without a background.
    """
    if head is None:
        raise FixError(
            f"{method} needs to know which column of the logits is the background; give the "
            "detector's checkpoint, or a Head with its 'background' and 'activation'."
        )
    if head.activation == "softmax" and head.background is None:
        raise FixError(
            f"{method} is a fix for detectors, and this head is a classifier's: a softmax without "
            f"a background. For a classifier use {instead}. If it is a detector after all, say "
            "which column is the background."
        )
    return head


def require_unbalanced(method: str, context: FixContext) -> None:
    """Refuse to balance what a balanced loss trained; only seesaw's makes a seesaw head.

    Raises
    ------
    FixError
        As :func:`~ltdeploy.fixes.base.require_uncorrected`.
    """
    seesaw = context.head is not None and str(context.head.activation) == "seesaw"
    require_uncorrected(method, "seesaw" if seesaw else context.trained_with, force=context.force)


def foreground_counts(head: Head, table: ClassTable, method: str) -> Float64:
    """Return the training count of each class column, shape (F,); a count of zero is read as one.

    Raises
    ------
    FixError
        If the class table has not one class per class column.
    """
    classes = len(foreground_columns(head))
    if len(table) != classes:
        beside = head.classes - classes
        hint = ""
        if beside and len(table) == head.classes:
            hint = " Take the background out of the class table: it has no training count."
        raise FixError(
            f"{method} needs one training count per class of the head; the head has {classes} "
            f"classes (of {head.classes} columns {beside} are none) and the class table "
            f"{len(table)}.{hint}"
        )
    return np.maximum(np.array(table.counts, dtype=np.float64), 1.0)


def on_foreground(head: Head, shift: Float64, scale: Float64 | None = None) -> AffineMap:
    """Return ``z'_c = s_c z_c + c_c`` for the classes, and the identity for all other columns.

    Parameters
    ----------
    shift, scale : one number per class in label order, arrays of shape (F,); no scale is 1.
    """
    columns = foreground_columns(head)
    whole = AffineMap.identity(head.classes)
    whole.shift[columns] = shift
    if scale is not None:
        whole.scale[columns] = scale
    return AffineMap(whole.scale, whole.shift)  # checked anew: what is not finite is named
