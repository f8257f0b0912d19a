"""Hugging Face folders of detectors, saved by transformers itself, loaded without a network."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from model_samples import drawn
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "export"))
from detector_folders import NAMES, PROCESSOR, write_folder
from detector_samples import QUERY_DETECTORS, SIZE, TOP_K, images

from ltdeploy.canvas import Canvas
from ltdeploy.classes import ClassTable
from ltdeploy.errors import CheckpointError, DataError
from ltdeploy.images import normalise
from ltdeploy.models.classifier import Classifier
from ltdeploy.models.detectors.architectures import Architecture
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.detectors.huggingface_canvas import folder_canvas
from ltdeploy.models.detectors.huggingface_detectors import QUERY_ARCHITECTURES
from ltdeploy.models.detectors.reference import raw_outputs
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions

TABLE = ClassTable(NAMES, (300, 150, 40, 8))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("saved")
    return {
        family: (folder / family, write_folder(folder / family, family))
        for family in QUERY_DETECTORS
    }


@pytest.fixture
def detr(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    """Return a folder of a DETR that a test may change."""
    return Path(shutil.copytree(saved["detr"][0], tmp_path / "detr"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, **values: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | values, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", QUERY_DETECTORS)
def test_folders_load_back(saved: dict[str, tuple[Path, Any]], family: str) -> None:
    folder, module = saved[family]
    model = load_model(folder, options=LoadOptions(classes=TABLE))
    assert isinstance(model, Detector)
    batch = images(3)
    with torch.inference_mode():
        ours = raw_outputs(model.module, model.architecture.kind, batch)
        theirs = module(pixel_values=batch)
    assert torch.equal(ours["logits"], theirs.logits)
    assert ours["boxes"][..., 0].max() <= SIZE[1]
    assert (model.arch, model.architecture.kind) == (f"hf:{family}", family)
    assert model.require_complete() is TABLE
    assert model.keep_rule.suppression == "none"
    rule = (model.score_rule.activation, model.score_rule.background, model.head.background)
    assert rule == (("softmax", 4, 4) if family == "detr" else ("sigmoid", None, None))
    assert all(model.module.get_submodule(path).bias is not None for path in model.head_paths)
    assert model.canvas.to_dict() | {"fit": "squash", "mean": [0.5, 0.45, 0.4]} == (
        model.canvas.to_dict()
    )
    assert (model.canvas.height_px, model.canvas.width_px) == SIZE
    if family != "detr":  # each decoder layer has rows of its own; the last gives the logits
        layers = model.module.class_embed
        assert not torch.equal(layers[0].weight, layers[-1].weight)
        assert np.array_equal(model.head.weight, layers[-1].weight.double().numpy())


def test_counts_must_be_said_and_names_come_from_the_folder(detr: Path) -> None:
    model = load_detector(detr)
    assert model.source.class_names == NAMES
    with pytest.raises(CheckpointError, match="--classes FILE"):
        model.require_complete()
    counted = ClassTable.from_counts(TABLE.counts)
    named = load_detector(detr, options=LoadOptions(classes=counted)).require_complete()
    assert named.names == NAMES
    turned = ClassTable(NAMES[::-1], TABLE.counts)
    with pytest.raises(CheckpointError, match="another order"):
        load_detector(detr, options=LoadOptions(classes=turned))
    longer = ClassTable((*NAMES, "background"), (*TABLE.counts, 0))
    with pytest.raises(CheckpointError, match="must not list the background"):
        load_detector(detr, options=LoadOptions(classes=longer)).require_complete()


def test_names_that_no_class_has(detr: Path) -> None:
    """COCO's folders call ten of their 91 numbers 'N/A'."""
    change(detr / "config.json", id2label={"0": "N/A", "1": "disc", "2": "N/A", "3": "bar"})
    unnamed = LoadOptions(classes=ClassTable.from_counts(TABLE.counts))
    assert not load_detector(detr, options=unnamed).require_complete().is_named
    with pytest.raises(DataError, match="N/A"):
        ClassTable(("N/A", "disc", "N/A", "bar"), TABLE.counts)


