"""What turns the class layers' outputs of mmdetection's R-CNNs into scores, by their loss.

``BBoxHead.predict_by_feat`` (``mmdet/models/roi_heads/bbox_heads/bbox_head.py``) takes the softmax
of all columns, unless the loss has ``custom_cls_channels``: then the loss's own activation. Of
mmdetection 3's losses for it that is so of two, ``SeesawLoss`` and ``CrossEntropyCustomLoss``.
``use_sigmoid`` changes what is learnt and not how it is scored, and so it is with ``EQLV2Loss``
(``losses/eqlv2_loss.py``), whose ``get_activation`` and ``test_with_obj`` nothing asks for. In the
authors' own mmdetection 2 (tztztztztz/eqlv2, loss ``EQLv2``) the head does ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from .foreign_settings import WAY_ROUND
from .mmdetection_config import stages_of, within

if TYPE_CHECKING:
    from ...postprocess import Activation

__all__ = ["activation_of"]

_SEESAW, _STOCK_EQL, _AUTHORS_EQL = "SeesawLoss", "EQLV2Loss", "EQLv2"
_SOFTMAX = ("CrossEntropyLoss", "CrossEntropyCustomLoss", "FocalLoss", _STOCK_EQL)


def activation_of(
    keys: Iterable[str],
    config: Mapping[str, Any],
    columns: int,
    rows: int,
    notes: list[str],
    where: str,
) -> Activation:
    """Return what turns the class layer's outputs into scores.

    Parameters
    ----------
    keys : of the weights, mmdetection's.
    config : ``model`` of its config, or empty.
    columns, rows : of the class layer's outputs, and how many boxes a proposal has.

    Raises
    ------
    CheckpointError
        If the loss is one whose head scores otherwise, or that is not known to score alike.
    """
    losses = [within(stage, "loss_cls") or {} for stage in stages_of(config)]
    loss = losses[0] if losses else {}
    if any(_scoring(one) != _scoring(loss) for one in losses):
        raise CheckpointError(
            f"{where}: its config has stages in roi_head.bbox_head whose loss_cls differ; expected "
            f"the same, as their outputs are averaged. {WAY_ROUND}"
        )
    name = str(within(loss, "type") or "").rpartition(".")[2]
    held = {key.rpartition(".")[2] for key in keys if ".loss_cls." in key}
    by_shape = rows > 1 and columns == rows + 2
    if "seesaw" in name.lower() or (not name and ("cum_samples" in held or by_shape)):
        notes.append(
            f"A seesaw head: {columns - 2} classes, and two columns for object and background."
        )
        return "seesaw"
    if rows > 1 and columns != rows + 1:
        raise CheckpointError(
            f"{where}: its class layer has {columns} columns and its proposals boxes of {rows} "
            f"classes, with the loss {name or 'not told'}; expected {rows + 1} columns, or "
            f"{rows + 2} of a seesaw head. {WAY_ROUND}"
        )
    if name == _AUTHORS_EQL or (not name and "pos_grad" in held):
        return _of_authors(loss, notes)
    is_sigmoid = bool(within(loss, "use_sigmoid"))
    known = not name or name in _SOFTMAX
    if (is_sigmoid and not known) or (is_sigmoid and name == "CrossEntropyCustomLoss"):
        raise CheckpointError(
            f"{where}: its config has roi_head.bbox_head.loss_cls = {name} with use_sigmoid=True; "
            f"expected {', '.join((_SEESAW, *_SOFTMAX, _AUTHORS_EQL))}, whose scores are known "
            f"(CrossEntropyCustomLoss: with a softmax). {WAY_ROUND}"
        )
    if not known:
        notes.append(
            f"Warning: its loss {name} is none of mmdetection 3's; assumed is that its head scores "
            "by a softmax over all columns, the background's last, as mmdetection's does. Compare "
            "the scores of a photograph."
        )
    elif is_sigmoid or name in ("FocalLoss", _STOCK_EQL):
        notes.append(
            f"Its loss {name} has learnt by sigmoids; scored is by a softmax over all columns, as "
            "mmdetection 3's BBoxHead does whatever use_sigmoid and test_with_obj say."
        )
    return "softmax"


def _scoring(loss: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what of a loss can decide how its head scores."""
    return tuple(within(loss, key) for key in ("type", "use_sigmoid", "test_with_obj"))


def _of_authors(loss: Mapping[str, Any], notes: list[str]) -> Activation:
    """Return the activation of EQLv2 in its authors' code."""
    if within(loss, "test_with_obj") is False:
        notes.append("An EQLv2 head with test_with_obj=False: each class has a sigmoid, no more.")
        return "sigmoid"
    notes.append(
        "An EQLv2 head, scored as in its authors' code: each class has a sigmoid, and the "
        "background one of its own."
    )
    return "eqlv2"
