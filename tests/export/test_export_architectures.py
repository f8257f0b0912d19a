"""Every family of architectures exports, folds and answers as its reference does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ltdeploy.classes import ClassTable
from ltdeploy.engines import open_engine
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.export import export_bundle
from ltdeploy.export.checks import relative_difference
from ltdeploy.fixes import FixSpec
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.options import LoadOptions

pytestmark = pytest.mark.slow

CLASSES = 7
TABLE = ClassTable.from_counts([400, 150, 60, 30, 12, 5, 1])
TAU = FixSpec("tau_norm", {"tau": 0.7})
ADJUST = FixSpec("logit_adjustment", {"tau": 1.0})

# Architecture, image size to build it for (None: its own), and how the fix goes in.
FAMILIES = [
    ("torchvision:resnet18", None, "weights"),
    ("torchvision:mobilenet_v3_small", None, "weights"),
    ("torchvision:squeezenet1_1", None, "nodes"),  # a ReLU stands behind its last convolution
    ("timm:mobilenetv3_small_050", None, "weights"),
    ("timm:convnext_atto", None, "weights"),
    ("timm:vit_tiny_patch16_224", 64, "weights"),
    ("timm:deit_tiny_distilled_patch16_224", 64, "nodes"),  # averages two heads
    ("timm:efficientnet_lite0", None, "weights"),
    ("cifar:resnet32", None, "weights"),
]


def assert_exports(path: Path, options: LoadOptions, folder: Path, folded: str) -> None:
    """Export with and without fixes; compare with the unfused reference on new images."""
    model = load_checkpoint(path, options=options)
    specs = [TAU, ADJUST] if model.head.foldable else [ADJUST]
    plain = export_bundle(model, [], folder / "plain.ltd").bundle
    fixed = export_bundle(model, specs, folder / "fixed.ltd").bundle
    assert fixed.manifest.fix.folded == folded
    added = fixed.manifest.graphs[0].nodes - plain.manifest.graphs[0].nodes
    assert added == 0 if folded == "weights" else 0 < added <= 2
    size = (model.preprocessing.height_px, model.preprocessing.width_px, 3)
    images = np.random.default_rng(0).integers(0, 256, size=(3, *size), dtype=np.uint8)
    base = reference_engine(model).run({"images": images})["logits"]
    expected = fixed.manifest.fix.logit_map().apply(base)
    found = open_engine(fixed).run({"images": images})["logits"]
    assert relative_difference(expected, found) <= 1e-4


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
