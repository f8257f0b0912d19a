"""Training Mask R-CNN: masks lie where boxes and pixels do, are learnt, resumed, and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_boxes import CANVAS, HELD, after, drawn
from drawn_boxes import fit as fit_drawn
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ltdeploy.canvas import Canvas
from ltdeploy.datasets.boxes import BoxDataset, BoxImage, BoxTruth
from ltdeploy.datasets.coco_json import read_boxes
from ltdeploy.errors import DataError, ImageError, UsageError
from ltdeploy.training.box_batches import BoxSample, TrainCanvases, flip
from ltdeploy.training.box_masks import object_masks
from ltdeploy.training.box_schedule import BoxTrainOptions, Step
from ltdeploy.training.boxes import BoxTrainResult, train_detector
from ltdeploy.training.resume import resume_path

torch = pytest.importorskip("torch")
tools = pytest.importorskip("faster_coco_eval.core.mask")

from ltdeploy.models.detectors.architectures import build_detector  # noqa: E402
from ltdeploy.models.loading import load_model  # noqa: E402
from ltdeploy.training.box_loop import Batches  # noqa: E402
from ltdeploy.training.class_loss import using_class_loss  # noqa: E402

ARCH = "torchvision:maskrcnn_mobilenet_v3_small_320_fpn"
PARTS = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
FITS = st.sampled_from(["top_left", "centre", "squash"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bars(box: Any, thick: Any) -> list[tuple[float, float, float, float]]:
    """Return an L in a box: a bar at its left and one at its bottom; no flip leaves it the same."""
    x1, y1, x2, y2 = box
    return [(x1, y1, x1 + thick[0], y2), (x1, y2 - thick[1], x2, y2)]


def as_polygons(parts: Any) -> list[list[float]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2] for x1, y1, x2, y2 in parts]


def painted(parts: Any, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8, order="F")
    for x1, y1, x2, y2 in np.array(parts, int).tolist():
        mask[y1:y2, x1:x2] = 1
    return mask


def as_runs(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    """Return COCO's run-length encoding, which begins with the outside and goes down columns."""
    if compressed:
        encoded = tools.encode(mask)
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = np.concatenate([[0], mask.ravel(order="F")])
    ends = [0, *(np.flatnonzero(np.diff(flat)).tolist()), mask.size]
    return {"size": list(mask.shape), "counts": np.diff(ends).tolist()}


