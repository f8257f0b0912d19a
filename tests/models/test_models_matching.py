"""Strict matching: nothing is left at random values, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from model_samples import CLASSES, drawn, logits_of

from ltdeploy.errors import CheckpointError, UsageError
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import Classifier, LoadOptions, load_checkpoint
from ltdeploy.models.options import adjust_preprocessing
from ltdeploy.preprocessing import Preprocessing


def load(path: Path, data: Any, **options: Any) -> Classifier:
    torch.save(data, path)
    model = load_checkpoint(path, options=LoadOptions(**options))
    assert isinstance(model, Classifier)
    return model


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(drawn(build("cifar:resnet20", CLASSES)).state_dict())


@pytest.mark.parametrize(
    "arch",
    ["torchvision:resnet34", "torchvision:mobilenet_v3_small", "torchvision:densenet121"],
)
def test_torchvision_models_are_recognised_by_their_weights(tmp_path: Path, arch: str) -> None:
    module = drawn(build(arch, CLASSES))
    model = load(tmp_path / "x.pth", module.state_dict())
    assert model.arch == arch
    assert any("recognised by its keys and shapes" in note for note in model.source.notes)
    assert torch.equal(logits_of(model.module, 64), logits_of(module, 64))


def test_an_unknown_network_says_what_is_missing(tmp_path: Path) -> None:
    weights = build("timm:convnext_tiny", CLASSES).state_dict()
    with pytest.raises(CheckpointError, match=r"does not tell enough.*Missing: --arch"):
        load(tmp_path / "x.pth", weights)
    assert load(tmp_path / "x.pth", weights, arch="timm:convnext_tiny").arch == "timm:convnext_tiny"


def test_a_missing_head_is_an_error(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    trunk = {k: v for k, v in weights.items() if not k.startswith("linear.")}
    with pytest.raises(CheckpointError, match=r"linear\.weight.*head is missing"):
        load(tmp_path / "x.pth", trunk, arch="cifar:resnet20")
    with pytest.raises(CheckpointError, match=r"Missing: the weights of a head"):
        load(
            tmp_path / "x.pth",
            {"arch": "cifar:resnet20", "state_dict": trunk} | {"cls_num_list": [9, 5, 1]},
        )


def test_a_missing_layer_is_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    del weights["layer2.1.conv2.weight"]
    with pytest.raises(CheckpointError, match=r"missing in the file \(layer2\.1\.conv2\.weight\)"):
        load(tmp_path / "x.pth", weights, arch="cifar:resnet20")


def test_a_smaller_architecture_does_not_swallow_a_larger_file(
    tmp_path: Path,
) -> None:
    """Every weight of ResNet-20 is in a ResNet-32 file: loading it would give another network."""
    weights = build("cifar:resnet32", CLASSES).state_dict()
    with pytest.raises(CheckpointError, match="not in the architecture"):
        load(tmp_path / "x.pth", weights, arch="cifar:resnet20")


def test_other_shapes_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    with pytest.raises(CheckpointError, match=r"\(16, 1, 3, 3\) in the file"):
        load(tmp_path / "x.pth", weights, arch="cifar:resnet20")


def test_weights_that_are_not_finite(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["layer1.0.conv1.weight"][0] = float("nan")
    with pytest.raises(CheckpointError, match=r"not finite.*layer1\.0\.conv1\.weight"):
        load(tmp_path / "x.pth", weights)


def test_a_head_without_bias_stays_without(tmp_path: Path) -> None:
    module = drawn(build("torchvision:resnet18", CLASSES))
    module.fc.register_parameter("bias", None)
    model = load(tmp_path / "x.pth", module.state_dict(), arch="torchvision:resnet18")
    assert model.head.bias is None
    assert torch.equal(logits_of(model.module, 64), logits_of(module, 64))


def test_head_scale_makes_a_bias_free_head_a_cosine_head(tmp_path: Path) -> None:
    module = drawn(build("torchvision:resnet18", CLASSES, head="cosine", scale=16.0))
    rows = module.state_dict()
    rows["fc.weight"] = rows["fc.weight"].t().contiguous()
    for weights in (module.state_dict(), rows):
        path = tmp_path / "x.pth"
        model = load(path, weights, arch="torchvision:resnet18", head_scale=16.0)
        assert (model.head.kind, model.head.scale) == ("cosine", 16.0)
        torch.testing.assert_close(logits_of(model.module, 64), logits_of(module, 64))


def test_head_scale_on_a_linear_head_is_said_to_do_nothing(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    model = load(tmp_path / "x.pth", weights, head_scale=30.0)
    assert model.head.kind == "linear"
    assert any("--head-scale has no effect" in note for note in model.source.notes)


def test_the_image_size_of_a_transformer_is_read_off_its_position_embedding(
    tmp_path: Path,
) -> None:
    module = drawn(build("timm:vit_tiny_patch16_224", CLASSES, image_size_px=64))
    model = load(tmp_path / "x.pth", module.state_dict(), arch="timm:vit_tiny_patch16_224")
    assert (model.preprocessing.height_px, model.preprocessing.resize_px) == (64, 70)
    assert torch.equal(logits_of(model.module, 64), logits_of(module, 64))


def test_auxiliary_heads_are_left_out(tmp_path: Path) -> None:
    full = drawn(torchvision.models.googlenet(num_classes=CLASSES, init_weights=True))
    model = load(tmp_path / "x.pth", full.state_dict(), arch="torchvision:googlenet")
    assert torch.equal(logits_of(model.module, 224), logits_of(full, 224))
    assert any("aux1" in note for note in model.source.notes)


def test_a_recorded_architecture_that_does_not_fit(tmp_path: Path) -> None:
    weights = build("torchvision:resnet18", CLASSES).state_dict()
    with pytest.raises(CheckpointError, match=r"records the architecture 'resnet34'.*Tried") as e:
        load(tmp_path / "x.pth", {"arch": "resnet34", "state_dict": weights})
    assert "head 'fc' 7 × 512" in str(e.value)
    assert "--arch FAMILY:NAME, --classes FILE" in str(e.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 0}, "--image-size is 0"),
        ({"image_size": 3.5}, "--image-size is 3.5"),
        ({"resize": "sqash"}, "Did you mean 'squash'"),
        ({"resize": -1}, "--resize is -1"),
        ({"resize": 256, "crop_pct": 0.9}, "same thing"),
        ({"crop_pct": 1.5}, "--crop-pct is 1.5"),
        ({"interpolation": "bicubci"}, "Did you mean 'bicubic'"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "positive"),
        ({"head_scale": 0.0}, "--head-scale is 0.0"),
        ({"head_scale": float("nan")}, "--head-scale is nan"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LoadOptions(**options)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (224, 224, "shorter", 256)),
        ({"image_size": 192}, (192, 192, "shorter", 219)),
        ({"image_size": 192, "resize": 200}, (192, 192, "shorter", 200)),
        ({"resize": "squash"}, (224, 224, "squash", None)),
        ({"resize": "none"}, (224, 224, "none", None)),
        ({"crop_pct": 0.95}, (224, 224, "shorter", 235)),
    ],
)
def test_preprocessing_changes(changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    base = Preprocessing(height_px=224, width_px=224, resize_px=256)
    p = adjust_preprocessing(base, changes)
    assert (p.height_px, p.width_px, p.resize_mode, p.resize_px) == expected


def test_options_change_what_the_architecture_brings(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    model = load(tmp_path / "x.pth", weights, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert model.preprocessing.height_px == 32


def test_a_size_that_the_network_does_not_run_on(tmp_path: Path) -> None:
    weights = build("timm:vit_tiny_patch16_224", CLASSES).state_dict()
    with pytest.raises(CheckpointError):
        load(tmp_path / "x.pth", weights, arch="timm:vit_tiny_patch16_224", image_size=50)


WHOLE = Preprocessing(height_px=96, width_px=96, resize_mode="none", mean=(0.5, 0.5, 0.5))


def test_a_whole_preprocessing_is_final_and_sizes_the_network(tmp_path: Path) -> None:
    module = drawn(build("timm:test_vit", CLASSES, image_size_px=96))
    model = load(tmp_path / "x.pth", module.state_dict(), arch="timm:test_vit", preprocessing=WHOLE)
    assert model.preprocessing == WHOLE
    assert torch.equal(logits_of(model.module, 96), logits_of(module, 96))
    assert not any("preprocessing" in note for note in model.source.notes)


@pytest.mark.parametrize("single", [{"image_size": 96}, {"resize": 100}, {"mean": (0, 0, 0)}])
def test_a_whole_preprocessing_stands_alone(single: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"beside it {next(iter(single))}"):
        LoadOptions(preprocessing=WHOLE, **single)
