"""Measure label shift without labels on a real long-tailed checkpoint.

Half of CIFAR-100's test images is the validation set: there the model is calibrated for balanced
classes. Targets are drawn from the other half with forward and backward long-tailed shares.
Prints one line per ratio and direction, then the requirement for every estimator.

    python benchmarks/label_shift.py --data ../shared/data [--seeds 5]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ltdeploy.datasets import open_dataset
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.errors import FixError
from ltdeploy.fixes import FixContext
from ltdeploy.fixes.label_shift import LabelShift, ShiftEstimator, estimate_prior_em
from ltdeploy.fixes.scaling import BiasCorrectedTemperature
from ltdeploy.inference import collect_logits
from ltdeploy.models.classifier import load_checkpoint

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RATIOS = (2, 5, 10, 25, 50)
MOST_IMAGES = 2500
ESTIMATORS: tuple[ShiftEstimator, ...] = ("em", "rlls", "bbse")


def line(name: str, value: str) -> None:
    """Print one figure."""
    print(f"{name:<64} {value}", flush=True)


def long_tail(classes: int, ratio: float, *, backward: bool) -> Floats:
    """Return exponentially falling (backward: rising) shares, shape (C,)."""
    shares = np.geomspace(1.0, 1.0 / ratio, classes)
    shares /= shares.sum()
    return shares[::-1] if backward else shares


def draw(labels: Ints, shares: Floats, generator: np.random.Generator) -> Ints:
    """Return indices of images without replacement whose labels follow the shares."""
    per_class = len(labels) // len(shares)
    wanted = np.maximum(1, np.floor(per_class * shares / shares.max())).astype(np.int64)
    members = (generator.permutation(np.flatnonzero(labels == c)) for c in range(len(shares)))
    drawn = np.concatenate([m[:n] for m, n in zip(members, wanted, strict=True)])
    return generator.permutation(drawn)[:MOST_IMAGES]


def accuracy(logits: Floats, labels: Ints) -> float:
    """Return top-1 accuracy in percent."""
    return float(100.0 * (logits.argmax(axis=1) == labels).mean())


def measure(logits: Floats, labels: Ints, seed: int) -> list[dict[str, float]]:
    """Return the gain over no adaptation of the oracle and each estimator, per target set."""
    generator = np.random.default_rng(seed)
    classes = logits.shape[1]
    half = len(labels) // 2
    order = generator.permutation(len(labels))
    known, rest = order[:half], order[half:]
    weights = 1.0 / np.bincount(labels[known], minlength=classes)[labels[known]]
    context = FixContext(logits=logits[known], labels=labels[known], weights=weights)
    calibrate = BiasCorrectedTemperature().fit(context)
    calibrated = calibrate.apply(logits)
    context = replace(context, logits=calibrated[known])
    rows = []
    for ratio in RATIOS:
        for backward in (False, True):
            shares = long_tail(classes, ratio, backward=backward)
            target = rest[draw(labels[rest], shares, generator)]
            seen, truth = calibrated[target], labels[target]
            before = accuracy(seen, truth)
            row = {
                "ratio": float(ratio),
                "backward": float(backward),
                "images": float(len(target)),
                "raw": accuracy(logits[target], truth),
                "before": before,
                "oracle": accuracy(seen + np.log(shares), truth) - before,
                "plain em": accuracy(
                    seen
                    + np.log(estimate_prior_em(seen, np.full(classes, 1 / classes), smoothing=0)),
                    truth,
                )
                - before,
            }
            for estimator in ESTIMATORS:
                try:
                    fix = LabelShift(estimator).fit(replace(context, target_logits=seen))
                    row[estimator] = accuracy(fix.apply(seen), truth) - before
                except FixError:
                    row[estimator] = np.nan
            rows.append(row)
    return rows


def report(rows: list[dict[str, float]]) -> None:
    """Print the means per ratio and direction, then the requirement for each estimator."""
    for ratio in RATIOS:
        for backward in (0.0, 1.0):
            group = [r for r in rows if (r["ratio"], r["backward"]) == (ratio, backward)]
            mean = {key: float(np.mean([r[key] for r in group])) for key in group[0]}
            name = f"ratio {ratio} {'backward' if backward else 'forward'}, {mean['images']:.0f}"
            gains = ", ".join(f"{k} {mean[k]:+.2f}" for k in ("oracle", "em", "rlls", "plain em"))
            line(f"{name} images: not adapted {mean['before']:.2f} %, gains", gains)
    oracle = np.array([row["oracle"] for row in rows])
    worth = oracle > 1.0
    for name in (*ESTIMATORS, "plain em"):
        gain = np.array([row[name] for row in rows])
        if np.isnan(gain).any():
            line(f"{name}: refused (singular confusion matrix)", f"{np.isnan(gain).mean():.0%}")
            continue
        line(
            f"{name}: better where the oracle gains a point (wanted: 90 %)",
            f"{(gain[worth] > 0).mean():.1%} of {worth.sum()}",
        )
        line(f"{name}: worst of {len(rows)}, points (wanted: −1 or better)", f"{gain.min():+.2f}")
        line(f"{name}: mean gain where the oracle gains a point", f"{gain[worth].mean():+.2f}")
    line("oracle: mean gain where it gains a point", f"{oracle[worth].mean():+.2f}")


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
    estimate_prior_em(logits, np.full(classes, 1 / classes))
    took = time.perf_counter() - started
    line(
        f"em with smoothing chosen, {len(logits):,} × {classes} (wanted: below 1 s)",
        f"{took:.2f} s",
    )
    rows = [row for seed in range(told.seeds) for row in measure(logits, collected.labels, seed)]
    report(rows)


if __name__ == "__main__":
    main()
