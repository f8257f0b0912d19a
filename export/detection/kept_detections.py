"""Scores, threshold, suppression and the best K as nodes behind a detector's graph.

For those who serve the graph without ltdeploy: what :mod:`ltdeploy.postprocess` computes, with
fixed sizes: the best candidates are taken first, suppressed all at once (see
:mod:`.static_suppression`), and rows that are not needed have the score 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ltdeploy.detection_rules import KeepRule, ScoreRule
from ltdeploy.errors import UsageError
from ltdeploy.models.onnx_head import free_name, names_in

from ..clean_up import clean_up
from ..foreign import rename
from ..to_onnx import OPSET, translated
from .foreign_batch import for_one_image
from .static_boxes import clip_boxes, pick
from .static_suppression import cluster_nms

if TYPE_CHECKING:
    import onnx

    from ltdeploy.canvas import Canvas

__all__ = ["CANDIDATES", "KEPT", "MOST_MASKS", "KeptDetections", "keep_inside", "rule_inside"]

KEPT = ("boxes", "scores", "labels")
# torchvision's and COCO's number of detections per photograph: a mask costs half a GMAC.
MOST_MASKS = 100
# All pairs of these are compared, at 16 MB per photograph and step. TensorRT's top-k ends at 3,840.
CANDIDATES = 2000
# With hundreds of classes the near-duplicates of a few confident ones would fill these places, so
# first each class clears away what its own best rows surely suppress: all pairs of the best rows of
# each class, as many as this number of pairs allows.
_PAIRS_OF_CLASSES = 4_000_000
# An even number of rounds leaves what is undecided in, which the second step decides; an odd one
# leaves it out: neighbours may be missing in a row of a hundred boxes, and none comes twice.
_ROUNDS_OF_CLASSES, _ROUNDS = 8, 65
_PREFIX = "kept."
_SMALLEST_SIDE_PX = 0.01  # as in ltdeploy.postprocess


def rule_inside(keep: KeepRule, *, masks: bool = False) -> KeepRule:
    """Return the rule of a graph that suppresses itself.

    Parameters
    ----------
    masks : whether a mask is computed for each box kept; then there are at most 100 of them.

    Raises
    ------
    UsageError
        For soft suppression, which takes one box after the other, or too many boxes to keep.
    """
    if keep.suppression == "soft":
        raise UsageError(
            "--nms-in-graph needs hard suppression or none, and this detector's is soft, which "
            "takes one box after the other. Leave --nms-in-graph out: the predictor does it."
        )
    if keep.top_k > CANDIDATES:
        raise UsageError(
            f"--nms-in-graph keeps at most {CANDIDATES:,} boxes of a photograph, and this "
            f"detector's rule {keep.top_k:,}. Leave --nms-in-graph out: the predictor does it."
        )
    if masks:
        keep = replace(keep, top_k=min(keep.top_k, MOST_MASKS))
    return keep


class KeptDetections(nn.Module):
    """Raw outputs to the detections kept, see :func:`ltdeploy.postprocess.postprocess`.

    Parameters
    ----------
    keep : as :func:`rule_inside` gives it.
    canvas : boxes are cut to it. Where the photograph does not fill it, the predictor cuts them to
        the photograph, before suppression.

    Returns
    -------
    ``boxes`` (N, K, 4), xyxy in canvas pixels; ``scores`` (N, K), best first; ``labels`` (N, K),
    int64. Rows behind the last detection are 0, with the label −1.
    """

    def __init__(self, scores: ScoreRule, keep: KeepRule, canvas: Canvas) -> None:
        super().__init__()
        self.scores, self.keep = scores, keep
        self.size = canvas.height_px, canvas.width_px

    def forward(
        self, boxes: Tensor, logits: Tensor, quality: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is kept of raw outputs (N, P, 4) or (N, P, F, 4), (N, P, C) and (N, P)."""
        keep = self.keep
        scores = class_scores(self.scores, logits, quality)
        classes = scores.shape[2]
        usable = _sides(boxes) > 0
        of_row = usable if boxes.dim() == 3 else usable.any(dim=2)
        scores = scores * of_row[:, :, None]
        # A rule with a number of candidates of its own means those before any suppression.
        if keep.suppression == "hard" and not keep.class_agnostic and keep.candidates is None:
            scores = self._cleared(boxes, scores)
        everything = scores.flatten(1)
        limit = keep.top_k if keep.suppression == "none" else CANDIDATES
        count = min(keep.candidates or limit, CANDIDATES, everything.shape[1])
        best, places = everything.topk(count, dim=1)
        labels = places % classes
        if boxes.dim() == 3:
            own = pick(boxes, torch.div(places, classes, rounding_mode="floor"))
        else:
            own = pick(boxes.flatten(1, 2), places)
        own = clip_boxes(own, *self.size)
        live = (best > keep.score_threshold) & (_sides(own) >= _SMALLEST_SIDE_PX)
        stands = live.to(best.dtype)
        if keep.suppression == "hard":
            may = _is_better(best, places)
            if not keep.class_agnostic:
                may = may & (labels[:, :, None] == labels[:, None, :])
            stands = cluster_nms(own, stands, keep.iou, _ROUNDS, may)
        scores, order = (best * stands).topk(min(keep.top_k, count), dim=1)
        found = scores > 0
        kept = pick(own, order) * found[:, :, None]
        # A network that overflowed must not look like one that finds nothing.
        sound = _finite(boxes) & _finite(logits)
        scores = torch.where(sound[:, None], scores, float("nan"))
        return kept, scores, torch.where(found, labels.gather(1, order), -1)

    def _cleared(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Return scores (N, P, F), 0 where a better box of the class surely suppresses the row.

        Only the best rows of each class are compared; greedy suppression of a prefix of the ranking
        is the prefix of greedy suppression.
        """
        rows, classes = scores.shape[1:]
        count = min(rows, CANDIDATES, int((_PAIRS_OF_CLASSES / classes) ** 0.5))
        best, places = scores.transpose(1, 2).topk(count, dim=2)
        if boxes.dim() == 3:
            own = pick(boxes, places.flatten(1)).reshape(-1, classes, count, 4)
        else:
            own = boxes.transpose(1, 2).gather(2, places[..., None].expand(-1, -1, -1, 4))
        own = clip_boxes(own, *self.size).flatten(0, 1)
        live = (best.flatten(0, 1) > self.keep.score_threshold) & (_sides(own) >= _SMALLEST_SIDE_PX)
        better = _is_better(best.flatten(0, 1), places.flatten(0, 1))
        stands = cluster_nms(own, live.to(own.dtype), self.keep.iou, _ROUNDS_OF_CLASSES, better)
        left = best * stands.reshape(-1, classes, count)
        return scores.transpose(1, 2).scatter(2, places, left).transpose(1, 2)


def _is_better(scores: Tensor, places: Tensor) -> Tensor:
    """Return whether the row's candidate comes before the column's, (N, M) to (N, M, M).

    Of equal scores the lower place, as in NumPy: engines order them as they like.
    """
    ours, theirs = scores[:, :, None], scores[:, None, :]
    tie = (ours == theirs) & (places[:, :, None] < places[:, None, :])
    return (ours > theirs) | tie


def class_scores(rule: ScoreRule, logits: Tensor, quality: Tensor | None) -> Tensor:
    """Return the scores of the foreground classes, see :meth:`ScoreRule.scores`, (N, P, F)."""
    columns = torch.from_numpy(rule.foreground(logits.shape[2]))
    if rule.activation == "seesaw":
        objects = logits[:, :, -2:].softmax(dim=2)[:, :, :1]
        scores = logits[:, :, :-2].softmax(dim=2) * objects
    else:
        every = logits.softmax(dim=2) if rule.activation == "softmax" else logits.sigmoid()
        scores = every
        if rule.background is not None:
            scores = every.index_select(2, columns)
        if rule.activation == "eqlv2" and rule.background is not None:
            scores = scores * (1 - every[:, :, rule.background : rule.background + 1])
    if quality is None:
        return scores
    of_class, of_quality = rule.exponents
    return scores.pow(of_class) * quality.sigmoid().pow(of_quality)[:, :, None]


def keep_inside(
    graph: onnx.ModelProto, behind: nn.Module, outputs: Sequence[str] = KEPT
) -> onnx.ModelProto:
    """Return a copy of a detector's graph that goes on with what keeps detections.

    Parameters
    ----------
    graph : its outputs are what ``behind`` takes, float32 in whatever precision the network is.
    behind : a :class:`KeptDetections`, or one that does more.
    outputs : what it gives.
    """
    from onnx import compose

    from ..precision.cast import at_least_opset

    before = at_least_opset(graph, OPSET)
    opset = next(one.version for one in before.opset_import if one.domain in ("", "ai.onnx"))
    examples = {
        value.name: torch.zeros([2, *(axis.dim_value for axis in _axes(value)[1:])])
        for value in before.graph.output
    }
    inner = [f"kept_{name}" for name in outputs]  # one of the inputs is called boxes, too
    after = clean_up(translated(behind.eval(), examples, inner, opset=opset))
    after.ir_version = before.ir_version
    for name in outputs:  # tensors of the graph may have the outputs' names
        if name in names_in(before):
            rename(before, name, free_name(f"raw.{name}", set(names_in(before))))
    raw = [value.name for value in before.graph.output]
    both = compose.merge_models(
        before,
        compose.add_prefix(after, _PREFIX),
        io_map=[(one, _PREFIX + name) for one, name in zip(raw, examples, strict=True)],
    )
    for name, own in zip(outputs, inner, strict=True):
        rename(both, _PREFIX + own, name)
    del both.graph.value_info[:]  # of names that were changed
    versions = {one.domain: one for one in both.opset_import}
    del both.opset_import[:]
    both.opset_import.extend(versions.values())
    both.producer_name, both.producer_version = before.producer_name, before.producer_version
    takes_one = before.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    return for_one_image(both) if takes_one else both


def _axes(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _finite(values: Tensor) -> Tensor:
    """Return whether all numbers of a photograph are finite, (N, …) to (N,)."""
    most = torch.finfo(values.dtype).max
    bad = torch.logical_not(values.abs() <= most)  # true of NaN, too
    return bad.to(values.dtype).flatten(1).amax(dim=1) < 0.5


def _sides(boxes: Tensor) -> Tensor:
    """Return the shorter sides, shape (..., 4) to (...); negative ones have no area."""
    return (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)
