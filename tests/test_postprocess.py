"""Raw outputs to detections: torchvision's order, each head's own scores, nothing hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.models.detection.roi_heads import RoIHeads

from ltdeploy.arrays import FloatArray
from ltdeploy.boxes import Detections, pairwise_iou
from ltdeploy.canvas import Canvas, Placement, load_on_canvas
from ltdeploy.errors import DataError, UsageError
from ltdeploy.postprocess import KeepRule, ScoreRule, postprocess

SAME = Placement(1, 1, 0, 0, width_px=500, height_px=400)
QUERIES = KeepRule(suppression="none")


def outputs(seed: int, rows: int, columns: int, *own: int) -> tuple[FloatArray, FloatArray]:
    """Return boxes of shape (rows, *own, 4), some beyond SAME's edges, and logits."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-40, 480, (rows, *own, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 90, corners.shape)], axis=-1)
    return boxes.astype(np.float32), rng.normal(0, 2, (rows, columns)).astype(np.float32)


def slow(
    boxes: FloatArray, scores: FloatArray, threshold: float, top_k: int, iou: float | None
) -> list[tuple[float, int, int]]:
    """Return score, row and label of what is kept, one candidate after the other."""
    found: list[tuple[float, int, int]] = []
    clipped = np.clip(boxes, 0, [500, 400, 500, 400]).astype(np.float32)
    sides = clipped[..., 2:] - clipped[..., :2]
    for place in np.argsort(-scores, axis=None, kind="stable"):
        row, label = divmod(int(place), scores.shape[1])
        rivals = [r for _, r, other in found if other == label]
        if scores[row, label] <= threshold or (sides[row] < 0.01).any():
            continue
        if iou is None or not (pairwise_iou(clipped[[row]], clipped[rivals]) > iou).any():
            found.append((float(scores[row, label]), row, label))
    return found[:top_k]


