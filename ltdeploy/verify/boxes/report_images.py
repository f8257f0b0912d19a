"""Which photographs a detector's report shows, and their thumbnails."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...arrays import FloatArray, IntArray
from ...boxes import Detections
from ...errors import ImageError
from ...images import load_image
from ...pairing import pair
from .run import BoxVerification

__all__ = ["SHOWN_SCORE", "Sides", "choose_photographs", "sides_of", "thumbnail"]

SHOWN_SCORE = 0.05
_MOST_PHOTOGRAPHS = 24
# Two dozen of these, in base64, leave room for the figures of LVIS in three megabytes.
_MOST_BYTES = 32_000
_SIDES_PX = (480, 400, 320, 240, 120)


@dataclass(frozen=True, eq=False)
class Sides:
    """What both sides show of one photograph, and which detections have a counterpart.

    Parameters
    ----------
    position : place of the photograph among those that could be read.
    reference, candidate : detections at or above `SHOWN_SCORE`.
    candidate_scores : score of each reference detection's counterpart, shape (K,), float32; NaN
        where the candidate has none. It may be below `SHOWN_SCORE`.
    reference_scores : the same of each candidate detection, shape (L,).
    """

    position: int
    reference: Detections
    candidate: Detections
    candidate_scores: FloatArray
    reference_scores: FloatArray

    @property
    def lost(self) -> npt.NDArray[np.bool_]:
        """Which detections only the reference has, shape (K,)."""
        return np.isnan(self.candidate_scores)

    @property
    def new(self) -> npt.NDArray[np.bool_]:
        """Which detections only the candidate has, shape (L,)."""
        return np.isnan(self.reference_scores)

    @property
    def alone(self) -> IntArray:
        """Labels of the detections that only one side has, int64."""
        return np.concatenate([self.reference.labels[self.lost], self.candidate.labels[self.new]])


def sides_of(done: BoxVerification, position: int) -> Sides:
    """Return what both sides show of one photograph."""
    reference, candidate = done.reference[position], done.candidate[position]
    # Labels are paired apart: those of which nothing is shown need no pairs.
    labels = np.concatenate(
        [side.labels[side.scores >= SHOWN_SCORE] for side in (reference, candidate)]
    )
    reference = reference[np.isin(reference.labels, labels)]
    candidate = candidate[np.isin(candidate.labels, labels)]
    counterpart = pair(reference, candidate)
    there = np.flatnonzero(counterpart >= 0)
    after = np.full(len(reference), np.nan, np.float32)
    after[there] = candidate.scores[counterpart[there]]
    before = np.full(len(candidate), np.nan, np.float32)
    before[counterpart[there]] = reference.scores[there]
    ours, theirs = (side.scores >= SHOWN_SCORE for side in (reference, candidate))
    return Sides(position, reference[ours], candidate[theirs], after[ours], before[theirs])


def choose_photographs(done: BoxVerification, most: int = _MOST_PHOTOGRAPHS) -> list[Sides]:
    """Choose which photographs to show, in the order to show them.

    Those with the most detections on one side alone take up to three quarters of the places. What
    is left goes to the groups in turn, the rarest first: to the photograph with the most detections
    alone of the group's classes, and of equals to that with the most objects of them.
    """
    seen = [sides_of(done, position) for position in range(len(done.indices))]
    order = sorted(seen, key=lambda one: (-len(one.alone), one.position))
    chosen = [one for one in order if len(one.alone)][: most - most // 4]
    names = list(done.result.groups)
    group_of = np.array([names.index(one.group) for one in done.result.classes])
    queues = [_best_last(done, order, group_of == group) for group in range(len(names))]
    taken = {one.position for one in chosen}
    while len(chosen) < most and any(queues):
        for queue in reversed(queues):
            while queue and queue[-1] in taken:
                queue.pop()
            if queue and len(chosen) < most:
                taken.add(queue[-1])
                chosen.append(seen[queue.pop()])
    return chosen


def _best_last(
    done: BoxVerification, seen: list[Sides], members: npt.NDArray[np.bool_]
) -> list[int]:
    """Return positions of the photographs that have something of a group, the best one last."""
    ranked = []
    for one in seen:
        truth = done.dataset.truth(int(done.indices[one.position]))
        alone, objects = int(members[one.alone].sum()), int(members[truth.labels].sum())
        if alone or objects:
            ranked.append((alone, objects, -one.position))
    return [-place for *_, place in sorted(ranked)]


def thumbnail(done: BoxVerification, position: int) -> bytes | None:
    """Return a photograph as a small JPEG, or None where it cannot be read any more."""
    index = int(done.indices[position])
    try:
        image = load_image(done.dataset.source(index), name=done.dataset.identifier(index))
    except ImageError:
        return None
    encoded = b""
    for side_px in _SIDES_PX:
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        encoded = buffer.getvalue()
        if len(encoded) <= _MOST_BYTES:
            break
    return encoded
