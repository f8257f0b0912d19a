"""What a report shows beside the figures: reliability, flipped images, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..metrics.calibration import Reliability
from .result import Flip, FlipKind

__all__ = ["FlippedImage", "ReportDetails", "choose_flips"]

_KINDS: tuple[FlipKind, ...] = ("lost", "won", "changed")


@dataclass(frozen=True)
class FlippedImage:
    """An image whose top-1 differs between reference and candidate.

    Parameters
    ----------
    identifier : where the image came from, ``"val/lynx/003.jpg"``.
    label, reference, candidate : class names: the truth and the two answers.
    group : group of the true class.
    kind : which of the two was right, as `Flip.kind` says it.
    reference_probability, candidate_probability : how sure each model was of its answer, 0–1.
    thumbnail : the picture as JPEG bytes, about 96 px; None where it could not be made.
    """

    identifier: str
    label: str
    group: str
    kind: FlipKind
    reference: str
    candidate: str
    reference_probability: float
    candidate_probability: float
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class ReportDetails:
    """What the report shows beside the machine-readable result.

    Parameters
    ----------
    reliability : group name (or ``"overall"``) → model → diagram, in the order to show them.
    flips : the flipped images to show, as `choose_flips` picked and ordered them.
    provenance : what was verified and how, label → text, in the order to show them.
    names : what the three models are called in this report.
    """

    reliability: Mapping[str, Mapping[str, Reliability]] = field(default_factory=dict)
    flips: Sequence[FlippedImage] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(
        default_factory=lambda: {
            "unfixed": "Before the fix",
            "reference": "Reference",
            "candidate": "Candidate",
        }
    )


def choose_flips(flips: Sequence[Flip], train_counts: Sequence[int], limit: int = 48) -> list[Flip]:
    """Choose which flipped images to show when there are too many.

    Lost images come first, then won, then those wrong both times; each kind may take half, a
    quarter and a quarter of the places, and what one leaves the next may use. Inside a kind every
    class shows one image before any shows a second, the rarest class first, so that neither the
    head nor one broken class fills the page.

    Parameters
    ----------
    flips : the flipped images, in the order they came.
    train_counts : training images per class, in label order.
    limit : how many images to choose at most.

    Returns
    -------
    The chosen flips, in the order to show them.
    """
    seen: dict[tuple[int, int], int] = {}
    ranked: list[list[tuple[int, int, int]]] = [[], [], []]
    for position, flip in enumerate(flips):
        kind = _KINDS.index(flip.kind)
        turn = seen[kind, flip.label] = seen.get((kind, flip.label), -1) + 1
        ranked[kind].append((turn, train_counts[flip.label], position))
    for queue in ranked:
        queue.sort()
    taken = [
        min(len(queue), share)
        for queue, share in zip(
            ranked, (limit - 2 * (limit // 4), limit // 4, limit // 4), strict=True
        )
    ]
    for kind, queue in enumerate(ranked):
        taken[kind] += min(len(queue) - taken[kind], limit - sum(taken))
    return [flips[p] for queue, n in zip(ranked, taken, strict=True) for _, _, p in queue[:n]]