def one_object(
    size: tuple[int, int], box: Any, outline: Any, photo: np.ndarray | None = None
) -> BoxDataset:
    """Return a data set of one photograph, width and height given, with one object."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8) if photo is None else photo
    truth = BoxTruth(
        np.array([box], np.float32),
        np.zeros(1, np.int64),
        np.zeros(1, np.bool_),
        np.ones(1),
        np.array([7], np.int64),
    )
    images = [BoxImage(1, "only.png", pixels, width, height)]
    return BoxDataset("one", ["thing"], images, [truth], segmentations=lambda: {7: outline})


def sample_of(dataset: BoxDataset, canvas: Canvas, index: int = 0) -> BoxSample:
    images = TrainCanvases(dataset, canvas, with_masks=True)
    ((sample,),) = images.batches([np.array([index])])
    return sample


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@given(st.data())
def test_masks_span_their_boxes_to_a_pixel(data: st.DataObject) -> None:
    width, height = (data.draw(st.integers(20, 160)) for _ in "wh")
    canvas = Canvas(
        data.draw(st.integers(20, 120)), data.draw(st.integers(20, 120)), fit=data.draw(FITS)
    )
    kind = data.draw(st.sampled_from(["polygons", "ellipse", "runs", "counts"]))
    corners = st.floats(0, 1) if kind in ("polygons", "ellipse") else st.integers(0, 160)
    limits = (1, 1) if kind in ("polygons", "ellipse") else (width, height)
    drawn_sides = [sorted([data.draw(corners), data.draw(corners)]) for _ in "xy"]
    (x1, x2), (y1, y2) = (
        [min(at, most) * (side if most == 1 else 1) for at in pair]
        for pair, most, side in zip(drawn_sides, limits, (width, height), strict=True)
    )
    placement = canvas.place(height, width)
    scale = np.array([placement.scale_x, placement.scale_y])
    sides = np.array([x2 - x1, y2 - y1]) * scale
    assume((sides >= 8).all() and sides.max() <= 8 * sides.min())
    thick = np.maximum(np.array([x2 - x1, y2 - y1]) / 3, 1)
    if kind == "ellipse":
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        x, y = (1 + np.cos(turn)) / 2, (1 + np.sin(turn)) / 2
        outline: Any = [np.stack([x1 + x * (x2 - x1), y1 + y * (y2 - y1)], 1).ravel().tolist()]
    elif kind == "polygons":
        outline = as_polygons(bars((x1, y1, x2, y2), thick))
    else:
        mask = painted(bars((x1, y1, x2, y2), thick.astype(int)), width, height)
        outline = as_runs(mask, compressed=kind == "runs")
    sample = sample_of(one_object((width, height), (x1, y1, x2, y2), outline), canvas)
    turned = flip(sample, horizontal=data.draw(st.booleans()), vertical=data.draw(st.booleans()))
    assert turned.masks is not None
    assert turned.masks.shape == (1, canvas.height_px, canvas.width_px)
    assert turned.masks.dtype == np.uint8
    assert turned.masks.max() == 1
    np.testing.assert_allclose(extent(turned.masks[0]), turned.boxes[0], atol=1)


@pytest.mark.parametrize("kind", ["polygons", "runs"])
@pytest.mark.parametrize("fit", ["top_left", "centre", "squash"])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("size", [(90, 60), (40, 70)])
def test_masks_lie_on_the_pixels(
    size: tuple[int, int], horizontal: bool, vertical: bool, fit: Any, kind: str
) -> None:
    width, height = size
    parts = bars((5, 9, 33, 47), (11, 8))
    mask = painted(parts, width, height)
    photo = np.repeat(mask[..., None] * np.uint8(250), 3, axis=2)
    outline = as_polygons(parts) if kind == "polygons" else as_runs(mask)
    dataset = one_object(size, (5, 9, 33, 47), outline, photo)
    canvas = Canvas(53, 71, fit=fit, interpolation="nearest", fill=(9, 9, 9))
    plain = sample_of(dataset, canvas)
    turned = flip(plain, horizontal=horizontal, vertical=vertical)
    assert turned.masks is not None
    seen = turned.pixels[..., 0] == 250
    both = (seen & (turned.masks[0] == 1)).sum() / (seen | (turned.masks[0] == 1)).sum()
    assert both == 1 if kind == "runs" else both > 0.9
    unflipped = plain.masks is not None and np.array_equal(turned.masks, plain.masks)
    assert unflipped == (not (horizontal or vertical))


def test_what_reaches_out_of_the_photograph_stays_off_the_padding() -> None:
    outline = [[-10, -10, 60, -10, 60, 40, -10, 40]]
    sample = sample_of(one_object((40, 20), (0, 0, 40, 20), outline), Canvas(64, 64, fit="centre"))
    assert sample.masks is not None
    assert extent(sample.masks[0]) == [0, 16, 64, 48]
    assert sample.masks.sum() == 64 * 32


@pytest.mark.parametrize("kind", ["polygons", "runs"])
def test_slivers_are_the_pixels_that_their_boxes_touch(kind: str) -> None:
    box = (30, 40, 130, 41)
    outline = as_polygons([box]) if kind == "polygons" else as_runs(painted([box], 160, 160))
    sample = sample_of(one_object((160, 160), box, outline), Canvas(16, 16))
    assert sample.masks is not None
    assert extent(sample.masks[0]) == [3, 4, 13, 5]


@pytest.mark.real_data
def test_masks_of_lvis_span_their_boxes(data_dir: Path) -> None:
    dataset = read_boxes(data_dir / "lvis" / "lvis_v0.5_val_100.json", photographs=False)
    canvas = Canvas(320, 448, fit="centre")
    off, refused = [], 0
    for index in range(len(dataset)):
        truth = dataset.truth(index)
        width, height = dataset.size_px(index)
        boxes = canvas.place(height, width).to_canvas(truth.boxes)
        try:
            masks = object_masks(dataset, index, ~truth.crowd, boxes, canvas)
        except ImageError:
            refused += 1  # their polygons lie elsewhere than their boxes, by hundreds of pixels
            continue
        off += [np.abs(extent(m) - b).max() for m, b in zip(masks, boxes, strict=True) if m.any()]
    assert refused == 3
    assert len(off) > 900
    # Tips narrower than a pixel are not drawn.
    assert np.quantile(off, 0.9) < 1


def outlined(**changes: Any) -> BoxDataset:
    """Return the drawn set with the boxes' corners as polygons; entries by annotation id change."""
    bare = drawn()
    outlines: dict[int, Any] = {
        int(name): as_polygons([box.tolist()])
        for truth in bare.truths
        for name, box, crowd in zip(truth.ids, truth.boxes, truth.crowd, strict=True)
        if not crowd
    }
    changed = {int(name): value for name, value in changes.items()}
    outlines = {name: value for name, value in {**outlines, **changed}.items() if value}
    return BoxDataset(
        "drawn", bare.class_names, bare.images, bare.truths, segmentations=lambda: outlines
    )


