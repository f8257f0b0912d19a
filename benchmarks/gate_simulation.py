"""Simulate the gate: how often does it pass a planted drop, or fail a bundle without one?

Prints one line per design, churn and structure: the share of simulated verifications that *pass*
although one group lost twice the margin (must be at most 5 %), and that *fail* although no group
lost anything (at most 5 %); beside them the power (planted drops that fail, innocents that pass).
Verdicts are those of the bundle, from the functions that `ltdeploy verify` runs.

    python benchmarks/gate_simulation.py [--simulations 1000] [--gate score|wald|kish] [--seed 0]

`--gate wald` and `--gate kish` replace the interval by a naive one: the bound must then break.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ltdeploy.verify.gate import bundle_verdict, stratum_verdicts
from ltdeploy.verify.statistics import PairedFlips, paired_flips

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# (flips, images per class, strata, margin, strata tested) -> verdict per simulation and stratum
Gate = Callable[[PairedFlips, Ints, npt.NDArray[np.bool_], float, int], npt.NDArray[np.str_]]

MARGIN = 1.0
BOUND = 0.05
CHURNS = (0.002, 0.01, 0.05, 0.15)
_MOST_LOST = 0.6  # of a class: what a reference of 60 % accuracy can lose


@dataclass(frozen=True)
class Design:
    """Images per class of each group of a test set; the drop is planted in the last group."""

    name: str
    groups: tuple[Ints, ...]

    @property
    def images(self) -> Ints:
        return np.concatenate(self.groups)

    @property
    def strata(self) -> npt.NDArray[np.bool_]:
        """The whole, then each group: shape (1 + groups, classes)."""
        owner = np.repeat(np.arange(len(self.groups)), [len(group) for group in self.groups])
        rows = [owner == group for group in range(len(self.groups))]
        return np.stack([np.ones(len(owner), dtype=np.bool_), *rows])


def _constant(classes: int, images: int) -> Ints:
    return np.full(classes, images, dtype=np.int64)


def _falling(classes: int, most: int, least: int) -> Ints:
    return np.round(np.geomspace(most, least, classes)).astype(np.int64)


DESIGNS = (
    Design("cifar100 35x100,35x100,30x100", tuple(_constant(c, 100) for c in (35, 35, 30))),
    Design("places 131x100,288x100,81x100", tuple(_constant(c, 100) for c in (131, 288, 81))),
    Design("small 10x20 each", tuple(_constant(10, 20) for _ in range(3))),
    Design("inat 100x3,300x3,500x3", tuple(_constant(c, 3) for c in (100, 300, 500))),
    Design("tiny 10x20,10x20,5x3", (_constant(10, 20), _constant(10, 20), _constant(5, 3))),
    Design("unbalanced 30x(200..2) each", tuple(_falling(30, 200, 2) for _ in range(3))),
    Design("unbalanced 300x(200..2) each", tuple(_falling(300, 200, 2) for _ in range(3))),
    Design(
        "two singles among 48x100",
        (_constant(50, 100), _constant(50, 100), np.r_[_constant(48, 100), _constant(2, 1)]),
    ),
    Design(
        "ten pairs among 90x200",
        (_constant(50, 100), _constant(50, 100), np.r_[_constant(90, 200), _constant(10, 2)]),
    ),
    Design(
        "forty pairs among 360x200",
        (_constant(50, 100), _constant(50, 100), np.r_[_constant(360, 200), _constant(40, 2)]),
    ),
)


def _in_smallest(images: Ints, classes: int, amount: float) -> Floats:
    """Return extra loss per class, ``amount`` on average, all in the classes with fewest images."""
    extra = np.zeros(len(images))
    extra[np.argsort(images, kind="stable")[:classes]] = amount * len(images) / classes
    return extra


def _uneven(classes: int, random: np.random.Generator) -> Floats:
    """Return positive factors of mean one, most of them small and a few large."""
    factors = random.gamma(0.4, size=classes) + 0.02
    return np.asarray(factors / factors.mean())


@dataclass(frozen=True)
class Structure:
    """How flips are laid out: churn over classes, drop over the planted group, images together."""

    name: str
    churn: str = "even"  # even | uneven (by class) | swapped (half the classes gain, half lose)
    drop: str = "spread"  # spread | concentrated | smallest
    others_gain: bool = False  # the average stays where it was
    twins: float = 0.0  # share of the images that come in pairs which flip as one
    independent: bool = True  # whether the statistics' assumption holds (nearly)


STRUCTURES = (
    Structure("spread"),
    Structure("few classes", churn="uneven", drop="concentrated"),
    Structure("smallest classes", drop="smallest"),
    Structure("average unmoved", drop="concentrated", others_gain=True),
    Structure("classes swap", churn="swapped", drop="smallest"),
    Structure("a tenth are twins", twins=0.1),
    Structure("all are twins", twins=1.0, independent=False),
)


def rates(
    design: Design, structure: Structure, churn: float, drop: float, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the chance of an image to be lost and to be won, per class.

    Without a drop, every group's lost and won shares are equal on average over its classes (or it
    gains); with one, the last group loses ``drop`` more, on average over its classes.
    """
    lost, won = [], []
    for index, images in enumerate(design.groups):
        classes = len(images)
        both = np.full(classes, churn / 2)
        if structure.churn == "uneven":
            both = np.minimum(both * _uneven(classes, random), 0.15)
        swing = np.zeros(classes)
        if structure.churn == "swapped":
            half = classes // 2
            swing[:half], swing[classes - half :] = -min(0.1, churn), min(0.1, churn)
        own_lost, own_won = both + np.maximum(-swing, 0), both + np.maximum(swing, 0)
        if index == len(design.groups) - 1:
            if structure.drop == "concentrated":
                own_lost = own_lost + _in_smallest(
                    images, int(np.ceil(drop * classes / _MOST_LOST)) or 1, drop
                )
            elif structure.drop == "smallest":
                own_lost = own_lost + _in_smallest(images, -(-classes // 5), drop)
            else:
                own_lost = own_lost + drop
        elif structure.others_gain:
            own_won = own_won + 0.02
        lost.append(own_lost)
        won.append(own_won)
    return np.concatenate(lost), np.concatenate(won)


def draw(
    images: Ints,
    lost: Floats,
    won: Floats,
    simulations: int,
    twins: float,
    random: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Draw lost and won images per simulation and class, shape (simulations, classes)."""
    pairs = np.floor(images * twins / 2).astype(np.int64)
    size = (simulations, len(images))
    total_lost, total_won = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for flip_as_one, units in ((1, images - 2 * pairs), (2, pairs)):
        if units.any():
            drawn_lost = random.binomial(units, lost, size)
            drawn_won = random.binomial(units - drawn_lost, won / (1.0 - lost))
            total_lost += flip_as_one * drawn_lost
            total_won += flip_as_one * drawn_won
    return total_lost, total_won


def score_gate(
    flips: PairedFlips, images: Ints, strata: npt.NDArray[np.bool_], margin: float, tested: int
) -> npt.NDArray[np.str_]:
    """The gate as shipped."""
    return stratum_verdicts(flips, margin, tested)


def wald_gate(
    flips: PairedFlips, images: Ints, strata: npt.NDArray[np.bool_], margin: float, tested: int
) -> npt.NDArray[np.str_]:
    """A gate on the textbook interval: a point when nothing flipped, and no correction."""
    deviation = 1.959963984540054 * np.sqrt(flips.square)
    passed = flips.difference - deviation > -margin / 100
    failed = (flips.difference <= -margin / 100) & (flips.difference + deviation < 0)
    return np.where(passed, "pass", np.where(failed, "fail", "inconclusive"))


def kish_gate(
    flips: PairedFlips, images: Ints, strata: npt.NDArray[np.bool_], margin: float, tested: int
) -> npt.NDArray[np.str_]:
    """A gate on the score interval with Kish's effective size, blind to which images weigh most."""
    classes = strata.sum(axis=1)
    mean_weight = (strata / images).sum(axis=1) / classes**2
    square = mean_weight * (flips.won + flips.lost)
    kish = replace(flips, square=square, heaviest=np.broadcast_to(mean_weight, square.shape))
    return stratum_verdicts(kish, margin, tested)


GATES: dict[str, Gate] = {"score": score_gate, "wald": wald_gate, "kish": kish_gate}


@dataclass(frozen=True)
class Outcome:
    """Shares of simulated verifications of one setting."""

    design: str
    churn: float
    structure: Structure
    planted_pass: float
    planted_fail: float
    innocent_pass: float
    innocent_fail: float

    @property
    def holds(self) -> bool:
        return self.planted_pass <= BOUND and self.innocent_fail <= BOUND

    def line(self) -> str:
        return (
            f"{self.design:32s} churn {self.churn:5.1%}  {self.structure.name:17s} "
            f"drop passes {self.planted_pass:6.1%}  innocent fails {self.innocent_fail:6.1%}   "
            f"drop fails {self.planted_fail:6.1%}  innocent passes {self.innocent_pass:6.1%}"
            f"{'' if self.holds else '   BOUND BROKEN' if self.structure.independent else '   (*)'}"
        )


def simulate(
    design: Design,
    structure: Structure,
    churn: float,
    simulations: int,
    random: np.random.Generator,
    gate: Gate = score_gate,
    drop_margins: float = 2.0,
) -> Outcome:
    """Run one setting: `simulations` verifications with a planted drop, as many without."""
    shares: list[float] = []
    for drop in (drop_margins * MARGIN / 100, 0.0):
        lost_rate, won_rate = rates(design, structure, churn, drop, random)
        lost, won = draw(design.images, lost_rate, won_rate, simulations, structure.twins, random)
        flips = paired_flips(design.images, lost, won, design.strata)
        verdicts = bundle_verdict(
            gate(flips, design.images, design.strata, MARGIN, len(design.strata))
        )
        shares += [float((verdicts == verdict).mean()) for verdict in ("pass", "fail")]
    return Outcome(design.name, churn, structure, *shares)


def run(
    simulations: int, seed: int = 0, gate: Gate = score_gate, drop_margins: float = 2.0
) -> Iterator[Outcome]:
    """Run every design, churn and structure."""
    random = np.random.default_rng(seed)
    for design in DESIGNS:
        for churn in CHURNS:
            for structure in STRUCTURES:
                yield simulate(design, structure, churn, simulations, random, gate, drop_margins)


def main() -> int:
    """Print every setting and a summary; exit with 1 if the bound broke where it should hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gate", choices=sorted(GATES), default="score")
    parser.add_argument("--drop", type=float, default=2.0, help="planted drop, in margins")
    options = parser.parse_args()
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    for outcome in run(options.simulations, options.seed, GATES[options.gate], options.drop):
        print(outcome.line(), flush=True)
        outcomes.append(outcome)
    counted = [outcome for outcome in outcomes if outcome.structure.independent]
    broken = sum(not outcome.holds for outcome in counted)
    print(
        "(*) every image has a twin that flips with it: half the images that were counted. The "
        "statistics take images as independent; remove near-duplicates before measuring."
    )
    print(
        f"gate {options.gate}, {len(counted)} settings of independent images, "
        f"{options.simulations} simulations each: planted drops pass at most "
        f"{max(outcome.planted_pass for outcome in counted):.1%}, innocents fail at most "
        f"{max(outcome.innocent_fail for outcome in counted):.1%}, bound broken in {broken} "
        f"({time.perf_counter() - started:.0f} s)"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
