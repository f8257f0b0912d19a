"""Measure post-processing and fusion of one photograph, beside torchvision's own in the same run.

Prints one line per figure: the median time of the processor (not of the clock: other processes on
the machine do not count) on one thread, and how many times as long torchvision takes where it has
the same. Outputs are synthesised at the size of LVIS: 1,203 classes.

    python benchmarks/postprocess.py [--runs 30]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from ltdeploy.arrays import FloatArray
from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas
from ltdeploy.fusion import FusionRule, fuse
from ltdeploy.postprocess import KeepRule, ScoreRule, postprocess

CLASSES = 1203
HEIGHT_PX, WIDTH_PX = 800, 1333
PLACEMENT = Canvas(HEIGHT_PX, WIDTH_PX).place(HEIGHT_PX, WIDTH_PX)
RNG = np.random.default_rng(0)


def draw_boxes(*shape: int) -> FloatArray:
    """Return random boxes of shape (*shape, 4)."""
    corners = RNG.uniform(0, 700, (*shape, 2))
    boxes = np.concatenate([corners, corners + RNG.uniform(10, 200, (*shape, 2))], axis=-1)
    return boxes.astype(np.float32)


def draw_queries() -> tuple[FloatArray, FloatArray]:
    """Return 300 boxes and sigmoid logits of which a hundredth is above the threshold."""
    return draw_boxes(300), RNG.normal(-12, 1.5, (300, CLASSES)).astype(np.float32)


def draw_proposals(objects: int = 40) -> tuple[FloatArray, FloatArray]:
    """Return 1,000 proposals around some objects, a box per class, softmax logits, background 0."""
    centres = draw_boxes(objects)[RNG.integers(0, objects, 1000)]
    boxes = centres[:, None] + RNG.normal(0, 6, (1000, CLASSES, 4)).astype(np.float32)
    logits = RNG.normal(-7, 1.5, (1000, CLASSES + 1)).astype(np.float32)
    logits[:, 0] = 4
    logits[np.arange(1000), RNG.integers(1, CLASSES + 1, 1000)] += 10
    return boxes, logits


def torchvision_rcnn(boxes: FloatArray, logits: FloatArray, top_k: int = 300) -> int:
    """Do what ``RoIHeads.postprocess_detections`` does after decoding; return how many it keeps."""
    scores = torch.from_numpy(logits).softmax(-1)[:, 1:].reshape(-1)
    clipped = clip_boxes_to_image(torch.from_numpy(boxes), (HEIGHT_PX, WIDTH_PX)).reshape(-1, 4)
    labels = torch.arange(CLASSES).expand(len(logits), -1).reshape(-1)
    above = torch.where(scores > 1e-4)[0]
    clipped, scores, labels = clipped[above], scores[above], labels[above]
    large = remove_small_boxes(clipped, min_size=1e-2)
    clipped, scores, labels = clipped[large], scores[large], labels[large]
    return len(batched_nms(clipped, scores, labels, 0.5)[:top_k])


def torchvision_queries(boxes: FloatArray, logits: FloatArray, top_k: int = 300) -> int:
    """Do what transformers' RT-DETR does: the best K of all scores; return how many."""
    scores, places = torch.from_numpy(logits).sigmoid().flatten().topk(top_k)
    return len(torch.from_numpy(boxes)[places // CLASSES][scores > 1e-4])


def measure(task: Callable[[], object], runs: int) -> float:
    """Return the median of processor milliseconds, after one run that is not counted."""
    task()
    times = []
    for _ in range(runs):
        start = time.process_time()
        task()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def report(name: str, ours: float, theirs: float | None = None) -> None:
    """Print one line."""
    ratio = "" if theirs is None else f", torch takes {theirs / ours:.1f} times as long"
    print(f"{name:<62} {ours:7.2f} ms{ratio}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=30, help="runs per figure")
    runs = parser.parse_args().runs
    torch.set_num_threads(1)

    boxes, logits = draw_queries()
    sigmoid = ScoreRule("sigmoid")
    theirs = measure(lambda: torchvision_queries(boxes, logits), runs)
    for suppression in ("none", "hard", "soft"):
        rule = KeepRule(suppression=suppression)
        ours = measure(
            lambda rule=rule: postprocess(boxes, logits, None, sigmoid, rule, PLACEMENT), runs
        )
        same = theirs if suppression == "none" else None
        report(f"300 queries x 1,203 classes, sigmoid, suppression {suppression}", ours, same)

    own, logits_rcnn = draw_proposals()
    softmax = ScoreRule("softmax", background=0)
    theirs = measure(lambda: torchvision_rcnn(own, logits_rcnn), max(3, runs // 5))
    for suppression in ("none", "hard", "soft"):
        rule = KeepRule(suppression=suppression)
        ours = measure(
            lambda rule=rule: postprocess(own, logits_rcnn, None, softmax, rule, PLACEMENT), runs
        )
        same = theirs if suppression == "hard" else None
        report(f"1,000 proposals x 1,203 classes, suppression {suppression}", ours, same)

    found = [
        shifted(postprocess(own, logits_rcnn, None, softmax, KeepRule(), PLACEMENT), seed)
        for seed in range(3)
    ]
    for method in ("weighted_boxes", "soft_nms"):
        rule_of_fusion = FusionRule(method)
        ours = measure(lambda rule=rule_of_fusion: fuse(found, rule), runs)
        report(f"3 models x {len(found[0])} detections fused, {method}", ours)


def shifted(found: Detections, seed: int) -> Detections:
    """Return detections as another model would have them: moved by a few pixels."""
    noise = np.random.default_rng(seed).normal(0, 3, found.boxes.shape).astype(np.float32)
    return Detections(found.boxes + noise, found.scores, found.labels)


if __name__ == "__main__":
    main()