def test_masks_go_with_labels_without_crowds_and_in_empty_photographs() -> None:
    data = outlined()
    assert len(data.truth(4)) == 2
    for index, held in ((1, [0, 1]), (3, []), (4, [0])):
        sample = sample_of(data, CANVAS, index)
        assert sample.masks is not None
        assert sample.masks.shape == (len(held), 96, 96)
        assert sample.labels.tolist() == held
        spans = [extent(mask) for mask in sample.masks]
        np.testing.assert_allclose(np.reshape(spans, (-1, 4)), sample.boxes, atol=1)
    assert next(TrainCanvases(data, CANVAS).batches([np.array([1])]))[0].masks is None
    kept, anew = (
        TrainCanvases(data, CANVAS, with_masks=True, memory_bytes=most) for most in (10**9, 0)
    )
    plan = [np.array([0, 1]), np.array([5])] * 20
    for first, second in zip(kept.batches(plan), anew.batches(plan), strict=True):
        for a, b in zip(first, second, strict=True):
            assert np.array_equal(a.pixels, b.pixels)
            assert a.masks is not None
            assert np.array_equal(a.masks, b.masks)


def targets_of(images: TrainCanvases, chosen: list[int]) -> tuple[list[Any], list[Any]]:
    batches = Batches(images, CANVAS, BoxTrainOptions(), first_label=1)
    return next(batches.deal([Step(0, 0, np.array(chosen))], torch.device("cpu")))


@pytest.mark.parametrize("chosen", [[1, 3], [3]])
def test_losses_through_the_seam_are_torchvisions_own(chosen: list[int]) -> None:
    inputs, targets = targets_of(TrainCanvases(outlined(), CANVAS, with_masks=True), chosen)
    torch.manual_seed(5)
    module = build_detector(ARCH, 2, CANVAS).train()
    names = list(module.state_dict())
    torch.manual_seed(5)
    own = module(inputs, targets)
    torch.manual_seed(5)
    with using_class_loss(module, torch.nn.functional.cross_entropy):
        ours = module(inputs, targets)
        assert list(module.state_dict()) == names
    assert set(own) == set(ours) == PARTS
    assert all(torch.equal(own[name], ours[name]) for name in own)
    assert (ours["loss_mask"] > 0) == (chosen != [3])


