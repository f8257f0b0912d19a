"""Every family of architectures exports, folds and answers as its reference does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ltdeploy.classes import ClassTable
from ltdeploy.engines import open_engine
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.export import export_bundle
from ltdeploy.export.checks import relative_difference
from ltdeploy.export.fold import folded
from ltdeploy.fixes import FixSpec
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import Classifier, load_checkpoint
from ltdeploy.models.options import LoadOptions

pytestmark = pytest.mark.slow

CLASSES = 7
TABLE = ClassTable.from_counts([400, 150, 60, 30, 12, 5, 1])
TAU = FixSpec("tau_norm", {"tau": 0.7})
ADJUST = FixSpec("logit_adjustment", {"tau": 1.0})

# Architecture, image size to build it for (None: its own), and how the fix goes in. timm's test
# models are the smallest of their families: the code is the same, and tracing takes seconds.
FAMILIES = [
    ("torchvision:resnet18", 64, "weights"),
    ("torchvision:mobilenet_v3_small", 64, "weights"),
    ("torchvision:squeezenet1_1", 64, "nodes"),  # a ReLU stands behind its last convolution
    ("timm:mobilenetv3_small_050", 64, "weights"),
    ("timm:test_convnext", None, "weights"),
    ("timm:test_efficientnet", None, "weights"),
    ("timm:test_vit", None, "weights"),
    ("timm:deit_tiny_distilled_patch16_224", 32, "nodes"),  # averages two heads
]


def assert_exports(path: Path, options: LoadOptions, folder: Path, how: str) -> None:
    """Export with fixes; compare with the unfused reference on new images."""
    model = load_checkpoint(path, options=options)
    assert isinstance(model, Classifier)
    specs = [TAU, ADJUST] if model.head.foldable else [ADJUST]
    fixed = export_bundle(model, specs, folder / "fixed.ltd").bundle
    assert fixed.manifest.fix.folded == how
    fix = fixed.manifest.fix.logit_map()
    before = shapes_of(model.module)
    with folded(model, fix) as (module, _):
        alike = shapes_of(module) == before
    assert alike == (how == "weights")  # the same layers: the same nodes
    size = (model.preprocessing.height_px, model.preprocessing.width_px, 3)
    images = np.random.default_rng(0).integers(0, 256, size=(3, *size), dtype=np.uint8)
    base = reference_engine(model).run({"images": images})["logits"]
    found = open_engine(fixed).run({"images": images})["logits"]
    assert relative_difference(fix.apply(base), found) <= 1e-4


def shapes_of(module: nn.Module) -> list[tuple[str, list[torch.Size]]]:
    """Return each layer's kind with the shapes of its own parameters."""
    return [
        (type(layer).__name__, [value.shape for value in layer.parameters(recurse=False)])
        for layer in module.modules()
    ]


@pytest.mark.parametrize(("arch", "size_px", "folded"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_a_family_exports(arch: str, size_px: int | None, folded: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(arch, CLASSES, image_size_px=size_px)
    torch.save(module.state_dict(), tmp_path / "ckpt.pt")
    options = LoadOptions(arch=arch, classes=TABLE, image_size=size_px)
    assert_exports(tmp_path / "ckpt.pt", options, tmp_path, folded)


def test_a_hugging_face_folder_exports(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
    )
    folder = tmp_path / "vit"
    ViTForImageClassification(config).save_pretrained(folder)
    preparation = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    assert_exports(folder, LoadOptions(classes=TABLE), tmp_path, "weights")
