"""Raw rows of graph and reference are compared, whatever their scores."""

from __future__ import annotations

import numpy as np
import pytest

from ltdeploy.errors import ExportError
from ltdeploy.export.detection.row_checks import require_same_logits


def outputs(seed: int = 0, own_boxes: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (2, 300, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 30, (2, 300, 2))], -1)
    if own_boxes:
        boxes = boxes[:, :, None] + rng.uniform(0, 1, (2, 300, 3, 4))
    logits = rng.normal(0, 3, (2, 300, 4))
    logits[..., 3] = -20  # a class that no score shows
    return {"boxes": boxes.astype(np.float32), "logits": logits.astype(np.float32)}


@pytest.mark.parametrize("own_boxes", [False, True])
def test_rows_may_change_places_and_be_fewer(own_boxes: bool) -> None:
    expected = outputs(own_boxes=own_boxes)
    order = np.random.default_rng(1).permutation(300)[:280]
    found = {name: values[:, order] + np.float32(1e-5) for name, values in expected.items()}
    assert require_same_logits(expected, found) < 1e-5


def test_two_proposals_on_one_box_are_told_apart() -> None:
    expected = outputs()
    expected["boxes"][:, 1] = expected["boxes"][:, 0]
    found = {name: values[:, ::-1].copy() for name, values in expected.items()}
    assert require_same_logits(expected, found) == 0


def test_a_class_without_scores_is_seen() -> None:
    expected, found = outputs(), outputs()
    found["logits"][..., 3] += 0.5
    with pytest.raises(ExportError, match=r"differ from the reference's by 0\.5, most in column 3"):
        require_same_logits(expected, found)


def test_other_boxes_are_no_counterparts() -> None:
    with pytest.raises(ExportError, match=r"Of 600 boxes .* the exported graph has 0"):
        require_same_logits(outputs(0), outputs(5))


def test_no_box_is_no_difference() -> None:
    nothing = {name: values[:, :0] for name, values in outputs().items()}
    assert require_same_logits(nothing, nothing) == 0
