"""Training detectors: it learns, takes what it should, says all in its checkpoint, refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_boxes import ARCH, CANVAS, COLOURS, CROWD, GREEN, HELD, RED, drawn, fit

from ltdeploy.canvas import Canvas
from ltdeploy.errors import DataError, UsageError
from ltdeploy.training.box_batches import TrainCanvases, flip
from ltdeploy.training.box_schedule import BoxTrainOptions, plan_steps

torch = pytest.importorskip("torch")

from ltdeploy.models.detectors.architectures import build_detector  # noqa: E402
from ltdeploy.training.box_loop import Batches  # noqa: E402
from ltdeploy.training.class_loss import using_class_loss  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dealt(dataset: Any, first_label: int = 1, **changes: Any) -> list[tuple[Any, Any]]:
    """Return the images and targets of one epoch, one at a time."""
    options = BoxTrainOptions(**({"epochs": 1, "batch_size": 1} | changes))
    images = TrainCanvases(dataset, CANVAS)
    classes = len(dataset.class_names)
    plan = plan_steps(images.readable, images.labels(), classes, options)
    batches = Batches(images, CANVAS, options, first_label)
    return [(i[0], t[0]) for i, t in batches.deal(plan, CPU)]


def test_it_learns_and_the_checkpoint_says_all(tmp_path: Path) -> None:
    from ltdeploy.models.detectors.detector import load_detector

    torch.manual_seed(11)
    before = torch.get_rng_state()
    path = tmp_path / "deep" / "ckpt.pt"
    result = fit(path, repeat_threshold=0.9)
    assert torch.equal(before, torch.get_rng_state())
    assert result.path == path
    assert result.losses[-1]["total"] < 0.8 * result.losses[0]["total"]
    parts = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    for epoch in result.losses:
        assert set(epoch) == parts | {"total"}
        assert epoch["total"] == pytest.approx(sum(epoch[name] for name in parts), rel=1e-5)
    assert (result.resumed_from, result.unreadable) == (0, ())
    assert [entry.name for entry in path.parent.iterdir()] == ["ckpt.pt"]

    told = torch.load(path, weights_only=True)["ltdeploy"]
    assert (told["schema"], told["task"], told["arch"]) == (1, "detection", ARCH)
    assert told["class_names"] == ["red", "green"]
    assert (told["train_counts"], told["instances"]) == ([6, 2], [7, 2])
    assert Canvas.from_dict(told["canvas"]) == CANVAS
    assert (told["trained_with"], told["epochs"], told["seed"]) == ("cross_entropy", 2, 3)
    assert told["sampler"] == {"name": "repeat_factor", "t": 0.9}
    assert (told["train_data"]["name"], told["train_data"]["images"]) == ("drawn", 8)
    assert len(told["train_data"]["hashes"]) == 8
    assert "preprocessing" not in told

    detector = load_detector(path)
    assert detector.canvas == CANVAS
    assert detector.classes is not None
    assert detector.classes.counts == (6, 2)
    assert detector.trained_with == "cross_entropy"
    assert detector.train_hashes is not None
    assert len(detector.train_hashes) == 8


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_detectors_without_a_background_take_labels_as_they_are(tmp_path: Path, name: str) -> None:
    # One class: a label that were moved up by one would be outside the head.
    data = drawn([(RED,), ()], ("red",))
    canvas = Canvas(128, 128)
    result = fit(tmp_path / "x.pt", data, arch=f"torchvision:{name}", epochs=1, canvas=canvas)
    assert np.isfinite(result.losses[0]["total"])
    told = torch.load(tmp_path / "x.pt", weights_only=True)["ltdeploy"]
    assert (told["train_counts"], told["trained_with"]) == ([1], "focal")


def test_r_cnns_get_labels_from_one_on_empty_photographs_and_no_crowds() -> None:
    labels = sorted(tuple(target["labels"].tolist()) for _, target in dealt(drawn()))
    expected = [tuple(what + 1 for what in held if what != CROWD) for held in HELD]
    assert labels == sorted(expected)
    (empty,) = [target for _, target in dealt(drawn()) if not len(target["labels"])]
    assert empty["boxes"].shape == (0, 4)
    assert empty["boxes"].dtype == torch.float32
    kept = [target["labels"].tolist() for _, target in dealt(drawn(), first_label=0)]
    assert max(max(one, default=0) for one in kept) == GREEN


@pytest.mark.parametrize("fit_", ["top_left", "centre", "squash"])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("horizontal", [False, True])
def test_flips_move_pixels_and_boxes_together(fit_: Any, horizontal: bool, vertical: bool) -> None:
    canvas = Canvas(96, 120, fit=fit_, interpolation="nearest", fill=(1, 2, 3))
    images = TrainCanvases(drawn([(RED, GREEN)]), canvas)
    (only,) = next(iter(images.batches([np.array([0])])))
    turned = flip(only, horizontal=horizontal, vertical=vertical)
    padding = (only.pixels == (1, 2, 3)).all(axis=2)
    assert np.array_equal(padding, (turned.pixels == (1, 2, 3)).all(axis=2))
    assert np.array_equal(turned.pixels, only.pixels) == (not (horizontal or vertical))
    for box, label in zip(turned.boxes, turned.labels, strict=True):
        left, top, right, bottom = np.round(box).astype(int)
        inside = turned.pixels[top + 2 : bottom - 2, left + 2 : right - 2]
        assert inside.size
        assert (inside == COLOURS[int(label)]).all()
    again = flip(turned, horizontal=horizontal, vertical=vertical)
    assert np.array_equal(again.pixels, only.pixels)
    np.testing.assert_allclose(again.boxes, only.boxes, atol=1e-4)


def test_half_of_the_photographs_are_flipped_and_top_to_bottom_only_when_asked() -> None:
    data = drawn([(RED,)])
    plain = CANVAS.place(72, 96).to_canvas(data.truth(0).boxes)[0]

    def kept(side: int, **changes: Any) -> float:
        boxes = [target["boxes"][0] for _, target in dealt(data, epochs=64, **changes)]
        return float(np.mean([abs(float(box[side]) - plain[side]) < 0.01 for box in boxes]))

    assert 0.3 < kept(0) < 0.7
    assert kept(1) == 1.0
    assert 0.3 < kept(1, vertical_flip=True) < 0.7


def test_canvases_decoded_anew_are_those_kept() -> None:
    data = drawn(broken=frozenset({2}))
    kept, anew = TrainCanvases(data, CANVAS), TrainCanvases(data, CANVAS, memory_bytes=0)
    assert np.array_equal(kept.hashes, anew.hashes)
    plan = [np.array([0, 5]), np.array([7, 3]), *[np.array([1])] * 50]
    pairs = list(zip(kept.batches(plan), anew.batches(plan), strict=True))
    assert len(pairs) == len(plan)
    for chosen, (first, second) in zip(plan, pairs, strict=True):
        assert len(first) == len(second) == len(chosen)
        for a, b in zip(first, second, strict=True):
            assert np.array_equal(a.pixels, b.pixels)
            assert np.array_equal(a.boxes, b.boxes)


def test_unreadable_photographs_are_named_and_not_counted(tmp_path: Path) -> None:
    result = fit(tmp_path / "x.pt", drawn(broken=frozenset({1, 6})), epochs=1, batch_size=6)
    assert [name for name, _ in result.unreadable] == ["drawn#1", "drawn#6"]
    assert (result.classes.counts, result.instances) == ((4, 1), (5, 1))
    assert torch.load(result.path, weights_only=True)["ltdeploy"]["train_data"]["images"] == 6


def both_losses(
    class_loss: Any, proposals: int | None = None, seed: int = 5
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return torchvision's own losses, and those with ours; no trace of it may stay."""
    torch.manual_seed(seed)
    module = build_detector(ARCH, 2, CANVAS).train()
    names = list(module.state_dict())
    (images, targets), *_ = [([i], [t]) for i, t in dealt(drawn([(RED, GREEN)]))]
    torch.manual_seed(seed)
    own = module(images, targets)
    torch.manual_seed(seed)
    with using_class_loss(module, class_loss, proposals):
        ours = module(images, targets)
    assert list(module.state_dict()) == names
    return own, ours


