"""Architectures by name: they build, run, and come with their library's own preprocessing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ltdeploy.errors import CheckpointError, UsageError
from ltdeploy.models.architectures import build, check_arch, default_preprocessing, known_names
from ltdeploy.models.cosine_head import CosineHead


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("cifar:resnet20", 32),
        ("timm:resnet18", 64),
        ("timm:vit_tiny_patch16_224", 224),
        ("torchvision:mobilenet_v3_small", 64),
        ("torchvision:googlenet", 96),
        ("bbn:cifar-resnet32", 32),
    ],
)
def test_builds_and_runs(arch: str, size: int) -> None:
    module = build(arch, 5).eval()
    with torch.inference_mode():
        assert module(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_parameters_of_the_paper(depth: int, millions: float) -> None:
    """He et al. 2015, Table 6."""
    module = build(f"cifar:resnet{depth}", 10)
    count = sum(p.numel() for p in module.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.03)


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros() -> None:
    block = build("cifar:resnet20", 3).get_submodule("layer2.0").eval()
    for bn in (block.bn1, block.bn2):
        torch.nn.init.zeros_(bn.weight)  # the convolutions' path gives 0, the shortcut remains
    x = torch.rand(1, 16, 8, 8)
    with torch.inference_mode():
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_cosine_head_gives_scaled_cosines() -> None:
    head = CosineHead(4, 3, scale=30.0)
    x = torch.randn(5, 4)
    expected = 30 * functional.cosine_similarity(x[:, None], head.weight.T[None], dim=2)
    torch.testing.assert_close(head(x), expected)
    assert "scale" not in head.state_dict()


@pytest.mark.parametrize("arch", ["cifar:resnet32", "timm:resnet18", "torchvision:resnet18"])
def test_any_architecture_can_have_a_cosine_head(arch: str) -> None:
    module = build(arch, 4, head="cosine", scale=16.0).eval()
    with torch.inference_mode():
        logits = module(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 4)
    assert logits.abs().max() <= 16.0


def test_transformers_are_built_for_the_image_size() -> None:
    module = build("timm:vit_tiny_patch16_224", 4, image_size_px=64).eval()
    with torch.inference_mode():
        assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    build("timm:resnet18", 4, image_size_px=64)  # takes no size and needs none


@pytest.mark.parametrize(
    ("arch", "hint"),
    [
        ("resnet50", "Did you mean 'torchvision:resnet50' or 'timm:resnet50'?"),
        ("timm:resnet5o", "Did you mean 'resnet50'?"),
        ("torchvision:vit_tiny_patch16_224", "'timm:vit_tiny_patch16_224'"),
        ("tim:resnet50", "Did you mean 'timm'?"),
        ("cifar:resnet21", "Did you mean"),
        ("torchvision:fcn_resnet50", "no classification model"),
        ("hf:/nowhere", "config.json"),
        ("timm:", "FAMILY:NAME"),
    ],
)
def test_unknown_names_get_a_hint(arch: str, hint: str) -> None:
    with pytest.raises(UsageError, match=r"architecture|classification") as caught:
        check_arch(arch)
    assert hint in str(caught.value)


def test_no_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="0 classes"):
        build("cifar:resnet20", 0)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("torchvision:resnet18", (224, "shorter", 256, "bilinear")),
        ("torchvision:resnet50", (224, "shorter", 232, "bilinear")),
        ("torchvision:efficientnet_b0", (224, "shorter", 256, "bicubic")),
        ("torchvision:inception_v3", (299, "shorter", 342, "bilinear")),
        ("timm:resnet50", (224, "shorter", 235, "bicubic")),
        ("timm:vit_base_patch16_224", (224, "shorter", 248, "bicubic")),
        ("timm:convnextv2_huge", (384, "squash", None, "bicubic")),
        ("cifar:resnet32", (32, "none", None, "bicubic")),
        ("bbn:cifar-resnet32", (32, "none", None, "bicubic")),
    ],
)
def test_preprocessing_is_the_librarys(arch: str, expected: tuple[object, ...]) -> None:
    p = default_preprocessing(arch)
    assert (p.height_px, p.resize_mode, p.resize_px, p.interpolation) == expected


def test_the_tag_of_timm_weights_decides_the_preprocessing() -> None:
    assert default_preprocessing("timm:resnet50.tv_in1k").resize_px == 256
    assert default_preprocessing("timm:resnet50").resize_px == 235


def test_preprocessing_that_cannot_be_reproduced_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"border.*--image-size"):
        default_preprocessing("timm:deepseek_vit_412m")


def test_every_torchvision_classifier_has_a_preprocessing() -> None:
    for name in known_names("torchvision"):
        assert default_preprocessing(f"torchvision:{name}").height_px >= 224
