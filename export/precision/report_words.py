"""What the report of a precision calls things: for a classifier, and for a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Words", "words_of"]


@dataclass(frozen=True)
class Words:
    """Texts that depend on what the model does.

    Attributes
    ----------
    measure, short : what a group loses points of, in full and in a heading.
    groups : what the figures of the groups are.
    difference : what their difference is.
    flips, flips_of, flips_told : answers that changed, in a line of facts, of how many images, and
        explained.
    damage : what a layer's damage is.
    """

    measure: str
    short: str
    groups: str
    difference: str
    flips: str
    flips_of: str
    flips_told: str
    damage: str


_OF_CLASSES = Words(
    measure="class-averaged accuracy",
    short="accuracy",
    groups="Accuracy of the chosen graph in per cent, averaged over the classes of a group, so "
    "that every class counts the same however many images it has.",
    difference="What the graph in low precision gets right more or less often than the float32 "
    "one, in points on the same images; of intervals made this way, 95 in 100 hold the true "
    "difference.",
    flips="images flipped",
    flips_of="of {}",
    flips_told="Images to which it gives another answer than the float32 graph.",
    damage="takes from the margins of the rarest classes' images: the logit of the true class less "
    "the best of the others, averaged over the images, losses alone.",
)
_OF_BOXES = Words(
    measure="average precision",
    short="average precision",
    groups="Average precision of the chosen graph in per cent, of IoU 0.50 to 0.95, averaged over "
    "the classes of a group, so that every class counts the same however many objects it has.",
    difference="How much more or less average precision the graph in low precision has than the "
    "float32 one, in points on the same photographs; the interval comes from drawing photographs "
    "anew, for both alike.",
    flips="boxes found by one alone",
    flips_of="in {} photographs",
    flips_told="Boxes of a score of 0.05 or more that only one of the two graphs finds.",
    damage="takes from the margins of the rarest classes' objects: the log-odds of the best box of "
    "its class that lies on the object less those of the best one that lies on nothing, averaged "
    "over the objects, losses alone.",
)


def words_of(result: Mapping[str, Any]) -> Words:
    """Return the words for the result of an export."""
    return _OF_BOXES if result.get("task") == "detection" else _OF_CLASSES
