"""Restore layers to float32, the worst first, until the gate lets the graph pass.

1. The whole recipe is tried. If it is acceptable (:meth:`Trial.acceptable`), that is the answer:
   more layers would be restored for noise, not for the tail.
2. Layers are ranked by the damage that each does alone to the margins of few-shot images.
3. The worst 1, 2, 4, … are restored until the graph is acceptable, then bisection finds the fewest
   of that ranking (taking for granted that restoring more does not make it worse). Where nothing
   less than everything would do, there is no such graph, and that is an error.

Every measurement is kept on disk as soon as it is made. A search that was killed or ran out of time
goes on from there, and comes to the same end as one that was not: no step depends on the clock.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray
from ltdeploy.errors import ExportError
from ltdeploy.files import write_whole
from ltdeploy.progress import Tracker, silent
from ltdeploy.verify.gate import Verdict
from ltdeploy.verify.result import VerifyResult

from .damage import damage_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Found", "Gate", "GroupTrade", "Journal", "Judged", "Trial", "search", "trial_of"]

_SCHEMA = 2


@dataclass(frozen=True)
class GroupTrade:
    """One group under a trial: class-averaged accuracy in percent, difference in points.

    ``classes_without_images`` of its ``classes`` are in no figure.
    """

    reference: float | None
    candidate: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: str | None
    classes: int
    classes_without_images: int


@dataclass(frozen=True)
class Judged:
    """What a gate said of one graph, by group.

    Parameters
    ----------
    verdict : of all groups together.
    flips : answers that differ from the float32 model's.
    """

    verdict: Verdict
    flips: int
    overall: GroupTrade
    groups: Mapping[str, GroupTrade]


class Gate(Protocol):
    """Images that precision is chosen on, with what the float32 model makes of them."""

    @property
    def margin(self) -> float:
        """Points that a group may lose."""

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Fingerprints of its images, shape (N,)."""

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Identifier and reason of every image that could not be used."""

    @property
    def tail(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images of the rarest classes, (M, H, W, 3), and a label per row of the tail's logits."""

    def judge(self, model: onnx.ModelProto, label: str) -> VerifyResult | Judged:
        """Run a graph on all images."""

    def tail_logits(self, model: onnx.ModelProto) -> FloatArray:
        """Return a graph's logits for the tail, (K, C); they need not be finite."""

    def facts(self) -> dict[str, Any]:
        """Return for JSON what its measurements follow from, beside the images."""

    def truth(self) -> bytes:
        """Return what is known of the images, as bytes."""


@dataclass(frozen=True)
class Trial:
    """One way to divide the layers, and what the gate said of it.

    Attributes
    ----------
    restored : layers in float32, the most damaging first.
    verdict : of the gate, on the images of the search.
    flips : images whose answer differs from the float32 model's.
    groups : by name, with ``"overall"``.
    size_bytes : of the graph.
    """

    restored: tuple[str, ...]
    verdict: Verdict
    flips: int
    groups: dict[str, GroupTrade]
    size_bytes: int

    def acceptable(self, margin: float) -> bool:
        """Whether the gate passes it, or cannot decide and no group lost more than half the margin.

        Or more than one standard error, a quarter of the 95 % interval, where that is more: with
        few images a single one weighs more than half a margin.
        """
        small = all(
            -group.difference <= max(margin / 2, (group.ci_high - group.ci_low) / 4)
            for group in self.groups.values()
            if group.difference is not None
            and group.ci_low is not None
            and group.ci_high is not None
        )
        return self.verdict == "pass" or (self.verdict == "inconclusive" and small)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes
    ----------
    chosen : the trial to take.
    trials : all that were made, those with fewer restored layers first.
    damage : by layer, the worst first; empty where nothing had to be ranked.
    fewest : whether fewer of the ranking are known not to do.
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    damage: dict[str, float]
    fewest: bool


@dataclass
class Journal:
    """The measurements of a search, on disk after each of them.

    Parameters
    ----------
    path : the file; None keeps nothing.
    """

    path: Path | None
    damage: dict[str, float] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
            if told["schema"] == _SCHEMA:
                damage = {str(name): float(value) for name, value in told["damage"].items()}
                trials = {int(count): _trial(entry) for count, entry in told["trials"].items()}
                self.damage, self.trials = damage, trials
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass  # none yet; a damaged one costs its measurements alone: they are made again

    def save(self) -> None:
        """Write what is known; where that fails, warn once and keep nothing from then on."""
        if self.path is None:
            return
        told = {
            "schema": _SCHEMA,
            "damage": self.damage,
            "trials": {str(count): asdict(trial) for count, trial in self.trials.items()},
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(told).encode())
        except OSError as error:
            warnings.warn(
                f"{self.path} cannot be written ({error.strerror or error}): this search cannot be "
                "resumed if it is cut off. LTDEPLOY_CACHE names another folder.",
                RuntimeWarning,
                stacklevel=2,
            )
            self.path = None