def test_cross_entropy_through_the_seam_is_torchvisions_own_loss() -> None:
    own, ours = both_losses(torch.nn.functional.cross_entropy)
    assert set(own) == set(ours)
    assert all(torch.equal(own[name], ours[name]) for name in own)


def test_another_class_loss_gets_logits_and_labels_and_counts() -> None:
    seen: list[tuple[Any, Any]] = []

    class Tripled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, logits: Any, labels: Any) -> Any:
            seen.append((logits.shape, labels))
            self.calls += 1
            return 3 * torch.nn.functional.cross_entropy(logits, labels)

    loss = Tripled()
    own, ours = both_losses(loss)
    ((shape, labels),) = seen
    assert shape == (len(labels), 3)
    assert set(labels.tolist()) == {0, RED + 1, GREEN + 1}
    assert loss.calls == 1
    assert torch.allclose(ours["loss_classifier"], 3 * own["loss_classifier"])
    assert torch.equal(ours["loss_box_reg"], own["loss_box_reg"])


def test_the_head_learns_from_as_many_proposals_as_told() -> None:
    rows = []

    def counting(logits: Any, labels: Any) -> Any:
        rows.append(len(labels))
        return logits.sum()

    both_losses(counting, 16)
    both_losses(counting)
    assert rows[0] == 16 < rows[1]


