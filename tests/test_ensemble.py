"""Several detectors as one: sizes, mirror images and experts that know some of the classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas, Placement
from ltdeploy.classes import ClassTable
from ltdeploy.detection_rules import KeepRule
from ltdeploy.ensemble import DetectorEnsemble
from ltdeploy.errors import DataError, UsageError
from ltdeploy.fusion import FusionRule, fuse
from ltdeploy.raising import GroupRaise

IMAGE = np.zeros((60, 100, 3), np.uint8)
IMAGE[20:40, 10:50] = 255
SQUARE = [[10, 20, 50, 40]]


@dataclass
class BrightSquare:
    """A detector that finds the bright rectangle of a canvas, under one label with one score."""

    canvas: Canvas = field(default_factory=lambda: Canvas(64, 96))
    names: tuple[str, ...] = ("cat", "dog")
    label: int = 0
    score: float = 0.5
    keep_rule: KeepRule = field(default_factory=lambda: KeepRule(top_k=2))
    seen: int = 0

    @property
    def classes(self) -> ClassTable:
        return ClassTable(self.names, tuple(range(200, 200 - 195 * len(self.names), -195)))

    def detect(
        self, images: npt.NDArray[np.uint8], placements: list[Placement]
    ) -> list[Detections]:
        self.seen += len(images)
        rows, columns = np.nonzero(images[0, :, :, 0] > 127)
        box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
        score = np.array([self.score], np.float32)
        return [Detections(placements[0].to_original(box), score, np.array([self.label]))]


def ensemble(main: BrightSquare, others: dict[str, Any] | None = None, **rest: Any) -> Any:
    return DetectorEnsemble(main, others, **rest)  # type: ignore[arg-type]


def test_sizes_and_flips_come_back_to_the_photograph() -> None:
    sizes = {str(px): BrightSquare(Canvas(px, px * 3 // 2)) for px in (128, 192)}
    main = BrightSquare()
    found = ensemble(main, sizes, mirrored=True).detect(IMAGE)
    np.testing.assert_allclose(found.boxes, SQUARE, atol=1)
    np.testing.assert_allclose(found.scores, [0.5])
    assert [main.seen, *(one.seen for one in sizes.values())] == [2, 2, 2]


def test_without_unflipping_the_flips_would_not_meet() -> None:
    model = BrightSquare()
    pixels, _ = model.canvas.prepare(IMAGE, mirrored=True)
    (wrong,) = model.detect(pixels[None], [model.canvas.place(60, 100)])
    canvas, placement = model.canvas.prepare(IMAGE)
    (right,) = model.detect(canvas[None], [placement])
    assert len(fuse([right, wrong], FusionRule())) == 2


def test_an_expert_alone_with_a_class_is_not_outvoted() -> None:
    """Main knows cat and dog, the expert dog alone, first: its silence on cats counts nothing."""
    expert = BrightSquare(names=("dog",), label=0, score=0.8)
    (cat, dog) = (BrightSquare(label=0), BrightSquare(label=1))
    found = ensemble(cat, {"dogs": expert}, mirrored=True).detect(IMAGE)
    assert found.labels.tolist() == [0, 1]
    # Two of two views that know cats; two of the four that know dogs.
    np.testing.assert_allclose(found.scores, [0.5, 0.8 * 2 / 4], rtol=1e-6)
    agreed = ensemble(dog, {"dogs": expert}).detect(IMAGE)
    np.testing.assert_allclose(agreed.scores, [(0.5 + 0.8) / 2], rtol=1e-6)
    heavy = ensemble(dog, {"dogs": expert}, weights={"dogs": 3.0}).detect(IMAGE)
    np.testing.assert_allclose(heavy.scores, [(0.5 + 3 * 0.8) / 4], rtol=1e-6)


def test_the_raise_comes_before_the_cut() -> None:
    main = BrightSquare(label=0, score=0.6, keep_rule=KeepRule(top_k=1))
    expert = BrightSquare(names=("dog",), score=0.9)  # (0 + 0.9) / 2 where main is silent
    assert main.classes.groups == ("many", "few")
    assert ensemble(main, {"dogs": expert}).detect(IMAGE).labels.tolist() == [0]
    raised = ensemble(main, {"dogs": expert}, raised=GroupRaise({"few": 3.0}))
    assert raised.detect(IMAGE).labels.tolist() == [1]
    assert raised.fused(IMAGE).labels.tolist() == [0, 1]


def test_what_makes_no_ensemble() -> None:
    with pytest.raises(UsageError, match="needs mirrored=True"):
        ensemble(BrightSquare())
    with pytest.raises(UsageError, match=r"'dgos', which is none of the others: dogs.*mean 'dogs'"):
        ensemble(BrightSquare(), {"dogs": BrightSquare()}, weights={"dgos": 2.0})
    with pytest.raises(UsageError, match="weights"):
        ensemble(BrightSquare(), {"dogs": BrightSquare()}, weights={"dogs": -2.0}).detect(IMAGE)
    with pytest.raises(DataError, match="vocabularies disagree"):
        ensemble(BrightSquare(), {"e": BrightSquare(names=("Dog", "bird"))})
