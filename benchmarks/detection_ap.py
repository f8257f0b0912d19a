"""Time our average precision against lvis and faster-coco-eval, on the same made detections.

Objects and detections are drawn: class frequencies fall as 1 / rank, an image has some twelve
objects of up to five classes, ten classes known to be absent and one not exhaustively annotated; a
third of the detections are jittered objects, a third are boxes of classes that were looked for, the
rest of any class. Ours is timed with AP_fixed and AP_pool, which the others do not give; the others
without reading files. Each line ends with the largest difference of AP, AP50, AP75, AP_s/m/l and
AP_r/c/f from ours. A second part times the bootstrap: AP of resampled images, without new matches.
Times are seconds of CPU, which a busy machine does not stretch as much.

    pip install --no-deps lvis==0.5.3 && pip install pycocotools faster-coco-eval
    python benchmarks/detection_ap.py                  # 5,000 images, 300 detections, 1,203 classes
    python benchmarks/detection_ap.py --quick          # 500 images
    python benchmarks/detection_ap.py --judges lvis    # one of them
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from ltdeploy.boxes import Detections
from ltdeploy.classes import LVIS_GROUPS
from ltdeploy.metrics.detection import BoxScores, average_precision, evaluate
from ltdeploy.metrics.matching import FIXED_LIMITS, LVIS_LIMITS, ImageTruth, match

Json = dict[str, Any]
_FREQUENCY = {"rare": "r", "common": "c", "frequent": "f"}


def draw(
    images: int, most: int, classes: int, seed: int
) -> tuple[list[ImageTruth], list[Detections]]:
    """Draw the truth and the detections of each image."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, classes + 1)
    share /= share.sum()
    truth, detections = [], []
    for _ in range(images):
        present = rng.choice(classes, 5, p=share)
        labels = rng.choice(present, rng.poisson(12))
        sides = rng.lognormal(4, 0.8, (len(labels), 2))
        corner = rng.uniform(0, 500, (len(labels), 2))
        boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        absent = np.setdiff1d(rng.choice(classes, 10), labels)
        truth.append(
            ImageTruth(
                boxes=boxes,
                labels=labels,
                crowd=np.zeros(len(labels), np.bool_),
                area=(boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(axis=1),
                negative=absent,
                not_exhaustive=labels[:1],
            )
        )
        near = rng.integers(0, len(labels), most // 3) if len(labels) else np.zeros(0, np.int64)
        jitter = rng.normal(0, 0.1, (len(near), 4)) * np.tile(sides[near], 2)
        others = most - len(near)
        corner = rng.uniform(0, 500, (others, 2))
        nothing = np.concatenate([corner, corner + rng.lognormal(4, 0.8, (others, 2))], axis=1)
        known = [*present, *absent]
        named = np.concatenate(
            [
                labels[near],
                rng.choice(known, others // 2),
                rng.choice(classes, others - others // 2, p=share),
            ]
        )
        found = np.concatenate([boxes[near] + jitter, nothing])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores = np.round(rng.random(most), 4).astype(np.float32)
        detections.append(Detections(found.astype(np.float32), scores, named.astype(np.int64)))
    return truth, detections


def groups_of(truth: list[ImageTruth], classes: int) -> list[str]:
    """Return the group of each class, by its images."""
    counts = np.bincount(np.concatenate([np.unique(t.labels) for t in truth]), minlength=classes)
    return [LVIS_GROUPS.group_of(int(count)) for count in counts]


def as_lvis(
    truth: list[ImageTruth], detections: list[Detections], groups: list[str]
) -> tuple[Json, list[Json]]:
    """Return the same as LVIS's json and results; labels are the category ids."""

    def xywh(boxes: np.ndarray) -> list[list[float]]:
        corners = boxes.astype(np.float64)
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()

    content: Json = {
        "images": [
            {
                "id": i,
                "height": 1000,
                "width": 1000,
                "neg_category_ids": t.negative.tolist(),
                "not_exhaustive_category_ids": t.not_exhaustive.tolist(),
            }
            for i, t in enumerate(truth)
        ],
        "categories": [
            {"id": c, "name": str(c), "frequency": _FREQUENCY[group]}
            for c, group in enumerate(groups)
        ],
        "annotations": [],
    }
    for i, t in enumerate(truth):
        for box, label, area in zip(xywh(t.boxes), t.labels.tolist(), t.area.tolist(), strict=True):
            own = {"id": len(content["annotations"]) + 1, "image_id": i, "iscrowd": 0}
            content["annotations"].append(own | {"category_id": label, "bbox": box, "area": area})
    results = [
        {"image_id": i, "category_id": label, "bbox": box, "score": score}
        for i, d in enumerate(detections)
        for box, label, score in zip(
            xywh(d.boxes), d.labels.tolist(), d.scores.tolist(), strict=True
        )
    ]
    return content, results


def lvis_figures(content: Json, results: list[Json]) -> list[float]:
    """Return AP, AP50, AP75, AP_s/m/l and AP_r/c/f of lvis."""
    # lvis 0.5.3 draws with OpenCV, which no figure needs, and knows numpy's old name of float.
    sys.modules.setdefault("cv2", types.ModuleType("cv2"))
    np.float = float  # type: ignore[attr-defined]
    from lvis import LVIS, LVISEval, LVISResults

    gt = LVIS.__new__(LVIS)
    gt.logger = logging.getLogger("lvis")
    gt.logger.setLevel(logging.ERROR)
    gt.dataset = content
    gt._create_index()
    judge = LVISEval(gt, LVISResults(gt, results), "bbox")
    judge.run()
    figures = judge.get_results()
    return [figures[f"AP{key}"] for key in ("", "50", "75", "s", "m", "l", "r", "c", "f")]


def faster_figures(content: Json, results: list[Json]) -> list[float]:
    """Return the same of faster-coco-eval; its cap of 300 is per class, so no image may pass it."""
    from faster_coco_eval import COCO, COCOeval_faster

    gt = COCO(content)
    judge = COCOeval_faster(gt, gt.loadRes(results), "bbox", lvis_style=True)
    judge.params.maxDets = [300]
    judge.run()
    figures = judge.stats_as_dict
    keys = ("all", "50", "75", "small", "medium", "large")
    return [*(figures[f"AP_{key}"] for key in keys), *(figures[f"AP{key}"] for key in "rcf")]


def ours_figures(scores: BoxScores) -> list[float]:
    """Return ours, in 0..1; −1 where there is nothing to find, as the judges have it."""
    first = (scores.ap, scores.ap50, scores.ap75)
    sized = (scores.ap_small, scores.ap_medium, scores.ap_large)
    grouped = (
        scores.by_group[g].ap if g in scores.by_group else None
        for g in ("rare", "common", "frequent")
    )
    return [-1.0 if ap is None else ap / 100 for ap in (*first, *sized, *grouped)]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of CPU that a call takes, and what it returns."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def bootstrap(
    name: str, truth: list[ImageTruth], found: list[Detections], classes: int, replicates: int
) -> None:
    """Print the time of AP of resampled images."""
    matches = match(truth, found, classes, LVIS_LIMITS)
    rng = np.random.default_rng(0)
    n = len(truth)
    weights = rng.multinomial(n, np.full(n, 1 / n), replicates).astype(np.float64)
    seconds, _ = timed(lambda: average_precision(matches, weights))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"bootstrap {name}: {n} images x {classes} classes, {len(matches.label)} detections that "
        f"count, {replicates} replicates: {seconds:.1f} s, peak memory so far {peak:.0f} MiB"
    )


def exhaustive(truth: list[ImageTruth]) -> list[ImageTruth]:
    """Return the truth as if every image had been searched for every class."""
    return [ImageTruth(t.boxes, t.labels, t.crowd, t.area) for t in truth]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=300)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--quick", action="store_true", help="500 images")
    parser.add_argument("--judges", nargs="*", default=["lvis", "faster-coco-eval"])
    arguments = parser.parse_args()
    images = 500 if arguments.quick else arguments.images

    small = draw(72, 300, 3, seed=1)
    bootstrap("small", exhaustive(small[0]), small[1], 3, 1000)
    truth, found = draw(images, arguments.detections, arguments.classes, seed=0)
    groups = groups_of(truth, arguments.classes)
    size = f"{images} images x {arguments.detections} detections x {arguments.classes} classes"
    own_seconds, scores = timed(lambda: evaluate(truth, found, groups))
    own = ours_figures(scores)
    matched, _ = timed(lambda: match(truth, found, arguments.classes, FIXED_LIMITS))
    print(
        f"ours {size}: {own_seconds:.1f} s (one matching: {matched:.1f} s); AP {100 * own[0]:.2f}"
    )
    bootstrap("large", truth, found, arguments.classes, 100)

    judges = {"lvis": lvis_figures, "faster-coco-eval": faster_figures}
    for name in arguments.judges:
        content, results = as_lvis(truth, found, groups)
        seconds, theirs = timed(lambda judge=judges[name], c=content, r=results: judge(c, r))
        difference = float(np.abs(np.subtract(own, theirs)).max())
        print(
            f"{name} {size}: {seconds:.1f} s, {seconds / own_seconds:.1f} x ours; "
            f"largest difference {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
