"""Masks: grids pasted onto photographs, and their run lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as evaluator
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas
from ltdeploy.detection_rules import KeepRule, ScoreRule
from ltdeploy.errors import DataError
from ltdeploy.masks import MaskGrids, run_lengths
from ltdeploy.postprocess import masks_on, postprocess_batch

SEEDS = st.integers(0, 10**6)


def pasted(grid: np.ndarray, box: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Return what detectron2's formula gives, by PyTorch's own sampling."""
    x1, y1, x2, y2 = (float(side) for side in box)
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - x1) / (x2 - x1) * 2 - 1
    at = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1)
    found = torch.nn.functional.grid_sample(
        torch.from_numpy(grid.astype(np.float64))[None, None], at[None], align_corners=False
    )
    return found[0, 0]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, cells=st.sampled_from([4, 28]))
def test_a_grid_is_pasted_as_pytorch_samples_it(seed: int, cells: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 60, 2))
    low = rng.uniform(-20, 50, 2)
    box = np.concatenate([low, low + rng.uniform(0.5, 60, 2)]).astype(np.float32)
    grid = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    expected = pasted(grid, box, height, width)
    ours = MaskGrids(grid[None], box[None], height, width).pixels(0)
    certain = ((expected - 0.5).abs() > 1e-4).numpy()
    np.testing.assert_array_equal(ours[certain], (expected >= 0.5).numpy()[certain])


@given(seed=SEEDS)
def test_run_lengths_are_coco_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 12, 2))) < rng.choice([0.0, 0.3, 1.0])
    told = run_lengths(mask)
    height, width = mask.shape
    assert sum(told["counts"]) == height * width
    packed = evaluator.frPyObjects(told, height, width)
    np.testing.assert_array_equal(evaluator.decode(packed).astype(bool), mask)


@given(seed=SEEDS)
def test_some_columns_encode_like_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 12, 2))
    first = int(rng.integers(0, width))
    mask = np.zeros((height, width), np.bool_)
    some = rng.random((height, int(rng.integers(0, width - first + 1)))) < 0.6
    mask[:, first : first + some.shape[1]] = some
    assert run_lengths(some, first=first, width_px=width) == run_lengths(mask)
    grids, boxes = rng.random((1, 4, 4)), rng.uniform(-5, 15, (1, 4)).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + 6
    masks = MaskGrids(grids, boxes, height, width)
    assert masks.encoded() == [run_lengths(masks.pixels(0))]


def test_a_full_grid_fills_its_box_and_is_cut_by_the_photograph() -> None:
    grids = np.ones((2, 28, 28), np.float32)
    boxes = np.array([[10, 20, 30, 60], [-40, -40, 8, 6]], np.float32)
    masks = MaskGrids(grids, boxes, 100, 50)
    first, second = masks.pixels(0), masks.pixels(1)
    assert first.shape == (100, 50)
    assert first[20:60, 10:30].all()
    assert first.sum() == 40 * 20
    assert second[:6, :8].all()
    assert second.sum() == 48
    assert not MaskGrids(grids, boxes + 1000, 100, 50).pixels(0).any()
    assert not MaskGrids(grids, boxes * 0, 100, 50).pixels(0).any()


@pytest.mark.parametrize("fit", ["top_left", "centre", "squash"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_of_a_canvas_come_back_onto_the_photograph(fit: str, mirrored: bool) -> None:
    photograph = np.zeros((90, 120, 3), np.uint8)
    photograph[20:70, 30:100] = 255
    photograph[20:45, 30:60] = 0  # a mask without its symmetry
    canvas, placement = Canvas(64, 96, fit=fit).prepare(photograph, mirrored=mirrored)  # type: ignore[arg-type]
    box = placement.to_canvas(np.array([[30, 20, 100, 70]], np.float32))
    x1, y1, x2, y2 = box[0]
    rows = (y1 + (np.arange(28) + 0.5) * (y2 - y1) / 28).astype(int)
    columns = (x1 + (np.arange(28) + 0.5) * (x2 - x1) / 28).astype(int)
    grid = canvas[rows][:, columns, 0].astype(np.float32) / 255
    mask = masks_on(placement, box, grid[None]).pixels(0)
    truth = photograph[..., 0] > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9


def test_detections_carry_their_masks() -> None:
    grids = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    outputs = {
        "boxes": np.array([[[0, 0, 8, 8], [4, 4, 9, 9], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.9, 0.3, 0.0]], np.float32),
        "labels": np.array([[1, 0, -1]]),
        "masks": grids[None],
    }
    canvas = Canvas(16, 16)
    found, *_ = postprocess_batch(
        outputs, ScoreRule("sigmoid"), KeepRule(), [canvas.place(32, 32)], ["a"]
    )
    assert found.masks is not None
    np.testing.assert_array_equal(found.masks.grids[:, 0, 0], [0, 1])
    # Half a pixel of the canvas is a whole one of the photograph.
    np.testing.assert_allclose(found.masks.boxes[0], [1, 1, 17, 17])
    best = found[found.scores > 0.5]
    assert best.masks is not None
    assert len(best.masks) == 1
    with pytest.raises(DataError, match="1 masks for 2 detections"):
        Detections(found.boxes, found.scores, found.labels, best.masks)
    with pytest.raises(DataError, match=r"expected \(K, S, S\)"):
        MaskGrids(grids[0], np.zeros((1, 4), np.float32), 4, 4)
