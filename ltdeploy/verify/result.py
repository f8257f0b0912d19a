"""What a verification found, as types, as JSON and as one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import numbered
from ..metrics.calibration import Reliability
from ..webpage.pieces import signed
from .gate import Verdict, covers_half

__all__ = [
    "SCHEMA",
    "ClassResult",
    "Flip",
    "FlipKind",
    "GroupResult",
    "VerifyResult",
    "counted",
    "name_some",
    "sentence",
    "signed",
]

SCHEMA = 1
_NAMED = 10

FlipKind = Literal["lost", "won", "changed"]


@dataclass(frozen=True)
class GroupResult:
    """Figures of one group, or of all classes.

    Accuracies and calibration errors in percent, differences in points (candidate minus
    reference); None where the group has no image or the model was not given. ``unfixed``,
    ``reference`` and ``candidate`` average over classes, the three ``…_images`` over images.
    ``ci_low``, ``ci_high``: the 95 % interval of `difference`; ``fail_high``: the upper end of the
    wider one that must be below zero to fail, corrected for the number of groups. ``verdict`` is
    None for a group without classes. ``classes_without_images`` of its ``classes`` are in no
    figure.
    """

    classes: int
    images: int
    unfixed: float | None
    reference: float | None
    candidate: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    fail_high: float | None
    flips_lost: int
    flips_won: int
    verdict: Verdict | None
    images_to_decide: int | None
    classes_without_images: int
    worst_class: str | None
    unfixed_images: float | None
    reference_images: float | None
    candidate_images: float | None
    ece_unfixed: float | None
    ece_reference: float | None
    ece_candidate: float | None


@dataclass(frozen=True)
class ClassResult:
    """Figures of one class; accuracies in percent, None without images.

    ``p_value``: McNemar's exact test against the candidate being worse; ``q_value``: the same,
    corrected for the number of classes (Benjamini–Hochberg); ``regressed``: q < 0.05.
    """

    name: str
    label: int
    group: str
    train_count: int
    images: int
    unfixed: float | None
    reference: float | None
    candidate: float | None
    flips_lost: int
    flips_won: int
    p_value: float | None
    q_value: float | None
    regressed: bool


@dataclass(frozen=True)
class Flip:
    """An image whose top-1 label differs; labels, and confidences in 0..1."""

    index: int
    label: int
    reference: int
    candidate: int
    reference_confidence: float
    candidate_confidence: float

    @property
    def kind(self) -> FlipKind:
        """Lost: only the reference is right; won: only the candidate; changed: neither is."""
        if self.reference == self.label:
            return "lost"
        return "won" if self.candidate == self.label else "changed"


@dataclass(frozen=True)
class VerifyResult:
    """What a verification found.

    Parameters
    ----------
    verdict : of the bundle: fails if any group or the whole fails, passes if all pass.
    margin : points of class-averaged accuracy a group may lose.
    images, unreadable : images that were compared, and that could not be read.
    max_abs_logit_diff : the largest difference of any logit.
    equivalent : no top-1 label changed, and that difference is under the tolerance.
    flips : images whose top-1 label differs.
    notes : what the reader should know of how this was measured.
    not_computed : the precision below float32 that a side was exported in and its engine computed
        in float32 instead: the verdict says nothing of it.
    overall, groups, classes : the figures; groups in the order of the class table's rule, classes
        in label order.
    flipped : the images that flipped, in the order they came. Not in the JSON.
    reliability : reliability diagrams by group (and ``"overall"``), then by model (``"unfixed"``,
        ``"reference"``, ``"candidate"``). Not in the JSON.
    """

    verdict: Verdict
    margin: float
    images: int
    unreadable: int
    max_abs_logit_diff: float
    equivalent: bool
    flips: int
    overall: GroupResult
    groups: Mapping[str, GroupResult]
    classes: Sequence[ClassResult]
    notes: tuple[str, ...] = ()
    not_computed: str | None = None
    flipped: Sequence[Flip] = field(default=(), repr=False)
    reliability: Mapping[str, Mapping[str, Reliability]] = field(default_factory=dict, repr=False)

    @property
    def regressed(self) -> tuple[ClassResult, ...]:
        """The classes that got worse, the surest first."""
        worse = [c for c in self.classes if c.regressed]
        return tuple(sorted(worse, key=lambda c: (c.q_value or 0.0, c.label)))

    @property
    def without_images(self) -> tuple[str, ...]:
        """Names of the classes that have no image and are in no figure."""
        return tuple(c.name for c in self.classes if not c.images)

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable result; its keys are stable within a schema version."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "sentence": sentence(self),
            "margin": self.margin,
            "images": self.images,
            "unreadable": self.unreadable,
            "max_abs_logit_diff": self.max_abs_logit_diff,
            "equivalent": self.equivalent,
            "flips": self.flips,
            "notes": list(self.notes),
            "not_computed": self.not_computed,
            "overall": asdict(self.overall),
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "classes": [asdict(c) for c in self.classes],
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text; what is not known is null, never NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)


def name_some(names: Sequence[str], most: int = _NAMED) -> str:
    """Join the first names with commas and count the rest.

    >>> name_some(["lynx", "ibex", "kiwi"], most=2)
    'lynx, ibex and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def counted(classes: int, without_images: int) -> str:
    """Return how many classes the figures are of.

    >>> counted(50, 0), counted(50, 49)
    ('50', '1 of 50')
    """
    return f"{classes - without_images:,} of {classes:,}" if without_images else f"{classes:,}"