def test_a_loss_that_explodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in epoch \d of 2; the learning rate 1e\+30 is too high"):
        fit(tmp_path / "x.pt", learning_rate=1e30, warmup=0.0)
    assert not list(tmp_path.iterdir())


def test_a_last_step_without_a_gradient_is_named_too(tmp_path: Path) -> None:
    def zero_with_no_slope(logits: Any, labels: Any) -> Any:
        return (0 * logits.sum()).sqrt()

    with pytest.raises(UsageError, match=r"gradient's norm became nan in epoch 1 of 1"):
        fit(
            tmp_path / "x.pt",
            drawn([(RED,)]),
            epochs=1,
            class_loss=zero_with_no_slope,
            trained_with="none",
        )


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"arch": "torchvision:maskrcnn_resnet50_fpn"}, DataError, "fasterrcnn_resnet50_fpn"),
        ({"arch": "torchvision:fastercnn_resnet50_fpn"}, UsageError, "Did you mean"),
        (
            {"arch": "torchvision:fcos_resnet50_fpn", "class_loss": max, "trained_with": "seesaw"},
            UsageError,
            "expected an R-CNN",
        ),
        ({"class_loss": max}, UsageError, "without its name"),
        (
            {"arch": "torchvision:fcos_resnet50_fpn", "proposals": 64},
            UsageError,
            "proposals is 64, but torchvision:fcos_resnet50_fpn makes none",
        ),
        ({"proposals": 0}, UsageError, "proposals is 0; expected"),
        ({"dataset": drawn([(), (CROWD,)])}, DataError, "None of the 2 readable images of drawn"),
        ({"dataset": drawn(broken=frozenset(range(8)))}, DataError, "None of the 8 images"),
        ({"learning_rate": 0.0}, UsageError, "learning_rate is 0.0; expected"),
        ({"learning_rate": float("nan")}, UsageError, "learning_rate is nan; expected"),
        ({"epochs": 0}, UsageError, "epochs is 0; expected"),
        ({"batch_size": 0}, UsageError, "batch_size is 0; expected"),
        ({"weight_decay": -1.0}, UsageError, "weight_decay is -1.0; expected"),
        ({"warmup": 1.0}, UsageError, "warmup is 1.0; expected"),
        ({"clip_norm": 0.0}, UsageError, "clip_norm is 0.0; expected"),
        ({"seed": -1}, UsageError, "seed is -1; expected"),
        ({"repeat_threshold": 0.0}, UsageError, "threshold t of repeat_factor is 0.0"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        fit(tmp_path / "x.pt", **changes)
    assert not list(tmp_path.iterdir())
