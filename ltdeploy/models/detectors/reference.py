"""What a detector's own library computes before anything is thresholded or suppressed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .architectures import QUERY_KINDS, Kind
from .reference_one_stage import fcos_outputs, retinanet_outputs
from .reference_queries import query_outputs
from .reference_rcnn import rcnn_outputs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["raw_outputs"]


def raw_outputs(module: Any, kind: Kind, images: Tensor) -> dict[str, Tensor]:
    """Return ``boxes``, ``logits`` and, where there is one, ``quality``.

    Parameters
    ----------
    images : array of shape (N, 3, H, W), float32, normalised.
    """
    if kind == "retinanet":
        return retinanet_outputs(module, images)
    if kind == "fcos":
        return fcos_outputs(module, images)
    if kind in QUERY_KINDS:
        return query_outputs(module, images)
    return rcnn_outputs(module, images)