def _measured(name: str, group: GroupResult) -> str:
    """Return ``few −3.43 (95 % interval −4.10 to −2.80)``."""
    if group.difference is None or group.ci_low is None or group.ci_high is None:
        return f"{name} (no images)"
    interval = f"95 % interval {signed(group.ci_low)} to {signed(group.ci_high)}"
    # An interval below zero that does not fail looks like a contradiction: say what kept it.
    limit = group.fail_high if group.verdict == "inconclusive" else None
    if limit is not None and group.ci_high < 0.0 <= limit:
        interval += f", to {signed(limit)} when corrected for several groups"
    return f"{name} {signed(group.difference)} ({interval})"


def _uncovered(result: VerifyResult) -> str:
    """Say of which groups some classes have no images, and where that keeps them undecided."""
    notes = []
    for name, group in result.groups.items():
        if not group.classes_without_images:
            continue
        measured = group.classes - group.classes_without_images
        note = f"no class of {name} has images"
        if measured:
            have = "has" if measured == 1 else "have"
            note = f"only {measured:,} of the {group.classes:,} {name} classes {have} images"
        if group.verdict == "inconclusive" and not covers_half(measured, group.classes):
            missing = [c.name for c in result.classes if c.group == name and not c.images]
            note += f", too few to speak for the group: add images of {name_some(missing)}"
        notes.append(note)
    text = "; ".join(notes)
    return f" {text[0].upper()}{text[1:]}." if text else ""


def _nothing_to_lose(result: VerifyResult) -> str:
    """Name the groups that the reference gets all wrong: to survive there means nothing."""
    lost = [name for name, group in result.groups.items() if group.reference == 0.0]
    if not lost:
        return ""
    return f" The reference gets no image of {' and '.join(lost)} right: nothing to lose there."


def sentence(result: VerifyResult) -> str:
    """Say in plain words what was found, and what to do where nothing could be."""
    text = _finding(result)
    if result.not_computed is None:
        return text
    return (
        f"As float32 on this processor, which says nothing of {result.not_computed}, "
        f"{text[0].lower()}{text[1:]}"
    )


def _finding(result: VerifyResult) -> str:
    strata = {**result.groups, "all classes": result.overall}
    margin = f"margin of {result.margin:g} {'point' if result.margin == 1 else 'points'}"
    names = [c.name for c in result.regressed]
    noun = "this class" if len(names) == 1 else f"these {len(names):,} classes"
    worse = f" Worse for {noun}: {name_some(names)}." if names else ""
    flips = f"{result.flips:,} of {result.images:,} top-1 labels changed"
    uncovered = _uncovered(result) + _nothing_to_lose(result)

    if result.verdict == "pass":
        if result.equivalent:
            return (
                "The tail survived: reference and candidate are numerically the same (no top-1 "
                f"label changed on {numbered(result.images, 'image')}, largest logit difference "
                f"{result.max_abs_logit_diff:.1e}).{uncovered}"
            )
        nearest = _measured(
            *min(
                ((n, g) for n, g in strata.items() if g.ci_low is not None),
                key=lambda item: item[1].ci_low or 0.0,
            )
        )
        if names:
            return (
                f"Every group survived at the {margin}, but {noun} got worse: {name_some(names)}; "
                f"the group nearest to the margin is {nearest}; {flips}.{uncovered}"
            )
        return (
            f"The tail survived: no group can have lost as much as the {margin}; the nearest to "
            f"it is {nearest}; {flips}.{uncovered}"
        )
    if result.verdict == "fail":
        failed = [_measured(n, g) for n, g in strata.items() if g.verdict == "fail"]
        return (
            f"The tail did not survive: {'; '.join(failed)}; {margin}; {flips}.{uncovered}{worse}"
        )

    undecided = {n: g for n, g in strata.items() if g.verdict == "inconclusive"}
    measured = "; ".join(_measured(n, g) for n, g in undecided.items())
    wanted = [
        f"{numbered(g.images_to_decide, 'image')} of {n} (now {g.images:,})"
        for n, g in undecided.items()
        if g.images_to_decide is not None
    ]
    more = f" About {', '.join(wanted)} would decide it." if wanted else ""
    return f"Too little data to decide: {measured}; {margin}; {flips}.{more}{uncovered}{worse}"