def search(
    make: Callable[[Collection[str]], onnx.ModelProto],
    whole: onnx.ModelProto,
    layers: Sequence[str],
    gate: Gate,
    *,
    journal: Journal,
    seconds: float,
    track: Tracker = silent,
) -> Found:
    """Return the acceptable trial that restores the fewest layers of the ranking.

    Parameters
    ----------
    make : makes the graph from the names of the layers that stay in float32.
    whole : the float32 graph, which is what restoring everything comes to.
    layers : those that may be restored.
    journal : what an earlier run has measured already.
    seconds : no new measurement is begun after this.

    Raises
    ------
    ExportError
        If time runs out before anything acceptable was found, or nothing but float32 is.
    """
    deadline = time.monotonic() + seconds
    order: list[str] = []

    def attempt(count: int) -> Trial:
        if count not in journal.trials:
            _require_time(deadline, seconds, journal, len(layers))
            graph = make(frozenset(order[:count]))
            told = f"gate, {count} restored" if count else "gate"
            result = gate.judge(graph, told)
            journal.trials[count] = trial_of(result, tuple(order[:count]), graph.ByteSize())
            journal.save()
        return journal.trials[count]

    first = attempt(0)
    if first.acceptable(gate.margin):
        return Found(first, (first,), {}, True)
    order = _ranking(make, whole, layers, gate, journal, deadline, seconds, track)
    most = len(layers) - 1  # to restore all of them is to have no low precision
    below, above = 0, 1
    while above > most or not attempt(above).acceptable(gate.margin):
        if above >= most:
            raise ExportError(_nothing_passes(journal, gate.margin))
        below, above = above, min(2 * above, most)
    fewest = True
    while above - below > 1:
        middle = (below + above) // 2
        try:
            good = attempt(middle).acceptable(gate.margin)
        except _OutOfTime:
            fewest = False
            break
        below, above = (below, middle) if good else (middle, above)
    trials = tuple(journal.trials[count] for count in sorted(journal.trials))
    damage = {name: journal.damage[name] for name in order}
    return Found(journal.trials[above], trials, damage, fewest)


def _nothing_passes(journal: Journal, margin: float) -> str:
    """Return what was tried where everything would have to be float32."""
    tried = []
    for count, trial in sorted(journal.trials.items()):
        lost = {n: g.difference for n, g in trial.groups.items() if g.difference is not None}
        worst = min(lost, key=lost.__getitem__)
        tried.append(f"{count} restored: {worst} {lost[worst]:+.2f}")
    return (
        f"No division of the layers passes the gate at a margin of {margin:g} points: unless all "
        f"of them are float32, a group loses too much ({'; '.join(tried)}). Nothing was written. "
        "Use another precision, training images like those of --val for --calibration, or another "
        "--margin."
    )


class _OutOfTime(ExportError):
    """No time for another measurement."""


def _require_time(deadline: float, seconds: float, journal: Journal, layers: int) -> None:
    if time.monotonic() < deadline:
        return
    kept = "run the same command again and it goes on from there" if journal.path else "all is lost"
    raise _OutOfTime(
        f"The search for layers to restore ran out of its {seconds:.0f} s with "
        f"{len(journal.damage)} of {layers} layers ranked and {len(journal.trials)} divisions "
        f"tried; {kept}. Give it more with --search-seconds N, or fewer images with --val."
    )


def _ranking(
    make: Callable[[Collection[str]], onnx.ModelProto],
    whole: onnx.ModelProto,
    layers: Sequence[str],
    gate: Gate,
    journal: Journal,
    deadline: float,
    seconds: float,
    track: Tracker,
) -> list[str]:
    """Return the layers, the most damaging first; equal ones in the graph's order."""
    missing = [name for name in layers if name not in journal.damage]
    if missing:
        _, labels = gate.tail
        reference = gate.tail_logits(whole)
        everything = frozenset(layers)
        for name in track(missing, total=len(missing), label="rank layers"):
            _require_time(deadline, seconds, journal, len(layers))
            alone = gate.tail_logits(make(everything - {name}))
            journal.damage[name] = damage_of(reference, alone, labels)
            journal.save()
    return sorted(layers, key=lambda name: -journal.damage[name])


def trial_of(result: VerifyResult | Judged, restored: tuple[str, ...], size_bytes: int) -> Trial:
    """Return what is kept of a gate's result."""
    groups = {
        name: GroupTrade(
            reference=group.reference,
            candidate=group.candidate,
            difference=group.difference,
            ci_low=group.ci_low,
            ci_high=group.ci_high,
            verdict=group.verdict,
            classes=group.classes,
            classes_without_images=group.classes_without_images,
        )
        for name, group in {"overall": result.overall, **result.groups}.items()
    }
    return Trial(restored, result.verdict, result.flips, groups, size_bytes)


def _trial(told: dict[str, Any]) -> Trial:
    groups = {name: GroupTrade(**entry) for name, entry in told["groups"].items()}
    return Trial(
        tuple(told["restored"]), told["verdict"], int(told["flips"]), groups, told["size_bytes"]
    )
