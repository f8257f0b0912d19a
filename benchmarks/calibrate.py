"""Measure `calibrate --method auto` on a real long-tailed checkpoint: time, regret, coverage.

Time: the 10,000 × 100 cached logits, all methods, 5 folds. Then, over seeds, the test images are
split into two halves: the fix is chosen on one and measured on the other. Regret: how far the
chosen fix stays behind the one method and value that is best on average over all splits, a choice
that needs hindsight. Coverage: how often the interval printed by `calibrate` for the objective
holds the truth, which nobody knows. Two stand-ins are reported: the chosen fix's accuracy on the
other half, whose own chance the interval does not include, and the same with the interval widened
for that chance (times √2).

    python benchmarks/calibrate.py --data ../shared/data --splits 20
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ltdeploy.calibrate import (
    Aim,
    Calibration,
    DataSources,
    Evidence,
    calibrate,
    evidence_of_checkpoint,
)
from ltdeploy.calibrate.candidates import AUTO, parse_candidate
from ltdeploy.calibrate.objective import likelihood_weights
from ltdeploy.datasets import open_dataset
from ltdeploy.errors import FixError
from ltdeploy.files import default_cache
from ltdeploy.fixes import FixContext, LogitMap, fit_chain, part_of
from ltdeploy.models.classifier import load_checkpoint

ROOT_2 = float(np.sqrt(2))


def line(name: str, value: str) -> None:
    """Print one figure."""
    print(f"{name:<72} {value}", flush=True)


def real_evidence(data: Path) -> Evidence:
    """Return the checkpoint's logits and features on the test and training images."""
    model = load_checkpoint(data / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar")
    cifar = data / "cifar100"
    sources = DataSources(
        open_dataset(str(cifar / "test.parquet")),
        open_dataset(str(cifar / "train_lt_if100.parquet")),
    )
    return evidence_of_checkpoint(model, sources, cache=default_cache(), warn=print)


def balanced(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return class-averaged accuracy in percent."""
    return 100.0 * float(np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)]))


def half(evidence: Evidence, rows: np.ndarray) -> Evidence:
    """Return the evidence with some of its images only."""
    return Evidence(part_of(evidence.context, rows), evidence.name)


def every_choice(
    train: FixContext, test: FixContext, known: dict[str, LogitMap]
) -> dict[str, float]:
    """Return what each method at each value, fitted on one half, reaches on the other.

    ``known`` keeps the maps that validation images have no part in, from one split to the next.
    """
    assert test.logits is not None
    assert test.labels is not None
    weighted = FixContext(**{**vars(train), "weights": likelihood_weights(train, Aim())})
    found = {}
    for name in AUTO:
        candidate = parse_candidate(name)
        values = candidate.values or (0.0,)
        for value, chain in zip(values, candidate.chains, strict=True):
            shown = f"{name} {value:g}"
            try:
                fitted = known[shown] if shown in known else fit_chain(chain, weighted)
            except FixError:
                continue
            if not candidate.learns_from_validation:
                known[shown] = fitted
            predicted = fitted.apply(test.logits, test.features).argmax(axis=1)
            found[shown] = balanced(predicted, test.labels)
    return found


def reached(done: Calibration, test: FixContext) -> float:
    """Return the class-averaged accuracy of a chosen fix on other images."""
    assert test.logits is not None
    assert test.labels is not None
    return balanced(done.fix.apply(test.logits, test.features).argmax(axis=1), test.labels)


def main() -> None:
    """Run every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    told = parser.parse_args()
    evidence = real_evidence(told.data)

    seconds = []
    for _ in range(told.rounds):
        started = time.perf_counter()
        done = calibrate(evidence)
        seconds.append(time.perf_counter() - started)
    line(
        f"calibrate --method auto, {done.images:,} × {len(done.classes)}, {done.folds} folds",
        f"{np.median(seconds):.1f} s ({min(seconds):.1f} … {max(seconds):.1f}), "
        f"{len(done.methods) - 1} methods, chosen {done.chosen.name}",
    )

    tables, chosen, covered, widened, names = [], [], 0, 0, []
    known: dict[str, LogitMap] = {}
    for seed in range(told.splits):
        order = np.random.default_rng(seed).permutation(len(evidence.labels))
        rows = np.zeros(len(order), dtype=bool)
        rows[order[: len(order) // 2]] = True
        choosing, test = half(evidence, rows), half(evidence, ~rows).context
        done = calibrate(choosing, seed=seed)
        truth = reached(done, test)
        printed = done.chosen.objective
        covered += printed.low <= truth <= printed.high
        low = printed.value - ROOT_2 * (printed.value - printed.low)
        widened += low <= truth <= printed.value + ROOT_2 * (printed.high - printed.value)
        with threadpool_limits(1):  # as calibrate does
            tables.append(every_choice(choosing.context, test, known))
        chosen.append(truth)
        names.append(done.chosen.name)
        print(
            f"  split {seed:2d}: {done.chosen.name:<28} printed {printed.value:.2f} "
            f"({printed.low:.2f} … {printed.high:.2f}), other half {truth:.2f}",
            flush=True,
        )
    shared = set.intersection(*(set(table) for table in tables))
    means = {name: float(np.mean([table[name] for table in tables])) for name in shared}
    best = max(means, key=lambda name: means[name])
    regrets = np.array([table[best] for table in tables]) - np.array(chosen)
    per_split = np.array([max(table.values()) for table in tables]) - np.array(chosen)
    line("chosen", ", ".join(f"{n} × {names.count(n)}" for n in sorted(set(names))))
    line("class-averaged accuracy of the chosen fix, mean", f"{np.mean(chosen):.2f} %")
    line(f"of the best fixed choice in hindsight, {best}", f"{means[best]:.2f} %")
    line(
        "regret against it, mean (worst split)",
        f"{regrets.mean():.2f} points ({regrets.max():.2f})",
    )
    line("regret against each split's own best of all", f"{per_split.mean():.2f} points")
    line("interval holds the other half's accuracy", f"{covered} of {told.splits}")
    line("the same, widened by √2 for that half's own chance", f"{widened} of {told.splits}")


if __name__ == "__main__":
    main()
