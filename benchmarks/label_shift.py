"""Measure label shift without labels on a real long-tailed checkpoint.

Half of CIFAR-100's test images is the validation set: there the model is calibrated for balanced
classes. Targets are drawn from the other half with long-tailed shares: forward as in training,
backward, and shuffled (unlike either). Prints accuracies per direction and ratio, then every
estimator against two ways of doing nothing: the model calibrated, and raw as it came.

    python benchmarks/label_shift.py --data ../shared/data [--seeds 5]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_dataset
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.errors import FixError
from ltdeploy.fixes import FixContext
from ltdeploy.fixes.label_shift import LabelShift, ShiftEstimator
from ltdeploy.fixes.scaling import BiasCorrectedTemperature
from ltdeploy.fixes.shift_em import estimate_prior_em
from ltdeploy.inference import collect_logits
from ltdeploy.models.classifier import load_checkpoint

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Row = dict[str, Any]

RATIOS = (2, 5, 10, 25, 50)
MOST_IMAGES = 2500
DIRECTIONS = ("forward", "backward", "shuffled")
BASELINES = {"calibrated": "calibrated", "raw": "raw", "better": "the better of both"}
SHOWN = ("raw", "calibrated", "oracle", "em", "em, no counts", "rlls", "plain em")
ESTIMATORS: tuple[ShiftEstimator, ...] = ("em", "rlls", "bbse")


def line(name: str, value: str) -> None:
    """Print one figure."""
    print(f"{name:<64} {value}", flush=True)


def long_tail(classes: int, ratio: float, direction: str, generator: np.random.Generator) -> Floats:
    """Return exponentially falling, rising, or shuffled shares, shape (C,)."""
    shares = np.geomspace(1.0, 1.0 / ratio, classes)
    shares /= shares.sum()
    if direction == "shuffled":
        return generator.permutation(shares)
    return shares[::-1] if direction == "backward" else shares


def draw(labels: Ints, shares: Floats, generator: np.random.Generator) -> Ints:
    """Return indices of images without replacement whose labels follow the shares."""
    per_class = len(labels) // len(shares)
    wanted = np.maximum(1, np.floor(per_class * shares / shares.max())).astype(np.int64)
    members = (generator.permutation(np.flatnonzero(labels == c)) for c in range(len(shares)))
    drawn = np.concatenate([m[:n] for m, n in zip(members, wanted, strict=True)])
    return generator.permutation(drawn)[:MOST_IMAGES]


def accuracy(logits: FloatArray, labels: Ints) -> float:
    """Return top-1 accuracy in percent."""
    return float(100.0 * (logits.argmax(axis=1) == labels).mean())


def measure(logits: Floats, labels: Ints, table: ClassTable, seed: int) -> list[Row]:
    """Return the accuracies of doing nothing, of the oracle and of each estimator, per target."""
    generator = np.random.default_rng(seed)
    classes = logits.shape[1]
    half = len(labels) // 2
    order = generator.permutation(len(labels))
    known, rest = order[:half], order[half:]
    weights = 1.0 / np.bincount(labels[known], minlength=classes)[labels[known]]
    context = FixContext(logits=logits[known], labels=labels[known], weights=weights, classes=table)
    calibrated = BiasCorrectedTemperature().fit(context).apply(logits)
    context = replace(context, logits=calibrated[known])
    rows = []
    for direction, ratio in product(DIRECTIONS, RATIOS):
        shares = long_tail(classes, ratio, direction, generator)
        target = rest[draw(labels[rest], shares, generator)]
        seen, truth = calibrated[target], labels[target]
        here = replace(context, target_logits=seen)
        plain = estimate_prior_em(seen, np.full(classes, 1 / classes), smoothing=0)
        row: Row = {
            "direction": direction,
            "ratio": ratio,
            "images": len(target),
            "raw": accuracy(logits[target], truth),
            "calibrated": accuracy(seen, truth),
            "oracle": accuracy(seen + np.log(shares), truth),
            "plain em": accuracy(seen + np.log(plain), truth),
            "em, no counts": accuracy(
                LabelShift().fit(replace(here, classes=None)).apply(seen), truth
            ),
        }
        for estimator in ESTIMATORS:
            try:
                row[estimator] = accuracy(LabelShift(estimator).fit(here).apply(seen), truth)
            except FixError:
                row[estimator] = np.nan
        row["better"] = max(row["raw"], row["calibrated"])
        rows.append(row)
    return rows


def requirement(rows: list[Row], name: str) -> None:
    """Print how an estimator does against each way of doing nothing."""
    found = np.array([row[name] for row in rows])
    if np.isnan(found).any():
        line(f"{name}: refused (singular confusion matrix)", f"{np.isnan(found).mean():.0%}")
        return
    oracle = np.array([row["oracle"] for row in rows])
    for baseline, words in BASELINES.items():
        before = np.array([row[baseline] for row in rows])
        gain, possible = found - before, oracle - before
        worth = possible > 1.0
        line(
            f"{name} against {words}",
            f"better in {(gain[worth] > 0).mean():.1%} of {worth.sum()}, mean "
            f"{gain[worth].mean():+.2f} of {possible[worth].mean():+.2f}, worst of {len(rows)}: "
            f"{gain.min():+.2f}, {np.count_nonzero(gain < -1)} below −1",
        )


def report(rows: list[Row]) -> None:
    """Print the mean accuracies per direction and ratio, then how each estimator does."""
    for direction, ratio in product(DIRECTIONS, RATIOS):
        group = [r for r in rows if (r["direction"], r["ratio"]) == (direction, ratio)]
        mean = {key: float(np.mean([r[key] for r in group])) for key in SHOWN}
        images = np.mean([r["images"] for r in group])
        line(
            f"{direction} {ratio}, {images:.0f} images, right in %",
            ", ".join(f"{key} {value:.2f}" for key, value in mean.items()),
        )
    print("where the oracle gains a point (wanted: 90 %), and the worst of all (wanted: −1)")
    tailed = [r for r in rows if r["direction"] != "shuffled"]
    for name in (*ESTIMATORS, "em, no counts", "plain em"):
        requirement(tailed, name)
    print("shares that have nothing to do with those in training")
    shuffled = [r for r in rows if r["direction"] == "shuffled"]
    for name in ("em", "em, no counts", "rlls"):
        requirement(shuffled, name)


def main() -> None:
    """Run every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--seeds", type=int, default=5)
    told = parser.parse_args()
    model = load_checkpoint(told.data / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar")
    dataset = open_dataset(str(told.data / "cifar100" / "test.parquet"))
    collected = collect_logits(
        reference_engine(model), dataset, dataset.labels, model.preprocessing
    )
    logits = collected.logits.astype(np.float64)
    classes = logits.shape[1]
    started = time.perf_counter()
    table = model.require_complete()
    estimate_prior_em(logits, np.full(classes, 1 / classes), training_prior=table.prior())
    took = time.perf_counter() - started
    line(
        f"em with smoothing chosen, {len(logits):,} × {classes} (wanted: below 1 s)",
        f"{took:.2f} s",
    )
    rows = [
        row for seed in range(told.seeds) for row in measure(logits, collected.labels, table, seed)
    ]
    report(rows)


if __name__ == "__main__":
    main()