def test_a_classifiers_folder_stays_a_classifier(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, id2label=dict(enumerate(NAMES))
    )
    drawn(transformers.ResNetForImageClassification(config)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 32, "width": 32}})
    )
    assert isinstance(load_model(tmp_path, options=LoadOptions(classes=TABLE)), Classifier)
    with pytest.raises(CheckpointError, match=r"ResNetForImageClassification; .*DetrForObject"):
        load_detector(tmp_path)


def test_what_is_neither_is_refused(detr: Path, tmp_path: Path) -> None:
    change(detr / "config.json", architectures=["BertForMaskedLM"], model_type="bert")
    with pytest.raises(CheckpointError, match="not an image classifier"):
        load_model(detr)
    (tmp_path / "notes.txt").write_text("queries\n" * 40)
    with pytest.raises(CheckpointError, match="looks like a text file"):
        load_model(tmp_path / "notes.txt")
    (detr / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_model(detr)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"architectures": ["YolosForObjectDetection"]},
            "YolosForObjectDetection; detectors known",
        ),
        ({"model_type": "d_fine"}, "model type 'd_fine'; expected 'detr'"),
        ({"d_model": "many"}, "can build: .*d_model"),
        ({"d_model": 64}, "of another shape"),
        (
            {"backbone_config": None, "backbone": "some/resnet", "use_timm_backbone": False},
            "names its backbone, 'some/resnet'",
        ),
    ],
)
def test_a_config_that_does_not_fit(detr: Path, told: dict[str, Any], said: str) -> None:
    change(detr / "config.json", **told)
    with pytest.raises(CheckpointError, match=said):
        load_model(detr)


def test_another_architecture_is_told(detr: Path) -> None:
    load_detector(detr, options=LoadOptions(arch="hf:detr"))
    options = LoadOptions(arch="torchvision:fcos_resnet50_fpn")
    with pytest.raises(CheckpointError, match=r"is hf:detr by its config\.json"):
        load_detector(detr, options=options)


@pytest.mark.parametrize("family", QUERY_DETECTORS)
def test_weights_that_do_not_fit(
    saved: dict[str, tuple[Path, Any]], tmp_path: Path, family: str
) -> None:
    """transformers itself would start what is missing at random values and warn."""
    folder = Path(shutil.copytree(saved[family][0], tmp_path / "copy"))
    held = load_file(folder / "model.safetensors")
    rows = "class_labels_classifier" if family == "detr" else "class_embed.1"
    (last,) = [key for key in held if key.endswith(f"{rows}.weight")]
    change_weights(folder, **{last: torch.full_like(held[last], torch.nan)})
    with pytest.raises(CheckpointError, match="not finite"):
        load_detector(folder)
    save_file(
        {key: value for key, value in held.items() if key != last}, folder / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=rf"missing in the file .*{rows}\.weight"):
        load_detector(folder)
    save_file({**held, "odd": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not in the architecture \(odd\)"):
        load_detector(folder)


def test_code_in_a_folder_is_not_run(detr: Path) -> None:
    (detr / "own.py").write_text("raise AssertionError('the folder ran code')\n")
    change(
        detr / "config.json",
        auto_map={"AutoConfig": "own.Config", "AutoModelForObjectDetection": "own.Model"},
    )
    assert isinstance(load_model(detr), Detector)


@pytest.mark.parametrize("old", [False, True], ids=["described", "named"])
def test_a_timm_backbone_is_not_downloaded(tmp_path: Path, old: bool) -> None:
    backbone = {
        "model_type": "timm_backbone",
        "backbone": "resnet18",
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [1, 2, 3, 4],
    }
    config = transformers.DetrConfig(
        backbone_config=backbone, d_model=32, num_queries=5, encoder_layers=1, decoder_layers=1
    )
    module = transformers.DetrForObjectDetection(config).eval()
    module.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    if old:
        change(
            tmp_path / "config.json",
            backbone_config=None,
            backbone="resnet18",
            use_timm_backbone=True,
            backbone_kwargs={"in_chans": 3, "out_indices": [1, 2, 3, 4]},
            use_pretrained_backbone=True,
        )
    else:
        kept = json.loads((tmp_path / "config.json").read_text())["backbone_config"]
        told = {**kept, "use_pretrained_backbone": True}
        change(tmp_path / "config.json", backbone_config=told)
    model = load_detector(tmp_path)
    with torch.inference_mode():
        ours = raw_outputs(model.module, "detr", images(1))["logits"]
        assert torch.equal(ours, module(pixel_values=images(1)).logits)


KINDS = {one.kind: one for one in QUERY_ARCHITECTURES.values()}


def canvas_of(folder: Path, kind: Any = "rt_detr_v2", **told: Any) -> tuple[Any, list[str]]:
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | told))
    return folder_canvas(folder, KINDS[kind])


