"""One small bundle for the tests of the house, exported as a user would."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of an untrained CIFAR ResNet-20 with a τ-normalised head. Read only."""
    import torch

    from ltdeploy.classes import ClassTable
    from ltdeploy.export import export_bundle
    from ltdeploy.fixes import FixSpec
    from ltdeploy.models.cifar_resnet import CifarResNet
    from ltdeploy.models.classifier import LoadOptions, load_checkpoint

    folder = tmp_path_factory.mktemp("house")
    torch.manual_seed(0)
    torch.save(CifarResNet(20, 10).state_dict(), folder / "moths.pt")
    names = tuple(f"moth {number}" for number in range(10))
    table = ClassTable(names, (500, 300, 200, 120, 80, 50, 30, 15, 8, 3))
    options = LoadOptions(arch="cifar:resnet20", classes=table)
    model = load_checkpoint(folder / "moths.pt", options=options)
    fixes = [FixSpec("tau_norm", {"tau": 0.7})]
    return export_bundle(model, fixes, folder / "moths.ltd").bundle.path
