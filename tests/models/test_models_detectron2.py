"""detectron2's checkpoints: what is read of them, and that they compute what detectron2 does."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from published_detectors import HEIGHT, WIDTH, Made, canvas_of, computed, drawn

from ltdeploy.canvas import Canvas
from ltdeploy.classes import ClassTable
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import CheckpointError, UnsafeCheckpointError
from ltdeploy.export.detection.detector_export import export_detector, static_module
from ltdeploy.fixes.spec import parse_spec
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.detectors.detectron2_layout import _ONE_STAGE, _TWO_STAGE, renamed
from ltdeploy.models.detectors.detectron2_network import (
    CASCADE_WEIGHTS,
    PLAIN_WEIGHTS,
    Pixels,
    Recipe,
    Trunk,
    build,
    trunk_of,
)
from ltdeploy.models.detectors.detectron2_parts import FixedAnchors, HalfPixelPool
from ltdeploy.models.options import LoadOptions
from ltdeploy.models.reading import read_content

CANVAS = Canvas(HEIGHT, WIDTH)
TABLE = ClassTable(("a", "b", "c"), (1000, 50, 5))
FAMILIES = ("rcnn", "cascade", "retinanet")


def write(folder: Path, made: Made, config: dict[str, Any] | None = None) -> Path:
    path = folder / "model_final.pth"
    torch.save({"model": made.weights, "iteration": 89999}, path)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def load(path: Path) -> Detector:
    return load_detector(path, options=LoadOptions(classes=TABLE), canvas=CANVAS)


def few_proposals(count: int) -> dict[str, Any]:
    return {"MODEL": {"RPN": {"PRE_NMS_TOPK_TEST": count, "POST_NMS_TOPK_TEST": count}}}


def compare(model: Detector, made: Made) -> dict[str, torch.Tensor]:
    canvas = canvas_of()
    with torch.no_grad():
        wanted = computed(made, canvas)
    raw = DetectorReference(model).run({"images": canvas[None]})
    found = {name: torch.from_numpy(values[0]) for name, values in raw.items()}
    if "probabilities" in wanted:
        torch.testing.assert_close(
            found["logits"].softmax(dim=1), wanted["probabilities"], atol=1e-4, rtol=0
        )
    else:
        torch.testing.assert_close(found["logits"], wanted["logits"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=0.02, rtol=1e-4)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_detectron2_computes(tmp_path: Path, family: str) -> None:
    made = drawn(Made("detectron2", family))
    model = load(write(tmp_path, made))
    found = compare(model, made)
    assert len(found["boxes"]) > 100
    assert found["boxes"].std(dim=0).min() > 5  # real boxes, not one
    assert model.head.background == (None if family == "retinanet" else 3)
    assert model.source.layout == "detectron2"
    assert model.canvas.fill == (124, 116, 104)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_of_fixed_sizes_gives_the_same(tmp_path: Path, family: str) -> None:
    model = load(write(tmp_path, drawn(Made("detectron2", family)), few_proposals(200)))
    canvases = np.stack([canvas_of(1), canvas_of(2)])
    reference = DetectorReference(model).run({"images": canvases})
    static = static_module(model.module, model.architecture.kind, model.canvas)
    pre = model.canvas.as_preprocessing()
    pixels = torch.from_numpy(canvases / 255.0).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in (pre.mean, pre.std))
    with torch.no_grad():
        boxes, logits = static(((pixels - mean) / std).float())
    for at in range(2):
        here = reference["logits"][at]
        wanted = reference["boxes"][at]
        if family == "retinanet":  # each level's best come first
            order = [int(np.abs(here - row).sum(axis=1).argmin()) for row in logits[at].numpy()]
            here, wanted = here[order], wanted[order]
        rows = int(
            (reference["boxes"][at].reshape(len(reference["boxes"][at]), -1).any(axis=1)).sum()
        )
        rows = min(rows, len(here))
        assert rows > 40
        assert logits[at].numpy()[:rows] == pytest.approx(here[:rows], abs=2e-3)
        assert boxes[at].numpy()[:rows] == pytest.approx(wanted[:rows], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["rcnn", "cascade"])
def test_it_is_exported_with_its_fix(tmp_path: Path, family: str) -> None:
    model = load(write(tmp_path, drawn(Made("detectron2", family)), few_proposals(40)))
    done = export_detector(model, [parse_spec("norcal:gamma=0.5")], tmp_path / "m.ltd")
    assert done.checks.score_difference <= 1e-4
    assert done.checks.detections > 20
    entry = done.bundle.manifest
    assert entry.head.background == 3
    # A mean of probabilities has no layer that could take a fix.
    assert entry.fix.folded == ("nodes" if family == "cascade" else "weights")
    assert any("RoiAlign" in note for note in entry.source.notes)


def test_another_canvas_is_of_whole_strides_too(tmp_path: Path) -> None:
    model = load(write(tmp_path, drawn(Made("detectron2", "retinanet"))))
    assert replace(model, canvas=replace(model.canvas, height_px=96)).canvas.height_px == 96
    with pytest.raises(CheckpointError, match="multiples of 32"):
        replace(model, canvas=replace(model.canvas, height_px=100, width_px=100))


def test_the_config_beside_the_file_is_read(tmp_path: Path) -> None:
    made = drawn(
        Made(
            "detectron2", stride_in_1x1=False, bgr=False, mean=(120.0, 115.0, 100.0),
            std=(58.0, 57.0, 56.0),
        )
    )  # fmt: skip
    config = {
        "INPUT": {"FORMAT": "RGB"},
        "MODEL": {
            "PIXEL_MEAN": list(made.mean),
            "PIXEL_STD": list(made.std),
            "RESNETS": {"STRIDE_IN_1X1": False},
            "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]]},
        },
    }
    told = load(write(tmp_path, made, config))
    compare(told, made)
    # Without it the defaults are taken, and said: the comparison notices.
    (tmp_path / "config.yaml").unlink()
    other = load(write(tmp_path, made))
    assert sum("Assumed" in note for note in other.source.notes) == 2
    assert other.source.sha256 == told.source.sha256
    assert other.source.settings != told.source.settings  # kept outputs are not taken for its own
    with pytest.raises(AssertionError):
        compare(other, made)


def test_a_config_that_wants_code_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, drawn(Made("detectron2")))
    (tmp_path / "config.yaml").write_text("MODEL: !!python/object/apply:os.system ['true']")
    with pytest.raises(CheckpointError, match=r"config\.yaml.*not plain YAML"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "MODEL: {RPN: null}",
        "MODEL: {RPN: {PRE_NMS_TOPK_TEST: abc}}",
        "MODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: 5}}",
        "MODEL: {PIXEL_MEAN: x, PIXEL_STD: x}",
        "MODEL: {[1]: 2}",
        "MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: []}}",
        "MODEL: " + "[" * 3000,
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, drawn(Made("detectron2")))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        load(path)


@pytest.mark.parametrize("number", ["7", "999999999", "9" * 5000])
def test_the_number_of_a_block_builds_no_others(number: str) -> None:
    keys = [f"backbone.body.layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)]
    weights = dict.fromkeys(keys, torch.zeros(1))
    assert trunk_of(weights) == Trunk((1, 1, 1, 1), bottleneck=False)
    weights[f"backbone.body.layer2.{number}.conv1.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=rf"layer2\.{number}\.conv1"):
        trunk_of(weights)


def test_what_grouped_convolutions_bring_with_them(tmp_path: Path) -> None:
    std = (57.375, 57.12, 58.395)
    made = drawn(Made("detectron2", stride_in_1x1=False, std=std, groups=32))
    model = load(write(tmp_path, made))
    assert "resnext" in model.arch
    compare(model, made)


@pytest.mark.parametrize("part", ["anchors", "alignment", "samples", "stride"])
def test_each_difference_from_torchvision_shows(tmp_path: Path, part: str) -> None:
    made = drawn(Made("detectron2"))
    model = load(write(tmp_path, made))
    module: Any = model.module
    if part == "anchors":
        shapes = module.rpn.anchor_generator.shapes
        rounded = [cell.round() for cell in shapes.cells()]
        module.rpn.anchor_generator = FixedAnchors(shapes, rounded)
    elif part == "stride":
        block = module.backbone.body.layer2[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    else:
        pool = module.roi_heads.box_roi_pool
        module.roi_heads.box_roi_pool = HalfPixelPool(
            pool.eps, sampling_ratio=2 if part == "samples" else 0, aligned=part != "alignment"
        )
    with pytest.raises(AssertionError):
        compare(model, made)


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_model_zoos_pickle_is_read_without_its_code(tmp_path: Path, protocol: int) -> None:
    made = drawn(Made("detectron2"))
    arrays = {key: value.numpy() for key, value in made.weights.items()}
    zoo = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    path = tmp_path / "model_final_280758.pkl"
    path.write_bytes(pickle.dumps(zoo, protocol=protocol))
    content = read_content(path)
    assert content.data["__author__"] == "Detectron2 Model Zoo"
    held = content.data["model"]
    assert held.keys() == made.weights.keys()
    for key, value in made.weights.items():
        assert torch.equal(held[key], value)
    assert load(path).arch.startswith("detectron2:fasterrcnn")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_names_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "b": Harm()}, protocol=protocol))
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system|nt\.system"):
        read_content(path)
    assert not (tmp_path / "harmed").exists()
    read_content(path, trust_pickle=True)
    assert (tmp_path / "harmed").exists()


def test_pickled_objects_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": np.array([{}], dtype=object)}))
    with pytest.raises(UnsafeCheckpointError, match="only numbers and text"):
        read_content(path)
    path.write_bytes(pickle.dumps({"model": np.zeros(1000)})[:700])
    with pytest.raises(CheckpointError, match="cut short"):
        read_content(path)


def test_old_files_bring_their_anchors_and_normalisation(tmp_path: Path) -> None:
    made = drawn(Made("detectron2"))
    plain = load(write(tmp_path, made))
    for level, size in enumerate((32, 64, 128, 256, 512)):
        cell = torch.tensor([[-size, -size, size, size]] * 3).float() / 2
        made.weights[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = cell
    made.weights |= {"pixel_mean": torch.tensor([1.0, 2, 3]).reshape(3, 1, 1)}
    made.weights |= {"pixel_std": torch.tensor([4.0, 5, 6]).reshape(3, 1, 1)}
    model = load(write(tmp_path, made))
    assert model.canvas.mean == pytest.approx((3 / 255, 2 / 255, 1 / 255))
    assert model.canvas.std == pytest.approx((6 / 255, 5 / 255, 4 / 255))
    cells = [one.module.rpn.anchor_generator.cells[0] for one in (plain, model)]  # type: ignore[union-attr]
    assert not torch.equal(*cells)


def test_masks_are_left_out_and_other_keys_are_not(tmp_path: Path) -> None:
    made = drawn(Made("detectron2"))
    made.weights["roi_heads.mask_head.mask_fcn1.weight"] = torch.zeros(2)
    assert any("masks are left out" in note for note in load(write(tmp_path, made)).source.notes)
    made.weights["roi_heads.box_head.conv1.weight"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"box_head\.conv1\.weight is left over"):
        load(write(tmp_path, made))
    del made.weights["roi_heads.box_head.conv1.weight"], made.weights["roi_heads.box_head.fc2.bias"]
    with pytest.raises(CheckpointError, match=r"fc7\.bias is missing"):
        load(write(tmp_path, made))
    backbone = {k: v for k, v in made.weights.items() if k.startswith("backbone")}
    with pytest.raises(CheckpointError, match="no class layer"):
        load(write(tmp_path, replace(made, weights=backbone)))


def test_a_background_at_the_other_end_is_noticed(tmp_path: Path) -> None:
    made = drawn(Made("detectron2"))
    bias = made.weights["roi_heads.box_predictor.cls_score.bias"]
    bias[:] = torch.tensor([-1.0, -1.0, -1.0, 2.0])
    assert not any("Warning" in note for note in load(write(tmp_path, made)).source.notes)
    bias[:] = torch.tensor([2.0, -1.0, -1.0, -1.0])
    warned = [note for note in load(write(tmp_path, made)).source.notes if "Warning" in note]
    assert len(warned) == 1
    assert "detectron2 has the background in column 3" in warned[0]
    assert "column 0, at the other end (2; of column 3 -1)" in warned[0]


def published(family: str) -> list[str]:
    """Return the keys of the model zoo's R-50-FPN detectors, as detectron2 logs them.

    Names: logs in facebookresearch/unbiased-teacher issue 29, facebookresearch/detectron2 issue
    3028, AarohiSingla/Detectron2-Tutorial issue 1; numbers of blocks: ResNet-50's.
    """
    norm = ("weight", "bias", "running_mean", "running_var")
    trunk = ["stem.conv1", *(
        f"res{stage}.{block}.{part}"
        for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3))
        for block in range(blocks)
        for part in ("conv1", "conv2", "conv3", *(["shortcut"] if block == 0 else []))
    )]  # fmt: skip
    keys = [f"backbone.bottom_up.{one}.weight" for one in trunk]
    keys += [f"backbone.bottom_up.{one}.norm.{part}" for one in trunk for part in norm]
    levels = (3, 4, 5) if family == "retinanet" else (2, 3, 4, 5)
    layers = [f"backbone.fpn_{part}{n}" for part in ("lateral", "output") for n in levels]
    stages = (".0", ".1", ".2") if family == "cascade" else ("",)
    if family == "retinanet":
        layers += ["backbone.top_block.p6", "backbone.top_block.p7"]
        layers += [f"head.{net}_subnet.{n}" for net in ("cls", "bbox") for n in (0, 2, 4, 6)]
        layers += ["head.cls_score", "head.bbox_pred"]
    else:
        layers += [
            f"proposal_generator.rpn_head.{one}"
            for one in ("conv", "objectness_logits", "anchor_deltas")
        ]
        layers += [f"roi_heads.box_head{at}.fc{n}" for at in stages for n in (1, 2)]
        layers += [
            f"roi_heads.box_predictor{at}.{one}"
            for at in stages
            for one in ("cls_score", "bbox_pred")
        ]
        layers += [f"roi_heads.mask_head.mask_fcn{n}" for n in (1, 2, 3, 4)]
        layers += ["roi_heads.mask_head.deconv", "roi_heads.mask_head.predictor"]
    return keys + [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_published_detectors_has_its_place(family: str) -> None:
    keys = published(family)
    names = renamed(dict.fromkeys(keys, torch.zeros(1)))
    assert {key for key in keys if key not in names} == {k for k in keys if ".mask_head." in k}
    kind: Any = {"cascade": "cascade_rcnn"}.get(family, family)
    retina = family == "retinanet"
    weights = {"cascade": CASCADE_WEIGHTS}.get(family, (PLAIN_WEIGHTS,))
    recipe = Recipe(
        "detectron2", kind, Trunk((3, 4, 6, 3)), 80 if retina else 81,
        80 if family == "rcnn" else 1, True, Pixels((0, 0, 0), (1, 1, 1), True),
        _ONE_STAGE if retina else _TWO_STAGE,
        {"eps": 1e-16}, coarse_from=2048 if retina else None, box_weights=weights,
    )  # fmt: skip
    with torch.device("meta"):
        built = build(recipe, HEIGHT, WIDTH)
    assert set(built.state_dict()) == set(names.values())
    assert len(names.values()) == len(set(names.values()))
