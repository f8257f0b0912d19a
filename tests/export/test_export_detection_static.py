"""Detectors as graphs of fixed sizes give what their own libraries compute."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime as ort
import pytest
import torch
from detector_samples import (
    CLASSES,
    DETECTORS,
    TOP_K,
    detector,
    exported,
    images,
    static,
)
from torchvision.ops import box_iou, roi_align

from ltdeploy.errors import CheckpointError, ExportError, UsageError
from ltdeploy.export.detection.static_roi_align import LevelTable, static_roi_align
from ltdeploy.models.detectors.class_rows import CLASS_ROWS, class_weights, fold_into

FAMILIES = list(DETECTORS)
# Tracing takes seconds each; one family stays among the quick tests.
SLOW = [pytest.param(f, marks=() if f == "retinanet" else pytest.mark.slow) for f in FAMILIES]
NAMES = ("boxes", "logits", "quality")


def reference(family: str, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return DETECTORS[family][2](detector(family), batch)


def differences(
    family: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> tuple[float, float]:
    """Return the largest differences of boxes and of scores, rows matched by box and logits."""
    boxes, scores = 0.0, 0.0
    softmax = CLASS_ROWS[family].activation == "softmax"
    for image in range(len(ours["boxes"])):
        mine = {name: value[image] for name, value in ours.items()}
        yours = {name: value[image] for name, value in theirs.items()}
        first = [one["boxes"].reshape(len(one["boxes"]), -1, 4)[:, 0] for one in (mine, yours)]
        overlap = box_iou(*first).nan_to_num()
        apart = _apart(mine["logits"], yours["logits"])
        if "quality" in mine:
            apart = apart + (mine["quality"][:, None] - yours["quality"][None]).abs()
        best = (overlap - 10 * apart).argmax(dim=1)
        boxes = max(boxes, float((mine["boxes"] - yours["boxes"][best]).abs().max()))
        pairs = [(mine["logits"], yours["logits"][best])]
        if "quality" in mine:
            pairs.append((mine["quality"], yours["quality"][best]))
        for pair in pairs:
            one, other = (v.softmax(dim=1) if softmax else v.sigmoid() for v in pair)
            scores = max(scores, float((one - other).abs().max()))
    return boxes, scores


def _apart(mine: torch.Tensor, yours: torch.Tensor) -> torch.Tensor:
    return torch.cdist(mine, yours, compute_mode="donot_use_mm_for_euclid_dist")


def run(family: str, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    session = ort.InferenceSession(exported(family).SerializeToString())
    found = session.run(None, {"images": batch.numpy()})
    return {name: torch.from_numpy(v) for name, v in zip(NAMES, found, strict=False)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixture_tells_boxes_apart(family: str) -> None:
    told = reference(family, images(2))
    logits = told["logits"].flatten(0, 1)
    assert logits.std(dim=0).min() > 0.05
    assert len(logits.unique(dim=0)) > 0.9 * len(logits)
    assert not told["boxes"][0].allclose(told["boxes"][1], atol=1.0)


@pytest.mark.parametrize("family", ["rt_detr_v2", "d_fine"])
def test_a_fixture_leaves_no_doubt_which_queries_are_chosen(family: str) -> None:
    with torch.no_grad():
        told = detector(family).model(pixel_values=images(2))
    best = told.enc_outputs_class.amax(dim=2).sort(dim=1, descending=True).values
    assert (best[:, TOP_K - 1] - best[:, TOP_K]).min() > 1e-4
    assert best.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_static_graph_equals_the_library(family: str) -> None:
    batch = images(3)
    with torch.no_grad():
        ours = dict(zip(NAMES, static(family)(batch), strict=False))
    boxes, scores = differences(family, ours, reference(family, batch))
    assert boxes <= 0.02
    assert scores <= 1e-4


@pytest.mark.parametrize("family", SLOW)
def test_the_exported_graph_equals_the_library_for_any_batch(family: str) -> None:
    model = exported(family)
    assert "NonZero" not in {node.op_type for node in model.graph.node}
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        assert axes[0].dim_param
        assert all(axis.dim_value for axis in list(axes)[1:])
    for count in (1, 2, 5):
        batch = images(count, seed=count)
        boxes, scores = differences(family, run(family, batch), reference(family, batch))
        assert boxes <= 0.1
        assert scores <= 1e-4


@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_every_detection_of_the_library_is_among_the_static_rows(family: str) -> None:
    module = copy.deepcopy(detector(family))
    module.score_thresh, module.nms_thresh, module.detections_per_img = 0.0, 1.0, 10**6
    graph = static(family)
    batch = images(2)
    with torch.no_grad():
        found, ours = module(list(batch)), graph(batch)
    assert ours[0].shape[1] == graph.rows == sum(graph.kept)
    assert max(graph.kept) == TOP_K
    assert sum(graph.counts) > graph.rows
    for image, theirs in enumerate(found):
        scores = ours[1][image].sigmoid()
        if family == "fcos":
            scores = (scores * ours[2][image].sigmoid()[:, None]).sqrt()
        apart = torch.cdist(theirs["boxes"], ours[0][image], p=float("inf"))
        apart += (theirs["scores"][:, None] - scores.T[theirs["labels"]]).abs()
        assert apart.amin(dim=1).max() < 1e-3


def random_fix(family: str, *, full: bool) -> tuple[np.ndarray, np.ndarray]:
    columns = class_weights(detector(family), family)[0].shape[1]
    rng = np.random.default_rng(3)
    scale = rng.uniform(0.5, 1.5, columns)
    matrix = np.diag(scale) + rng.normal(0, 0.1, (columns, columns))
    return (matrix if full else scale), rng.normal(0, 1, columns)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_fix_equals_the_fix_on_the_logits(family: str, full: bool) -> None:
    module = detector(family)
    scale, shift = random_fix(family, full=full)
    matrix = np.diag(scale) if scale.ndim == 1 else scale
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folded = fold_into(module, family, scale, shift)
    batch = images(2)
    with torch.no_grad():
        plain = DETECTORS[family][2](module, batch)
        fixed = DETECTORS[family][2](folded, batch)
    expected = plain["logits"].double().numpy() @ matrix.T + shift
    np.testing.assert_allclose(fixed["logits"].numpy(), expected, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(fixed["boxes"], plain["boxes"])
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    with torch.no_grad():
        static_rows = dict(zip(NAMES, static(family, folded)(batch), strict=False))
    boxes, scores = differences(family, static_rows, fixed)
    assert boxes <= 0.02
    assert scores <= 1e-4


def test_a_shift_alone_changes_no_layer_but_the_classes() -> None:
    module = detector("d_fine")
    added = "model.decoder.lqe_layers.1.reg_conf.layers.1"
    shift = np.arange(CLASSES, dtype=float)
    folded = fold_into(module, "d_fine", np.ones(CLASSES), shift)
    assert folded.get_submodule(added).out_features == 1
    scaled = fold_into(module, "d_fine", np.full(CLASSES, 2.0), shift)
    assert scaled.get_submodule(added).out_features == CLASSES
    weight = module.model.backbone.parameters().__next__()
    assert folded.model.backbone.parameters().__next__() is weight


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_layer_is_the_one_that_makes_the_logits(family: str) -> None:
    weight, bias = class_weights(detector(family), family)
    columns = reference(family, images(1))["logits"].shape[-1]
    background = CLASS_ROWS[family].background is not None
    assert weight.shape[1] == columns == CLASSES + background
    assert len(weight) == {"retinanet": 6, "cascade_rcnn": 3}.get(family, 1)
    assert bias is not None
    assert bias.shape == weight.shape[:2]


def test_a_fix_of_another_size_or_family_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"\(3,\) and c of shape \(3,\).* has 5 columns"):
        fold_into(detector("rcnn"), "rcnn", np.ones(3), np.zeros(3))
    with pytest.raises(UsageError, match="rt_detr_v2"):
        fold_into(detector("rcnn"), "rt_detr", np.ones(3), np.zeros(3))


def test_pooling_from_a_table_equals_torchvisions() -> None:
    table = LevelTable(((20, 28), (10, 14), (5, 7)), (1 / 8, 1 / 16, 1 / 32))
    torch.manual_seed(1)
    features = [torch.randn(2, 6, *size) for size in table.sizes]
    corners = torch.rand(2, 40, 2, 2) * torch.tensor([224.0, 160.0])
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)
    odd = [[0, 0, 0, 0], [223.9, 159.9, 224, 160], [0, 0, 224, 160], [100, 100, 100, 160]]
    boxes[0, :4] = torch.tensor(odd)
    level = torch.randint(0, 3, (2, 40))
    ours = static_roi_align(features, boxes, level, table, (7, 5), 2)
    row = torch.arange(2.0)[:, None, None].expand(2, 40, 1)
    rois = torch.cat([row, boxes], dim=-1).reshape(-1, 5)
    every = [
        roi_align(feature, rois, (7, 5), scale, 2)
        for feature, scale in zip(features, table.scales, strict=True)
    ]
    theirs = torch.stack(every)[level.reshape(-1), torch.arange(80)]
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-4)


def test_pooling_that_depends_on_the_box_is_refused() -> None:
    module = copy.deepcopy(detector("rcnn"))
    module.roi_heads.box_roi_pool.sampling_ratio = -1
    with pytest.raises(ExportError, match="sampling ratio -1"):
        static("rcnn", module)