def fit_masks(out: Path, dataset: BoxDataset, **changes: Any) -> BoxTrainResult:
    return fit_drawn(out, dataset, **({"arch": ARCH} | changes))


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = outlined()
    changes: dict[str, Any] = {"epochs": 1, "vertical_flip": True}
    whole = fit_masks(tmp_path / "whole.pt", data, **changes)
    assert all(set(epoch) == PARTS | {"total"} for epoch in whole.losses)
    path = tmp_path / "cut.pt"
    with pytest.raises(KeyboardInterrupt):
        fit_masks(path, data, **changes, keep_every_s=0, tracker=after(2, _interrupt))
    # Only the outline of one object has changed.
    other = outlined(**{"0": [[1, 1, 30, 1, 30, 30]]})
    with pytest.raises(UsageError, match="belongs to another training: data was"):
        fit_masks(path, other, **changes, resume=True)
    resumed = fit_masks(path, data, **changes, resume=True)
    assert resumed.resumed_from == 2
    assert resumed.losses == whole.losses
    first, second = (torch.load(one, weights_only=True)["state_dict"] for one in (whole.path, path))
    assert any("mask_predictor" in name for name in first)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert not resume_path(path).exists()


RUNS = as_runs(painted([(4, 4, 20, 20)], 96, 72))


@pytest.mark.parametrize(
    ("outline", "text"),
    [
        (None, r"Annotation 0 of drawn#0 in drawn has no 'segmentation' to learn a mask from; "),
        ([[]], "no polygon has 3 corners"),
        ([[1, 1, 9, 9]], "no polygon has 3 corners"),
        ([[1, 1, 9, 9, 5]], r"has the polygon \[1, 1, 9, 9, 5\]; expected polygons"),
        ([1, 1, 9, 9, 5, 9], "has the polygon 1; expected polygons"),
        ([[[1, 1], [9, 9], [1, 9]]], "has the polygon"),
        ([[[1], [9, 9]]], "has the polygon"),
        ([["a", 1, 9, 9, 1, 9]], "has the polygon"),
        ("square", "has the segmentation square; expected polygons"),
        ([[1, 1, float("nan"), 9, 1, 9]], r"the corner \(nan, 9\), far outside its photograph"),
        ([[1, 1, 1e9, 9, 1, 9]], r"the corner \(1e\+09, 9\), far outside .* of 96 x 72 pixels"),
        ({"counts": RUNS["counts"]}, r"run lengths of the size None; expected \[72, 96\]"),
        ({**RUNS, "size": [96, 72]}, r"of the size \[96, 72\]; expected \[72, 96\]"),
        ({"size": [72, 96]}, "run lengths that cannot be read"),
        ({**RUNS, "counts": "a"}, "cannot be read: RLE string is malformed"),
        ({**RUNS, "counts": [5, 10]}, "cannot be read: .* decoded 15 pixels but expected 6912"),
        ({**RUNS, "counts": [5, 70000]}, "cannot be read: .*exceed"),
        ({**RUNS, "counts": [-5, 6917]}, "run lengths that cannot be read: .* Expected 'counts'"),
    ],
)
def test_objects_without_a_readable_outline_are_named(
    tmp_path: Path, outline: Any, text: str
) -> None:
    data = outlined(**{"0": outline})
    with pytest.raises(DataError, match=text) as raised:
        fit_masks(tmp_path / "x.pt", data)
    assert "Annotation 0 of drawn#0 in drawn" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_photograph_whose_masks_are_elsewhere_is_left_out(tmp_path: Path) -> None:
    elsewhere = [[50, 2, 90, 2, 90, 8]]
    told = r"^Annotation 0 of drawn#0 in drawn has a segmentation wholly outside its box \["
    images = TrainCanvases(outlined(**{"0": elsewhere}), CANVAS, with_masks=True)
    assert images.readable.tolist() == list(range(1, 8))
    ((name, reason),) = images.unreadable
    assert name == "drawn#0"
    assert re.match(told, reason)
    # Where masks are not trained on nothing is wrong with it, nor with the others.
    assert not TrainCanvases(outlined(**{"0": elsewhere}), CANVAS).unreadable
    assert not TrainCanvases(outlined(), CANVAS, with_masks=True).unreadable

    done = fit_masks(tmp_path / "x.pt", outlined(**{"0": elsewhere}), epochs=1)
    assert list(done.unreadable) == images.unreadable
    assert done.classes.counts == (5, 2)
    for other in ([[1, 1, 9, 9, 5]], [[1, 1, 1e9, 9, 1, 9]]):  # malformed ones end it as before
        with pytest.raises(DataError) as raised:
            TrainCanvases(outlined(**{"0": elsewhere, "10": other}), CANVAS, with_masks=True)
        assert not isinstance(raised.value, ImageError)
        assert "Annotation 10 of drawn#1" in str(raised.value)
    first = drawn(HELD[:1], ["red"])
    only = BoxDataset(
        "one", ["red"], first.images, first.truths, segmentations=lambda: {0: elsewhere}
    )
    with pytest.raises(DataError, match="None of the 1 images of one can be read; the first: Anno"):
        TrainCanvases(only, CANVAS, with_masks=True)


