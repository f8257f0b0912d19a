"""Raise a detector's rare classes after training: several sizes, mirror images, experts.

Each bundle runs once over the validation and the test photographs, straight and mirrored. Which of
them are fused is chosen on the validation photographs, by mean AP (IoU 0.50 to 0.95) over classes
or groups; the test photographs see the first bundle alone and the chosen ones. Differences carry
95 % intervals of a paired bootstrap over photographs.

    for size in 480x640 608x800; do ltdeploy export cells.pt --canvas $size --out $size.ltd; done
    python benchmarks/detector_ensemble.py 480x640.ltd 608x800.ltd --val val.json --test test.json
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import ltdeploy
from ltdeploy.boxes import Detections
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.fusion import FusionRule, fuse, known_classes
from ltdeploy.images import load_image
from ltdeploy.metrics.detection import average_precision
from ltdeploy.metrics.matching import COCO_LIMITS, Matches, match, truth_of
from ltdeploy.raising import GroupRaise, fit_group_raise
from ltdeploy.vocabulary import class_maps, translate

REPLICATES = 1000


@dataclass(frozen=True)
class Choice:
    """Which bundles are fused, whether mirrored too, and the overlap of one object."""

    bundles: tuple[str, ...]
    mirrored: bool
    iou: float

    def __str__(self) -> str:
        return f"{' + '.join(self.bundles)}{', each mirrored' if self.mirrored else ''}"


class Runs:
    """What each bundle found in the photographs of one data set, straight and mirrored."""

    def __init__(self, bundles: Sequence[str], data: str) -> None:
        dataset = open_boxes(data)
        self.truth = truth_of(dataset)
        with ltdeploy.load_detector(bundles[0]) as main:
            self.table: ClassTable = main.classes
            self.top_k = main.keep_rule.top_k
        self.found: dict[tuple[str, bool], list[Detections]] = {}
        self.knows: dict[str, npt.NDArray[np.bool_]] = {}
        for name in bundles:
            with ltdeploy.load_detector(name) as model:
                labels = class_maps(self.table.names, {name: model.classes.names})[name]
                (self.knows[name],) = known_classes([labels], len(self.table))
                for mirrored in (False, True):
                    found = []
                    for at in range(len(dataset)):
                        pixels = load_image(dataset.source(at))
                        canvas, place = model.canvas.prepare(pixels, mirrored=mirrored)
                        (one,) = model.detect(canvas[None], [place])
                        found.append(translate(one, labels))
                    self.found[name, mirrored] = found

    def fused(self, choice: Choice) -> list[Detections]:
        """Return the detections of every photograph, all of them, best first."""
        views = [
            (name, mirrored)
            for name in choice.bundles
            for mirrored in ((False, True) if choice.mirrored else (False,))
        ]
        if len(views) == 1:
            return self.found[views[0]]
        knows = np.stack([self.knows[name] for name, _ in views])
        rule = FusionRule(iou=choice.iou)
        columns = zip(*(self.found[view] for view in views), strict=True)
        return [fuse(list(of_one), rule, knows) for of_one in columns]

    def matches(self, found: Sequence[Detections]) -> Matches:
        """Return the matches of the best K of each photograph."""
        cut = [one[: self.top_k] for one in found]
        return match(self.truth, cut, len(self.table), COCO_LIMITS)


def mean_ap(matches: Matches) -> float:
    """Return AP over classes and overlaps, in percent."""
    return 100 * float(np.nanmean(average_precision(matches)))


def figures(matches: Matches, weights: npt.NDArray[np.float64] | None = None) -> npt.NDArray:
    """Return AP50 of each class, their mean, and mean AP, shape (..., F + 2), in percent."""
    precision = average_precision(matches, weights)
    fifty = precision[..., 0]
    mean = np.nanmean(fifty, axis=-1, keepdims=True)
    overall = np.nanmean(precision, axis=(-1, -2))[..., None]
    return 100 * np.concatenate([fifty, mean, overall], axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundles", nargs="+", help="the first is the main model")
    parser.add_argument("--val", required=True, metavar="BOXES.json")
    parser.add_argument("--test", required=True, metavar="BOXES.json")
    asked = parser.parse_args()
    validation = Runs(asked.bundles, asked.val)
    main_alone = Choice((asked.bundles[0],), False, 0.55)
    choices = [main_alone] + [
        Choice((asked.bundles[0], *others), mirrored, iou)
        for size in range(len(asked.bundles))
        for others in itertools.combinations(asked.bundles[1:], size)
        for mirrored in (False, True)
        for iou in (0.55, 0.7)
        if size or mirrored
    ]
    print("Validation photographs, mean AP:")
    best, best_ap = main_alone, -1.0
    for choice in choices:
        found = mean_ap(validation.matches(validation.fused(choice)))
        print(f"  {found:5.1f}  {choice}, one object from IoU {choice.iou}")
        if found > best_ap:
            best, best_ap = choice, found
    raised: GroupRaise = fit_group_raise(
        validation.fused(best),
        validation.table,
        validation.top_k,
        lambda cut: mean_ap(validation.matches(cut)),
    )
    print(f"Chosen: {best}, one object from IoU {best.iou}; raise {dict(raised.factors)}")
    test = Runs(asked.bundles, asked.test)
    table = test.table
    before = test.matches(test.fused(main_alone))
    after = test.matches([raised.apply(one, table) for one in test.fused(best)])
    rng = np.random.default_rng(0)
    images = before.images
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=REPLICATES).astype(float)
    differences = figures(after, drawn) - figures(before, drawn)
    low, high = np.nanquantile(differences, (0.025, 0.975), axis=0)
    rows = [*(f"AP50 {name}" for name in table.names), "AP50 mean", "AP mean"]
    print(f"Test, {images} photographs: {main_alone} -> chosen")
    sides = zip(rows, figures(before), figures(after), low, high, strict=True)
    for name, old, new, lower, upper in sides:
        print(
            f"  {name:20s} {old:5.1f} -> {new:5.1f}  {new - old:+.1f} ({lower:+.1f} … {upper:+.1f})"
        )


if __name__ == "__main__":
    main()
