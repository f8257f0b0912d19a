"""What a report shows beside the figures: reliability, flipped images, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..arrays import IntArray
from ..errors import UsageError

__all__ = [
    "FlipKind",
    "FlippedImage",
    "Model",
    "Reliability",
    "ReliabilityBin",
    "ReportDetails",
    "choose_flips",
]

Model = Literal["unfixed", "reference", "candidate"]
FlipKind = Literal["lost", "won", "changed"]


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: mean confidence and accuracy in 0–1, and images."""

    confidence: float
    accuracy: float
    count: int

    def __post_init__(self) -> None:
        for name, value in (("confidence", self.confidence), ("accuracy", self.accuracy)):
            if self.count and not 0.0 <= value <= 1.0:
                raise UsageError(
                    f"A reliability bin has {name} {value}; expected a share between 0 and 1, "
                    "not per cent."
                )


@dataclass(frozen=True)
class Reliability:
    """The bins of one model on one group, and its expected calibration error in 0–1."""

    bins: tuple[ReliabilityBin, ...]
    ece: float | None = None


@dataclass(frozen=True)
class FlippedImage:
    """An image whose top-1 differs between reference and candidate.

    Parameters
    ----------
    identifier : where the image came from, ``"val/lynx/003.jpg"``.
    label, reference, candidate : class names: the truth and the two answers.
    group : group of the true class.
    reference_probability, candidate_probability : how sure each model was of its answer, 0–1.
    thumbnail : the picture as JPEG bytes, about 96 px; None where it could not be made.
    """

    identifier: str
    label: str
    group: str
    reference: str
    candidate: str
    reference_probability: float
    candidate_probability: float
    thumbnail: bytes | None = None

    @property
    def kind(self) -> FlipKind:
        """``lost`` where only the reference was right, ``won`` where only the candidate was."""
        if self.reference == self.label:
            return "lost"
        return "won" if self.candidate == self.label else "changed"


@dataclass(frozen=True)
class ReportDetails:
    """What the report shows beside the machine-readable result.

    Parameters
    ----------
    reliability : group name (or ``"overall"``) → model → bins, in the order to show them.
    flips : the flipped images to show, as `choose_flips` picked and ordered them.
    provenance : what was verified and how, label → text, in the order to show them.
    names : what the three models are called in this report.
    """

    reliability: Mapping[str, Mapping[Model, Reliability]] = field(default_factory=dict)
    flips: Sequence[FlippedImage] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[Model, str] = field(
        default_factory=lambda: {
            "unfixed": "Before the fix",
            "reference": "Reference",
            "candidate": "Candidate",
        }
    )


def choose_flips(
    labels: IntArray,
    reference: IntArray,
    candidate: IntArray,
    train_counts: IntArray,
    limit: int = 48,
) -> list[int]:
    """Choose which flipped images to show when there are too many.

    Lost images come first, then won, then those wrong both times; each kind may take half, a
    quarter and a quarter of the places, and what one leaves the next may use. Inside a kind every
    class shows one image before any shows a second, the rarest class first, so that neither the
    head nor one broken class fills the page.

    Parameters
    ----------
    labels, reference, candidate : arrays of shape (N,): the truth and both top-1 answers.
    train_counts : array of shape (C,): training images per class.
    limit : how many images to choose at most.

    Returns
    -------
    Positions into ``labels``, in the order to show them.
    """
    seen: dict[tuple[int, int], int] = {}
    ranked: list[list[tuple[int, int, int]]] = [[], [], []]
    for position in (reference != candidate).nonzero()[0].tolist():
        label = int(labels[position])
        kind = 0 if reference[position] == label else 1 if candidate[position] == label else 2
        turn = seen[kind, label] = seen.get((kind, label), -1) + 1
        ranked[kind].append((turn, int(train_counts[label]), position))
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
    return [p for queue, n in zip(ranked, taken, strict=True) for _, _, p in queue[:n]]
