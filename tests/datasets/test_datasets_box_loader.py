"""Photographs with boxes in batches: what cannot be read, and what has another size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from box_samples import CANVAS, write_boxes
from samples import draw_photo

from ltdeploy.datasets import open_boxes
from ltdeploy.datasets.box_loader import BoxLoader
from ltdeploy.errors import DataError


def test_batches_hold_what_can_be_read_in_order(tmp_path: Path) -> None:
    path = write_boxes(tmp_path, images=5)
    (tmp_path / "images" / "0-1.png").write_bytes(b"no picture")
    loader = BoxLoader(open_boxes(str(path)), CANVAS, batch_size=2)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [batch.indices.tolist() for batch in batches] == [[0], [2, 3], [4]]
    assert batches[1].names == ("0-2.png", "0-3.png")
    assert batches[1].images.shape == (2, 96, 128, 3)
    assert batches[1].images.dtype == np.uint8
    assert (batches[1].placements[0].width_px, batches[1].placements[0].height_px) == (160, 120)
    assert [name for name, _ in loader.unreadable] == ["0-1.png"]
    list(loader)
    assert len(loader.unreadable) == 1  # a second pass counts anew


def test_a_photograph_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_boxes(tmp_path, images=2)
    draw_photo(1, 60, 80).save(tmp_path / "images" / "0-1.png")
    with pytest.raises(DataError, match=r"0-1\.png is 80 × 60 pixels and boxes-0.* says 160 × 120"):
        list(BoxLoader(open_boxes(str(path)), CANVAS, batch_size=2))


def test_none_readable_is_an_error(tmp_path: Path) -> None:
    path = write_boxes(tmp_path, images=2)
    for number in range(2):
        (tmp_path / "images" / f"0-{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"None of the 2 images of boxes-0.* is readable"):
        list(BoxLoader(open_boxes(str(path)), CANVAS, batch_size=2))
