"""torchvision's detectors by name on any backbone, their recognition, and Cascade R-CNN."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, box_iou

from ltdeploy.canvas import Canvas
from ltdeploy.classes import ClassTable
from ltdeploy.errors import CheckpointError, UsageError
from ltdeploy.models.detectors.architectures import ARCHITECTURES, build_detector
from ltdeploy.models.detectors.building import build_torchvision
from ltdeploy.models.detectors.cascade import (
    STAGES,
    CascadeHeads,
    cascade_stages,
    mean_logits,
)
from ltdeploy.models.detectors.design import BACKBONES, DESIGNS
from ltdeploy.models.detectors.detector import load_detector
from ltdeploy.models.detectors.recognition import is_frozen, likely_designs
from ltdeploy.models.detectors.reference_rcnn import rcnn_outputs
from ltdeploy.models.options import LoadOptions
from ltdeploy.training.class_loss import using_class_loss

READY_MADE = [name for name in DESIGNS if hasattr(detection, name)]
CANVAS = Canvas(64, 96)
COLUMNS, CHANNELS = 4, 8


def without_transform(module: Any) -> str:
    return re.sub(r"\(transform\).*?\n  \)\n", "", repr(module), flags=re.DOTALL)


def numbers(module: Any) -> dict[str, Any]:
    """Return what a network computes with beside its layers."""
    kept = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, int | float | tuple | dict) and not key.startswith("__"):
                if key in ("_modules", "_parameters", "_buffers", "training"):
                    continue
                if not isinstance(value, dict) or all(isinstance(v, int) for v in value.values()):
                    kept[f"{name}.{key}"] = value
    return {key: value for key, value in kept.items() if not key.startswith("transform")}


def test_all_nine_of_torchvisions_box_detectors_are_known() -> None:
    assert len(READY_MADE) == 9
    assert len(ARCHITECTURES) == len(DESIGNS) > 90


@pytest.mark.parametrize("name", READY_MADE)
def test_torchvisions_own_names_are_its_own_networks(name: str) -> None:
    columns = 5 if ARCHITECTURES[name].kind == "rcnn" else 4
    with torch.device("meta"):
        make: Any = getattr(detection, name)
        theirs = make(weights=None, weights_backbone=None, num_classes=columns)
        ours = build_torchvision(DESIGNS[name], 4)
    assert without_transform(ours) == without_transform(theirs)
    held, wanted = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in held.items()} == {k: v.shape for k, v in wanted.items()}
    assert numbers(ours) == numbers(theirs)
    assert [p.requires_grad for p in ours.parameters()] == [
        p.requires_grad for p in theirs.parameters()
    ]


def test_other_versions_differ_in_their_numbers() -> None:
    with torch.device("meta"):
        one, other = (
            build_torchvision(DESIGNS[f"fasterrcnn_mobilenet_v3_large{size}_fpn"], 4)
            for size in ("", "_320")
        )
    assert without_transform(one) == without_transform(other)
    assert numbers(one) != numbers(other)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("fasterrcnn_resnext50_32x4_fpn", "fasterrcnn_resnext50_32x4d_fpn"),
        ("cascadercnn_resnet50_fpn", "cascade_rcnn_resnet50_fpn"),
        ("fcos_resnet50_fpn_v2", "fcos_resnet50_fpn"),
    ],
)
def test_an_unknown_name_is_told_the_rule_and_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"FAMILY_BACKBONE_fpn.*resnet152.*{meant}") as caught:
        build_detector(f"torchvision:{typed}", 3)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("family", ["fasterrcnn", "retinanet"])
def test_a_state_dict_tells_family_and_backbone(family: str, backbone: str) -> None:
    name = f"{family}_{backbone}_fpn"
    with torch.device("meta"):
        found = likely_designs(build_detector(f"torchvision:{name}", 3).state_dict())
    assert name in found
    assert len(found) <= 2
    assert {DESIGNS[one].backbone for one in found} == {backbone}


@pytest.mark.parametrize("name", [one for one in DESIGNS if "resnet50" in one])
def test_a_state_dict_tells_the_family(name: str) -> None:
    with torch.device("meta"):
        found = likely_designs(build_detector(f"torchvision:{name}", 3).state_dict())
    assert name in found
    assert {DESIGNS[one].family for one in found} == {DESIGNS[name].family}


@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_one_stage_detectors_see_five_levels_of_a_mobilenet(family: str) -> None:
    module: Any = build_detector(f"torchvision:{family}_mobilenet_v3_small_fpn", 3, CANVAS)
    with torch.no_grad():
        levels = module.eval().backbone(torch.zeros(1, 3, 128, 256))
    assert [tuple(level.shape[2:]) for level in levels.values()] == [
        (16, 32), (8, 16), (4, 8), (2, 4), (1, 2),
    ]  # fmt: skip


def write(path: Path, module: Any) -> Path:
    torch.save({"model": module.state_dict()}, path)
    return path


def test_a_network_with_frozen_normalisations_loads_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = "torchvision:fasterrcnn_resnet18_fpn"
    module: Any = build_detector(arch, 3, CANVAS, frozen=True).eval()
    for part in module.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.running_var.uniform_(0.5, 1.5)
    assert is_frozen(module.state_dict())
    assert not is_frozen(build_detector(arch, 3).state_dict())
    options = LoadOptions(classes=ClassTable(("a", "b", "c"), (3, 2, 1)))
    loaded = load_detector(write(tmp_path / "x.pth", module), options=options, canvas=CANVAS)
    assert loaded.arch == arch
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = loaded.module.backbone(images), module.backbone(images)  # type: ignore[operator]
    for name, level in theirs.items():
        torch.testing.assert_close(ours[name], level)


def test_what_goes_on_from_published_weights_has_no_epsilon() -> None:
    with torch.device("meta"):
        published = build_detector("torchvision:maskrcnn_resnet50_fpn", 90, frozen=True)
        own = build_detector("torchvision:maskrcnn_resnext50_32x4d_fpn", 90, frozen=True)
    for module, eps in ((published, 0.0), (own, 1e-5)):
        parts = [one for one in module.modules() if isinstance(one, FrozenBatchNorm2d)]
        assert {part.eps for part in parts} == {eps}


def test_a_mask_rcnn_is_recognised_and_says_what_is_left_out(tmp_path: Path) -> None:
    arch = "torchvision:maskrcnn_mobilenet_v3_small_320_fpn"
    path = write(tmp_path / "m.pth", build_detector(arch, 2, CANVAS))
    loaded = load_detector(path)
    assert loaded.arch == arch
    assert loaded.head.classes == 3
    assert any("--nms-in-graph" in note for note in loaded.source.notes)


def test_a_cascade_is_recognised_and_has_three_class_layers(tmp_path: Path) -> None:
    arch = "torchvision:cascade_rcnn_mobilenet_v3_small_320_fpn"
    module: Any = build_detector(arch, 2, CANVAS)
    loaded = load_detector(write(tmp_path / "c.pth", module))
    assert (loaded.arch, len(loaded.head_paths)) == (arch, 3)
    assert (loaded.head.classes, loaded.head.background) == (3, 0)
    assert any("mean of three stages" in note for note in loaded.source.notes)
    layers = [module.get_submodule(path).weight.detach() for path in loaded.head_paths]
    mean = torch.stack(layers).mean(dim=0).double().numpy()
    assert loaded.head.weight == pytest.approx(mean, abs=1e-7)
    weights = module.state_dict()
    del weights["roi_heads.stages.1.box_predictor.cls_score.bias"]
    torch.save(weights, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"stages\.1\.box_predictor\.cls_score\.bias is miss"):
        load_detector(tmp_path / "broken.pth")


@pytest.fixture
def heads() -> CascadeHeads:
    torch.manual_seed(5)
    made = CascadeHeads(cascade_stages(CHANNELS, COLUMNS))
    for stage in made.stages:
        predictor: Any = stage.box_predictor
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.3)
    return made.eval()


@pytest.fixture
def pyramid() -> dict[str, torch.Tensor]:
    torch.manual_seed(6)
    return {name: torch.randn(2, CHANNELS, 16 >> k, 24 >> k) for k, name in enumerate("0123")}


SIZES = [(64, 96), (64, 96)]


def boxes_of(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand((count, 2), generator=generator) * torch.tensor([70.0, 40.0])
    return torch.cat([corner, corner + 8 + 16 * torch.rand((count, 2), generator=generator)], dim=1)


def moved(boxes: torch.Tensor, deltas: torch.Tensor, weights: Any) -> torch.Tensor:
    """Return boxes after deltas, written out from eq. 2 of arXiv 1506.01497."""
    shift = deltas / torch.tensor(weights)
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2 + shift[:, :2] * sides
    half = sides * shift[:, 2:].exp() / 2
    limit = torch.tensor([96.0, 64.0])
    corners = [(centres - half).clamp(min=0), (centres + half).clamp(min=0)]
    return torch.cat([torch.minimum(one, limit) for one in corners], dim=1)


@torch.no_grad()
def test_each_stage_sees_the_boxes_of_the_one_before(
    heads: CascadeHeads, pyramid: dict[str, torch.Tensor]
) -> None:
    proposals = [boxes_of(5, 1), boxes_of(3, 2)]
    logits, boxes = heads.refine(pyramid, proposals, SIZES)
    now, parts = torch.cat(proposals), []
    for told, module in zip(STAGES, heads.stages, strict=True):
        stage: Any = module
        pooled = stage.box_roi_pool(pyramid, list(now.split([5, 3])), SIZES)
        z, deltas = stage.box_predictor(stage.box_head(pooled))
        now = moved(now, deltas, told.box_weights)
        parts.append(z)
    torch.testing.assert_close(logits, (parts[0] + parts[1] + parts[2]) / 3)
    torch.testing.assert_close(torch.cat(boxes), now)
    assert box_iou(now, torch.cat(proposals)).diagonal().min() < 0.95  # boxes did move


@torch.no_grad()
def test_nothing_proposed_is_nothing_found(
    heads: CascadeHeads, pyramid: dict[str, torch.Tensor]
) -> None:
    none = [torch.zeros(0, 4), torch.zeros(0, 4)]
    logits, boxes = heads.refine(pyramid, none, SIZES)
    assert logits.shape == (0, COLUMNS)
    assert [tuple(one.shape) for one in boxes] == [(0, 4), (0, 4)]
    found, losses = heads(pyramid, none, SIZES)
    assert not losses
    assert [len(one["scores"]) for one in found] == [0, 0]


@torch.no_grad()
@pytest.mark.parametrize("family", ["fasterrcnn", "cascade_rcnn"])
def test_a_reference_without_proposals_keeps_its_shape(family: str) -> None:
    name = f"torchvision:{family}_mobilenet_v3_small_320_fpn"
    module: Any = build_detector(name, 2, CANVAS).eval()
    module.rpn.score_thresh = 2.0
    raw = rcnn_outputs(module, torch.zeros(2, 3, 64, 96))
    assert raw["logits"].shape == (2, 0, 3)
    assert raw["boxes"].shape == ((2, 0, 2, 4) if family == "fasterrcnn" else (2, 0, 4))


@torch.no_grad()
def test_it_detects_by_itself_as_torchvisions_detectors_do() -> None:
    torch.manual_seed(1)
    name = "torchvision:cascade_rcnn_mobilenet_v3_small_320_fpn"
    module: Any = build_detector(name, 2, CANVAS).eval()
    for stage in module.roi_heads.stages:
        torch.nn.init.normal_(stage.box_predictor.cls_score.weight, std=1.0)
        stage.score_thresh, stage.nms_thresh, stage.detections_per_img = 0.0, 1.0, 10**6
    images = torch.randn(1, 3, 64, 96)
    (found,) = module(list(images))
    raw = rcnn_outputs(module, images)
    scores = raw["logits"][0].softmax(dim=1)[:, 1:]
    assert len(found["scores"]) == scores.numel() > 0
    torch.testing.assert_close(found["scores"], scores.flatten().sort(descending=True).values)
    best = scores.max(dim=1).values.argmax()
    torch.testing.assert_close(found["boxes"][0], raw["boxes"][0, best])


def targets() -> list[dict[str, torch.Tensor]]:
    return [
        {"boxes": boxes_of(2, 8), "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def test_each_stage_has_its_losses_and_overlap(
    heads: CascadeHeads, pyramid: dict[str, torch.Tensor]
) -> None:
    heads.train()
    held, wanted, seen = targets(), {}, []
    near = torch.cat([held[0]["boxes"] + 1.5, boxes_of(20, 9)])
    for number, module in enumerate(heads.stages, start=1):
        stage: Any = module
        select = stage.select_training_samples

        def watched(
            proposals: Any,
            told: Any,
            select: Any = select,
            stage: Any = stage,
            number: int = number,
        ) -> Any:
            chosen = select(proposals, told)
            labels = chosen[2][0]
            best = box_iou(held[0]["boxes"], chosen[0][0]).max(dim=0).values
            seen.append((number, float(best[labels > 0].min()), float(best[labels == 0].max())))
            logits, deltas = stage.box_predictor(
                stage.box_head(stage.box_roi_pool(pyramid, chosen[0], SIZES))
            )
            every, aims = torch.cat(chosen[2]), torch.cat(chosen[3])
            weight = STAGES[number - 1].loss_weight
            wanted[f"loss_classifier_{number}"] = weight * cross_entropy(logits, every)
            errors = smooth_l1_loss(deltas[every > 0], aims[every > 0], beta=1 / 9, reduction="sum")
            wanted[f"loss_box_reg_{number}"] = weight * errors / len(every)
            return chosen

        stage.select_training_samples = watched
    found, losses = heads(pyramid, [near, boxes_of(9, 4)], SIZES, held)
    assert found == []
    assert losses.keys() == wanted.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, wanted[name])
    for number, least_object, most_background in seen:
        assert least_object >= STAGES[number - 1].iou > most_background
    torch.stack(list(losses.values())).sum().backward()
    for parameter in heads.parameters():
        assert parameter.grad is not None


def test_stages_learn_without_moving_the_boxes_before_them(
    heads: CascadeHeads, pyramid: dict[str, torch.Tensor]
) -> None:
    heads.train()
    losses = heads(pyramid, [boxes_of(9, 3), boxes_of(9, 4)], SIZES, targets())[1]
    (losses["loss_classifier_3"] + losses["loss_box_reg_3"]).backward()
    first: Any = heads.stages[0]
    assert first.box_predictor.bbox_pred.weight.grad is None


def test_every_stage_takes_a_class_loss_and_a_number_of_proposals() -> None:
    name = "torchvision:cascade_rcnn_mobilenet_v3_small_320_fpn"
    module: Any = build_detector(name, 3, CANVAS).train()
    own, rows = module.roi_heads, []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows.append(len(labels))
        return 7 * cross_entropy(logits, labels)

    images = torch.randn(2, 3, 64, 96)
    with using_class_loss(module, loss, 6):
        losses = module(list(images), targets())
        assert set(module.roi_heads.state_dict()) == set(own.state_dict())
    assert module.roi_heads is own
    assert len(rows) == 3
    assert max(rows) <= 12
    assert {f"loss_{what}_{n}" for what in ("classifier", "box_reg") for n in (1, 2, 3)} < set(
        losses
    )


def test_image_lists_are_what_the_proposals_are_made_from() -> None:
    """The reference hands torchvision's own proposals on, in the canvas's size."""
    torch.manual_seed(2)
    name = "torchvision:cascade_rcnn_mobilenet_v3_small_320_fpn"
    module: Any = build_detector(name, 2, CANVAS).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = module.backbone(images)
        proposals, _ = module.rpn(ImageList(images, SIZES), features)
        logits, boxes = module.roi_heads.refine(features, proposals, SIZES)
        raw = rcnn_outputs(module, images)
    count = len(proposals[0])
    torch.testing.assert_close(raw["logits"][0, :count], logits[:count])
    torch.testing.assert_close(raw["boxes"][0, :count], boxes[0])


def test_means_of_stages_are_those_of_their_scores() -> None:
    stages = list(torch.randn(3, 5, COLUMNS, dtype=torch.float64) * 20)
    softmax = mean_logits(stages, "probabilities").softmax(dim=-1)
    sigmoid = mean_logits(stages, "sigmoids").sigmoid()
    torch.testing.assert_close(softmax, torch.stack([z.softmax(-1) for z in stages]).mean(0))
    torch.testing.assert_close(sigmoid, torch.stack([z.sigmoid() for z in stages]).mean(0))
    torch.testing.assert_close(mean_logits(stages, "logits"), sum(stages) / 3)