def test_a_set_without_outlines_is_told_what_to_train_instead(tmp_path: Path) -> None:
    text = r"\(nor have 8 more\); .* give --arch torchvision:fasterrcnn_mobilenet_v3_small_320_fpn"
    with pytest.raises(DataError, match=text):
        fit_masks(tmp_path / "x.pt", drawn())
    fit_drawn(tmp_path / "x.pt", drawn(), arch=ARCH.replace("mask", "faster"), epochs=1)


def write_shapes(folder: Path, images: int = 12) -> Path:
    """Write photographs of ellipses and triangles on noise, and their COCO json with polygons."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 3, "name": "ellipse"}, {"id": 5, "name": "triangle"}]
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    for number in range(1, images + 1):
        picture = Image.fromarray(rng.integers(0, 60, (96, 128, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(picture)
        for side in (0, 64):  # one object in each half
            width, height = rng.integers(36, 60, 2)
            x, y = side + rng.integers(2, 62 - width), rng.integers(2, 94 - height)
            is_round = bool(rng.random() < 0.5)
            if is_round:
                shape = np.stack([1 + np.cos(turn), 1 + np.sin(turn)], 1) / 2
            else:
                shape = np.array([(0, 1), (0.5, 0), (1, 1)])
            corners = shape * (width, height) + (x, y)
            draw.polygon(corners.ravel().tolist(), (230, 60, 40) if is_round else (50, 90, 230))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 3 if is_round else 5,
                    "bbox": [int(x), int(y), int(width), int(height)],
                    "segmentation": [corners.ravel().round(2).tolist()],
                    "iscrowd": 0,
                }
            )
        picture.save(folder / "images" / f"{number}.png")
        described = {"id": number, "file_name": f"{number}.png", "width": 128, "height": 96}
        content["images"].append(described)
    path = folder / "shapes.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
def test_shapes_are_learnt_from_a_coco_file(tmp_path: Path) -> None:
    dataset = read_boxes(write_shapes(tmp_path))
    options = BoxTrainOptions(epochs=8, batch_size=2, learning_rate=1e-3, proposals=24)
    arch = "torchvision:maskrcnn_mobilenet_v3_small_fpn"
    canvas = Canvas(72, 96)
    done = train_detector(dataset, arch, options, tmp_path / "shapes.pt", canvas=canvas)
    learnt = [epoch["loss_mask"] for epoch in done.losses]
    # Chance is ln 2 = 0.69; 0.61 is reached by knowing how much of its box each class fills.
    assert learnt[-1] < 0.56 < 0.69 < learnt[0]
    loaded: Any = load_model(done.path)
    assert (loaded.arch, loaded.canvas) == (arch, canvas)
    saved = torch.load(done.path, weights_only=True)["state_dict"]
    found = loaded.module.state_dict()
    masks = [name for name in saved if name.startswith("roi_heads.mask_")]
    assert masks
    assert all(torch.equal(saved[name], found[name]) for name in masks)