@pytest.mark.parametrize("kind", ["RTDetrImageProcessor", "DetrImageProcessor"])
@pytest.mark.parametrize("shape", [(90, 120), (300, 257)])
def test_a_canvas_is_what_transformers_does(
    tmp_path: Path, kind: str, shape: tuple[int, int]
) -> None:
    """The processor's own output against ours, on noise: at most one step of 255 apart."""
    processor = getattr(transformers, f"{kind}Pil")(size={"height": 160, "width": 128})
    processor.save_pretrained(tmp_path)
    architecture: Architecture = KINDS["rt_detr_v2" if kind.startswith("RT") else "detr"]
    canvas, notes = folder_canvas(tmp_path, architecture)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    ours = normalise(canvas.prepare(pixels)[0][None], canvas.as_preprocessing())
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1.01 / 255 / min(canvas.std)
    assert (canvas.mean == (0.0, 0.0, 0.0)) == kind.startswith("RT")
    assert not notes


def test_a_padded_canvas_is_what_transformers_does(tmp_path: Path) -> None:
    sides = {"height": 128, "width": 128}
    processor = transformers.RTDetrImageProcessorPil(
        size={"max_height": 128, "max_width": 128},
        do_pad=True,
        pad_size=sides,
        do_normalize=True,
    )
    processor.save_pretrained(tmp_path)
    canvas, _ = folder_canvas(tmp_path, KINDS["rt_detr_v2"])
    assert canvas.fit == "top_left"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    theirs = processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    ours = normalise(canvas.prepare(pixels)[0][None], canvas.as_preprocessing())
    assert np.abs(ours - theirs).max() <= 1.01 / 255 / min(canvas.std)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"shortest_edge": 800, "longest_edge": 1333}, (800, 1088)),
        ({"shortest_edge": 480, "longest_edge": 480}, (384, 480)),
        (800, (800, 1088)),
        ({"max_height": 320, "max_width": 480}, (320, 480)),
    ],
)
def test_detr_sees_the_whole_canvas(tmp_path: Path, size: Any, expected: tuple[int, int]) -> None:
    canvas, (note,) = canvas_of(tmp_path, "detr", size=size, do_pad=True)
    assert (canvas.height_px, canvas.width_px) == expected
    assert canvas.fit == "squash"
    assert "all of which counts as image" in note


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"size": None}, "size"),
        ({"size": {"longest_edge": 640}}, "size"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"resample": 9}, "resample"),
        ({"do_pad": True, "pad_size": {"height": 128, "width": 128}}, "pad_size"),
    ],
)
def test_preprocessing_that_is_not_reproduced(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=f"not reproduce to the pixel .{said}"):
        canvas_of(tmp_path, **told)


@pytest.mark.parametrize(
    "told", [{"size": {"height": "x", "width": 64}}, {"image_mean": 0.5}, {"image_std": [1, 1]}]
)
def test_wrong_values_in_the_preprocessing(tmp_path: Path, told: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json holds a wrong value"):
        canvas_of(tmp_path, **told)


def test_a_canvas_that_cannot_be_had(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json.*save_pretrained"):
        folder_canvas(tmp_path, KINDS["detr"])
    folder = Path(shutil.copytree(saved["rt_detr_v2"][0], tmp_path / "copy"))
    with pytest.raises(CheckpointError, match="64×100 pixels; expected multiples of 32"):
        dataclasses.replace(
            load_detector(folder), canvas=Canvas(height_px=64, width_px=100, fit="squash")
        )


def test_another_size_than_the_folders(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["rt_detr_v2"][0], tmp_path / "copy"))
    change(folder / "config.json", anchor_image_size=list(SIZE))  # made for one size otherwise
    model = load_detector(folder, canvas=Canvas(96, 128, fit="squash"))
    with torch.inference_mode():
        boxes = raw_outputs(model.module, "rt_detr_v2", torch.zeros(1, 3, 96, 128))["boxes"]
    assert boxes.shape == (1, TOP_K, 4)