@pytest.mark.parametrize("top_k", [20, 300])
@pytest.mark.parametrize("seed", range(3))
def test_rcnn_heads_are_torchvisions(seed: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads = RoIHeads(  # type: ignore[no-untyped-call]
        *(None,) * 3, 0.5, 0.5, 1, 0.5, (10.0, 10.0, 5.0, 5.0), 0.05, 0.5, top_k
    )
    start = torch.rand(200, 2, generator=generator) * 400
    proposals = torch.cat([start, start + 5 + torch.rand(200, 2, generator=generator) * 100], 1)
    logits = 2 * torch.randn(200, 9, generator=generator)
    regression = torch.randn(200, 36, generator=generator)
    (boxes,), (scores,), (labels,) = heads.postprocess_detections(
        logits, regression, [proposals], [(400, 500)]
    )
    decoded = heads.box_coder.decode(regression, [proposals])[:, 1:].numpy()
    rule = KeepRule(score_threshold=0.05, top_k=top_k)
    found = postprocess(decoded, logits.numpy(), None, ScoreRule("softmax", 0), rule, SAME)
    np.testing.assert_array_equal(found.labels, labels.numpy() - 1)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-4)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 60),
    classes=st.integers(1, 40),
    top_k=st.sampled_from([1, 5, 300]),
    iou=st.sampled_from([None, 0.2, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_the_fast_way_is_the_slow_way(
    seed: int, rows: int, classes: int, top_k: int, iou: float | None
) -> None:
    boxes, logits = outputs(seed, rows, classes)
    scores = ScoreRule("sigmoid").scores(logits)
    rule = KeepRule(0.1, top_k, "none" if iou is None else "hard", iou or 0.5)
    found = postprocess(boxes, logits, None, ScoreRule("sigmoid"), rule, SAME)
    expected = slow(boxes, scores, 0.1, top_k, iou)
    np.testing.assert_array_equal(found.labels, [label for _, _, label in expected])
    np.testing.assert_array_equal(found.scores, np.array([s for s, _, _ in expected], np.float32))
    rows_kept = [row for _, row, _ in expected]
    np.testing.assert_array_equal(
        found.boxes, np.clip(boxes[rows_kept], 0, [500, 400, 500, 400]).astype(np.float32)
    )


@pytest.mark.parametrize("suppression", ["hard", "soft"])
def test_all_candidates_are_asked_where_the_best_are_duplicates(suppression: str) -> None:
    boxes, logits = outputs(0, 400, 30)
    boxes[:] = boxes[0]
    boxes[395:] = outputs(1, 5, 1)[0]  # the few other objects score least
    logits[:395] += 12
    rule = KeepRule(top_k=40, suppression=suppression, sigma=0.05)  # type: ignore[arg-type]
    found = postprocess(boxes, logits, None, ScoreRule("sigmoid"), rule, SAME)
    if suppression == "hard":
        expected = slow(boxes, ScoreRule("sigmoid").scores(logits), 1e-4, 40, 0.5)
        np.testing.assert_array_equal(found.labels, [label for _, _, label in expected])
    assert len(np.unique(found.boxes, axis=0)) > 1
    assert len(found) == 40
    few = KeepRule(top_k=40, suppression="hard", candidates=200)
    assert len(postprocess(boxes, logits, None, ScoreRule("sigmoid"), few, SAME)) < 40


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_order_of_queries_does_not_matter(seed: int) -> None:
    boxes, logits = outputs(seed, 30, 8)
    mixed = np.random.default_rng(seed).permutation(30)
    rule = KeepRule(top_k=50)
    found = postprocess(boxes, logits, None, ScoreRule("softmax", 7), rule, SAME)
    again = postprocess(boxes[mixed], logits[mixed], None, ScoreRule("softmax", 7), rule, SAME)
    np.testing.assert_array_equal(again.scores, found.scores)
    np.testing.assert_array_equal(again.boxes, found.boxes)
    assert (np.diff(found.scores) <= 0).all()


def test_boxes_come_back_to_the_photograph() -> None:
    placement = Canvas(100, 100, fit="centre").place(height_px=100, width_px=200)
    boxes = np.array([[10, 35, 30, 45], [0, 0, 100, 20]], np.float32)  # the second: only padding
    logits = np.array([[3.0], [4.0]], np.float32)
    found = postprocess(boxes, logits, None, ScoreRule("sigmoid"), QUERIES, placement)
    np.testing.assert_allclose(found.boxes, [[20, 20, 60, 40]])


@pytest.mark.parametrize("background", [0, 2, 4])
def test_softmax_without_background(background: int) -> None:
    _, logits = outputs(0, 6, 5)
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    rule = ScoreRule("softmax", background)
    foreground = [column for column in range(5) if column != background]
    assert rule.foreground(5).tolist() == foreground
    np.testing.assert_allclose(rule.scores(logits), probabilities[:, foreground], rtol=1e-5)
    everything = ScoreRule("softmax").scores(logits)
    np.testing.assert_allclose(everything, probabilities, rtol=1e-5)


def test_seesaw_is_mmdetections() -> None:
    _, logits = outputs(0, 6, 7)
    tensor = torch.from_numpy(logits)
    expected = tensor[:, :5].softmax(-1) * tensor[:, 5:].softmax(-1)[:, :1]
    scores = ScoreRule("seesaw").scores(logits)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    by_hand = ScoreRule("seesaw").scores(np.log(np.array([[3.0, 1, 1, 3]])))
    np.testing.assert_allclose(by_hand, [[0.75 * 0.25, 0.25 * 0.25]])


def test_eqlv2_weighs_by_the_foreground() -> None:
    _, logits = outputs(0, 6, 5)
    chances = torch.from_numpy(logits).sigmoid()
    scores = ScoreRule("eqlv2", 4).scores(logits)
    np.testing.assert_allclose(scores, chances[:, :4] * (1 - chances[:, 4:]), rtol=1e-4)
    by_hand = ScoreRule("eqlv2", 1).scores(np.log(np.array([[3.0, 1.0]])))
    np.testing.assert_allclose(by_hand, [[0.75 * 0.5]])


def test_qualities() -> None:
    boxes, logits = outputs(0, 6, 5)
    quality = boxes[:, 0] / 100
    of_class = functional.sigmoid(torch.from_numpy(logits))
    of_quality = functional.sigmoid(torch.from_numpy(quality))[:, None]
    for rule, expected in (
        (ScoreRule("sigmoid", quality="sqrt"), torch.sqrt(of_class * of_quality)),
        (ScoreRule("sigmoid", quality="product"), of_class * of_quality),
        (ScoreRule("sigmoid", None, "powers", (0.4, 0.6)), of_class**0.4 * of_quality**0.6),
    ):
        np.testing.assert_allclose(rule.scores(logits, quality), expected, rtol=1e-5)
    by_hand = ScoreRule("softmax", 1, "powers", (0.5, 1)).scores(
        np.log(np.array([[1.0, 3.0]])), np.log(np.array([3.0]))
    )
    np.testing.assert_allclose(by_hand, [[0.5 * 0.75]])


@given(st.floats(-200, 200, width=32))
def test_small_scores_keep_their_digits(logit: float) -> None:
    score = ScoreRule("sigmoid").scores(np.array([[logit]], np.float32))[0, 0]
    expected = 1 / (1 + np.exp(-max(np.float64(logit), -80)))
    assert score == pytest.approx(expected, rel=1e-5)


def test_logits_of_80_stay_finite() -> None:
    logits = np.array([[80, -80, 80], [-80, -80, -80]], np.float32)
    for rule in (ScoreRule("softmax", 2), ScoreRule("sigmoid"), ScoreRule("eqlv2", 0)):
        assert np.isfinite(rule.scores(logits)).all()


@pytest.mark.parametrize("own", [(), (3,)])
def test_padding_never_comes_out(own: tuple[int, ...]) -> None:
    boxes, logits = outputs(0, 10, 3, *own)
    logits[5:] = 50  # what padding rows score means nothing
    boxes[5:] = 0
    boxes[6] = 20  # a point
    found = postprocess(boxes, logits, None, ScoreRule("sigmoid"), QUERIES, SAME)
    assert 0 < len(found) <= 15
    assert found.scores.max() < 1
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert (sides > 0).all()


def test_a_class_without_area_does_not_take_its_row_along() -> None:
    boxes, logits = outputs(0, 1, 2, 2)
    boxes[0] = [[5, 5, 5, 5], [5, 5, 50, 50]]
    found = postprocess(boxes, logits, None, ScoreRule("sigmoid"), QUERIES, SAME)
    assert found.labels.tolist() == [1]


def test_nothing_found_is_no_detection() -> None:
    boxes, logits = outputs(0, 5, 3)
    for low in (logits - 100, logits[:0]):
        rows = boxes[: len(low)]
        for suppression in ("none", "hard", "soft"):
            keep = KeepRule(suppression=suppression)  # type: ignore[arg-type]
            found = postprocess(rows, low, None, ScoreRule("softmax", 0), keep, SAME)
            assert isinstance(found, Detections)
            if len(low) == 0:
                assert len(found) == 0
    assert len(postprocess(boxes, logits - 100, None, ScoreRule("sigmoid"), QUERIES, SAME)) == 0


def test_agnostic_suppression_looks_across_classes() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    logits = np.array([[3, -20], [-20, 2]], np.float32)
    rule = KeepRule()
    assert len(postprocess(boxes, logits, None, ScoreRule("sigmoid"), rule, SAME)) == 2
    agnostic = KeepRule(class_agnostic=True)
    found = postprocess(boxes, logits, None, ScoreRule("sigmoid"), agnostic, SAME)
    assert found.labels.tolist() == [0]


def broken(values: FloatArray, bad: float) -> FloatArray:
    """Return the values with one that is not finite."""
    changed: npt.NDArray[np.float32] = values.astype(np.float32)
    changed[(1,) * changed.ndim] = bad
    return changed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    boxes, logits = outputs(0, 5, 3)
    rule = ScoreRule("sigmoid", quality="product")
    quality = logits[:, 0]
    for given_outputs, word in (
        ((broken(boxes, bad), logits, quality), r"a\.jpg: 1 of the detector's boxes .* \(1, 1\)"),
        ((boxes, broken(logits, bad), quality), "detector's logits"),
        ((boxes, logits, broken(quality, bad)), "detector's quality"),
    ):
        with pytest.raises(DataError, match=word):
            postprocess(*given_outputs, rule, QUERIES, SAME, name="a.jpg")


def test_detections_are_float32_whatever_the_outputs_are() -> None:
    boxes, logits = outputs(0, 5, 3)
    wide = boxes.astype(np.float64), logits.astype(np.float64)
    for suppression in ("none", "hard", "soft"):
        keep = KeepRule(suppression=suppression)  # type: ignore[arg-type]
        found = postprocess(*wide, None, ScoreRule("sigmoid"), keep, SAME)
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert found.labels.dtype == np.int64


def test_large_finite_values_are_no_error() -> None:
    boxes, logits = outputs(0, 5, 3)
    boxes[:, :2], boxes[:, 2:] = 5, 3e38  # their sum is infinite in float32
    assert len(postprocess(boxes, logits, None, ScoreRule("sigmoid"), QUERIES, SAME)) == 15


@pytest.mark.parametrize(
    ("rule", "columns", "quality", "text"),
    [
        (ScoreRule("softmax", 3), 3, False, "3 logits per box"),
        (ScoreRule("softmax", -1), 3, False, "background column -1"),
        (ScoreRule("seesaw"), 2, False, "2 logits per box"),
        (ScoreRule("softmax", 0), 1, False, "1 logits per box"),
        (ScoreRule("sigmoid"), 3, True, "a quality"),
        (ScoreRule("sigmoid", quality="sqrt"), 3, False, "gives no quality"),
    ],
)
def test_outputs_that_do_not_fit_the_rule(
    rule: ScoreRule, columns: int, quality: bool, text: str
) -> None:
    boxes, logits = outputs(0, 5, columns)
    with pytest.raises(DataError, match=text):
        postprocess(boxes, logits, boxes[:, 0] if quality else None, rule, QUERIES, SAME)


def test_shapes_that_do_not_fit_each_other() -> None:
    boxes, logits = outputs(0, 5, 3)
    rule = ScoreRule("sigmoid", quality="sqrt")
    with pytest.raises(DataError, match="one logit for each of the 5 boxes"):
        postprocess(boxes, logits, boxes[:4, 0], rule, QUERIES, SAME)
    with pytest.raises(DataError, match=r"boxes of shape \(4, 4\)"):
        postprocess(boxes[:4], logits, None, ScoreRule("sigmoid"), QUERIES, SAME)
    own, _ = outputs(0, 5, 3, 3)
    with pytest.raises(DataError, match="3 boxes per proposal and 2 foreground classes"):
        postprocess(own, logits, None, ScoreRule("softmax", 0), QUERIES, SAME)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"activation": "softmx"}, "Did you mean 'softmax'"),
        ({"quality": "root"}, "Unknown quality"),
        ({"activation": "seesaw", "background": 3}, "leave it out"),
        ({"activation": "eqlv2"}, "needs the background's column"),
        ({"quality": "powers"}, "powers are None"),
        ({"powers": (1, 1)}, "powers are"),
        ({"quality": "powers", "powers": (0.4, 0)}, "two numbers above 0"),
        ({"quality": "powers", "powers": (0.4,)}, "two numbers above 0"),
    ],
)
def test_wrong_score_rules(values: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ScoreRule(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"score_threshold": 2}, "score_threshold is 2"),
        ({"iou": -0.1}, "iou is -0.1"),
        ({"iou": float("nan")}, "iou is nan"),
        ({"sigma": 0}, "sigma is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": None}, "top_k is None"),
        ({"candidates": 2.5}, "candidates is 2.5"),
        ({"suppression": "nms"}, "Unknown suppression"),
    ],
)
def test_wrong_keep_rules(values: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        KeepRule(**values)  # type: ignore[arg-type]


def test_a_real_detector_finds_what_its_photographs_show(data_dir: Path) -> None:
    # FastestDet gives probabilities; their logarithms are logits as good as its own.
    session = ort.InferenceSession(
        data_dir / "fastestdet" / "FastestDet.onnx", providers=["CPUExecutionProvider"]
    )
    rule = ScoreRule("softmax", quality="powers", powers=(0.4, 0.6))
    person, bus, bench = 0, 5, 13
    for photo, label in ((0, person), (1, bus), (2, person), (3, person), (4, bench)):
        source = data_dir / "fastestdet" / f"{photo}.jpg"
        pixels, placement = load_on_canvas(source, Canvas(352, 352, fit="squash"))
        images = np.float32(pixels[None, ..., ::-1].transpose(0, 3, 1, 2) / 255)
        ((rows,),) = session.run(None, {session.get_inputs()[0].name: images})
        objects, classes = rows[0].reshape(-1), rows[5:].reshape(80, -1).T
        boxes = fastestdet_boxes(rows[1:5])
        found = postprocess(
            boxes,
            np.log(classes),
            np.log(objects / (1 - objects)),
            rule,
            KeepRule(score_threshold=0.65, iou=0.45),
            placement,
        )
        best = (objects**0.6 * classes.max(axis=1) ** 0.4).max()
        assert found.labels[0] == label
        assert found.scores[0] == pytest.approx(best, rel=1e-5)
        across, down = placement.width_px, placement.height_px
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [across, down, across, down]).all()


def fastestdet_boxes(rows: FloatArray) -> FloatArray:
    """Return the boxes of a 22 × 22 grid in canvas pixels: centre by tanh, sides by σ."""
    down, across = np.mgrid[:22, :22]
    centre = np.stack([np.tanh(rows[0]) + across, np.tanh(rows[1]) + down], axis=-1) / 22
    half = 0.5 / (1 + np.exp(-rows[2:4].transpose(1, 2, 0)))
    boxes = 352 * np.concatenate([centre - half, centre + half], axis=-1)
    return boxes.reshape(-1, 4).astype(np.float32)
