"""Drawn rectangles that the tests of detector training learn: red squares and green bars."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ltdeploy.canvas import Canvas
from ltdeploy.datasets.boxes import BoxDataset, BoxImage, BoxTruth
from ltdeploy.images import ImageSource
from ltdeploy.training.box_schedule import BoxTrainOptions
from ltdeploy.training.boxes import BoxTrainResult, train_detector

T = TypeVar("T")
ARCH = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
CANVAS = Canvas(96, 96, fill=(114, 114, 114))
RED, GREEN, CROWD = 0, 1, -1
COLOURS = {RED: (250, 0, 0), GREEN: (0, 250, 0), CROWD: (250, 250, 250)}
# What each photograph of the small set holds; the fourth is empty.
HELD = ((RED,), (RED, GREEN), (RED, RED), (), (RED, CROWD), (GREEN,), (RED,), (RED,))


def draw(seed: int, held: Sequence[int]) -> tuple[np.ndarray, BoxTruth]:
    """Draw a dark photograph of 72 x 96 pixels with rectangles side by side, and their boxes."""
    random = np.random.default_rng(seed)
    photo = random.integers(0, 60, (72, 96, 3), dtype=np.uint8)
    boxes = []
    for place, what in enumerate(held):
        width, height = (36, 14) if what == GREEN else (28, 28)
        left = 48 * place + int(random.integers(0, 48 - width))
        top = int(random.integers(0, 72 - height))
        photo[top : top + height, left : left + width] = COLOURS[what]
        boxes.append((left, top, left + width, top + height))
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    truth = BoxTruth(
        corners,
        np.maximum(np.array(held, np.int64), 0),
        np.array(held, np.int64) == CROWD,
        (corners[:, 2:] - corners[:, :2]).prod(axis=1).astype(np.float64),
        10 * seed + np.arange(len(held)),
    )
    return photo, truth


def drawn(
    held: Sequence[Sequence[int]] = HELD,
    names: Sequence[str] = ("red", "green"),
    broken: frozenset[int] = frozenset(),
) -> BoxDataset:
    """Return drawn photographs that hold what is said; the bytes of the broken ones are none."""
    pairs = [draw(seed, one) for seed, one in enumerate(held)]

    def source(index: int) -> ImageSource:
        return b"not an image" if index in broken else pairs[index][0]

    images = [BoxImage(i, f"drawn#{i}", source(i), 96, 72) for i in range(len(held))]
    return BoxDataset("drawn", names, images, [truth for _, truth in pairs])


def fit(out: Path, dataset: BoxDataset | None = None, **changes: Any) -> BoxTrainResult:
    """Train on the drawn set; fields of the options and arguments of train_detector by name."""
    fields = {"epochs": 2, "batch_size": 2, "seed": 3}
    known = BoxTrainOptions.__dataclass_fields__
    fields |= {name: changes.pop(name) for name in list(changes) if name in known}
    arch = changes.pop("arch", ARCH)
    if "rcnn" in arch:
        fields = {"proposals": 32} | fields  # fast
    options = BoxTrainOptions(**fields)
    data = drawn() if dataset is None else dataset
    return train_detector(data, arch, options, out, **({"canvas": CANVAS} | changes))


def after(steps: int, act: Callable[[], None]) -> Callable[..., Iterable[Any]]:
    """Return a tracker that acts when a training has done so many steps."""

    def tracker(items: Iterable[T], *, total: int | None, label: str) -> Iterable[T]:
        for done, item in enumerate(items):
            if label.startswith("Training") and done == steps:
                act()
            yield item

    return tracker


def kill() -> None:
    """End this process at once, as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)
