"""The head is found by watching the network run, whatever it is called and made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_samples import CLASSES, drawn, logits_of
from torch import nn

from ltdeploy.errors import CheckpointError
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import Classifier, LoadOptions, load_checkpoint
from ltdeploy.models.heads import find_head, fold_batch_norm, scale_head


@pytest.mark.parametrize(
    ("arch", "size", "path"),
    [
        ("cifar:resnet20", 32, "linear"),
        ("torchvision:resnet18", 64, "fc"),
        ("torchvision:mobilenet_v3_small", 64, "classifier.3"),
        ("torchvision:vgg11", 32, "classifier.6"),
        ("torchvision:swin_t", 64, "head"),
        ("timm:resnet18", 64, "fc"),
        ("timm:convnext_atto", 64, "head.fc"),
        ("timm:vit_tiny_patch16_224", 224, "head"),
        ("timm:mobilenetv3_small_050", 64, "classifier"),
        ("timm:resnetv2_50x1_bit", 64, "head.fc"),  # a 1×1 convolution on the pooled map
    ],
)
def test_heads_of_many_networks(arch: str, size: int, path: str) -> None:
    module = drawn(build(arch, CLASSES))
    head, found = find_head(module, size, size)
    layer = module.get_submodule(path)
    assert found == path
    assert head.foldable
    np.testing.assert_array_equal(head.weight, layer.weight.detach().double().flatten(1).numpy())
    assert head.bias is not None
    np.testing.assert_array_equal(head.bias, layer.bias.detach().double().numpy())


def test_a_cosine_head_comes_as_rows_per_class() -> None:
    module = build("cifar:resnet20", CLASSES, head="cosine", scale=12.0).eval()
    head, path = find_head(module, 32, 32)
    assert (head.kind, head.scale, path) == ("cosine", 12.0, "linear")
    assert head.weight.shape == (CLASSES, 64)


@pytest.mark.parametrize("arch", ["timm:deit_tiny_distilled_patch16_224", "timm:levit_128s"])
def test_two_averaged_heads_are_one_that_does_not_fold(arch: str) -> None:
    """The joint weight on the concatenated features reproduces the logits."""
    module = drawn(build(arch, CLASSES))
    head, _ = find_head(module, 224, 224)
    assert not head.foldable
    seen: list[np.ndarray] = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == CLASSES:
            layer.register_forward_hook(lambda _, x, __: seen.append(x[0].double().numpy()))
    logits = logits_of(module, 224)
    assert head.bias is not None
    again = np.concatenate(seen, axis=1) @ head.weight.T + head.bias
    np.testing.assert_allclose(again, logits.numpy(), rtol=1e-4, atol=1e-4)


def test_what_follows_the_head_makes_it_not_foldable() -> None:
    """SqueezeNet: 1×1 convolution, ReLU, pooling."""
    module = drawn(build("torchvision:squeezenet1_1", CLASSES))
    head, path = find_head(module, 64, 64)
    assert (path, head.foldable) == ("classifier.1", False)
    assert head.weight.shape == (CLASSES, 512)


class WithNorm(nn.Module):
    """A small network with a batch normalisation behind its head."""

    def __init__(self, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, CLASSES, bias=bias)
        self.norm = nn.BatchNorm1d(CLASSES, affine=affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(self.conv(x).mean((2, 3))))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalisation_behind_the_head_is_folded(affine: bool, bias: bool) -> None:
    module = drawn(WithNorm(affine, bias))
    before, raw = logits_of(module), module.fc.weight.detach().clone()
    with pytest.raises(CheckpointError, match="batch normalisation 'norm'"):
        find_head(module, 32, 32)
    assert fold_batch_norm(module, 32, 32) == "norm"
    torch.testing.assert_close(logits_of(module), before, rtol=1e-5, atol=1e-5)
    head, path = find_head(module, 32, 32)
    assert path == "fc"
    assert not np.allclose(head.norms(), torch.linalg.vector_norm(raw, dim=1).numpy())


def test_without_a_normalisation_nothing_is_folded() -> None:
    module = build("cifar:resnet20", 3).eval()
    before = logits_of(module)
    assert fold_batch_norm(module, 32, 32) is None
    assert torch.equal(logits_of(module), before)


def test_a_timm_head_with_normalisation_is_folded_on_loading(tmp_path: Path) -> None:
    """LeViT without distillation keeps BN *before* its linear layer: that one stays."""
    module = drawn(build("timm:levit_128s", CLASSES))
    torch.save(module.state_dict(), tmp_path / "x.pth")
    model = load_checkpoint(tmp_path / "x.pth", options=LoadOptions(arch="timm:levit_128s"))
    assert isinstance(model, Classifier)
    assert not any("folded into it" in note for note in model.source.notes)
    assert torch.equal(logits_of(model.module, 224), logits_of(module, 224))


class NoHead(nn.Module):
    """Output without any linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) ** 2


class Reparametrised(nn.Linear):
    """A linear layer whose weight is not what it multiplies by."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Two(nn.Module):
    """Two outputs."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_heads_that_cannot_be_used() -> None:
    with pytest.raises(CheckpointError, match="no linear layer that could be found"):
        find_head(NoHead().eval(), 32, 32)
    module = build("cifar:resnet20", 3).eval()
    module.linear = Reparametrised(64, 3)
    with pytest.raises(CheckpointError, match="not as W x \\+ b of its own weights"):
        find_head(module, 32, 32)
    with pytest.raises(CheckpointError, match="returns tuple"):
        find_head(Two(), 8, 8)
    with pytest.raises(CheckpointError, match="does not run on images of 2×2"):
        find_head(build("torchvision:vgg11", 3).eval().features, 2, 2)


def test_scaling_needs_one_factor_per_class() -> None:
    module = build("cifar:resnet20", 3).eval()
    with pytest.raises(CheckpointError, match="scales 4 logits"):
        scale_head(module, "linear", np.ones(4))
