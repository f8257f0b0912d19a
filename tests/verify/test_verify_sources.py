"""Every kind of source can be verified: what the exporter was told is in the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from samples import draw_photo

from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_dataset
from ltdeploy.export import export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.options import LoadOptions
from ltdeploy.verify import Verification, compare_models, verify_bundle

NAMES = [f"species {label}" for label in range(5)]
TABLE = ClassTable.from_counts([200, 90, 40, 10, 2], NAMES)
ADJUST = FixSpec("logit_adjustment", {"tau": 1.0})
TOLD = LoadOptions(classes=TABLE, resize="none", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn pictures of each of five classes."""
    folder = tmp_path_factory.mktemp("five") / "test"
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            draw_photo(100 * label + number, 32, 40).save(folder / name / f"{number}.png")
    return folder


def export_and_verify(source: Path, options: LoadOptions, photos: Path) -> Verification:
    """Export `source` with a fix beside itself and verify the bundle, told nothing more."""
    model = load_checkpoint(source, options=options)
    bundle = export_bundle(model, [ADJUST], source.parent / "a.ltd").bundle
    assert bundle.preprocessing == model.preprocessing
    return verify_bundle(bundle.path, open_dataset(str(photos)))


def onnx_file(path: Path, *, side: int | str) -> Path:
    """Write a small ONNX classifier: pooling and a linear head."""
    rng = np.random.default_rng(0)
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("Gemm", ["features", "w", "b"], ["logits"], name="head"),
        ],
        "foreign",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 5])],
        [
            numpy_helper.from_array(rng.normal(size=(3, 5)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.normal(size=5).astype(np.float32), "b"),
        ],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def test_an_onnx_file(tmp_path: Path, photos: Path) -> None:
    source = onnx_file(tmp_path / "foreign.onnx", side=16)
    done = export_and_verify(source, TOLD, photos)
    assert (done.result.verdict, done.result.images) == ("pass", 10)
    again = compare_models(source, source, open_dataset(str(photos)), options=TOLD)
    assert again.result.verdict == "pass"


def test_an_onnx_file_that_takes_any_size(tmp_path: Path, photos: Path) -> None:
    options = LoadOptions(
        classes=TABLE, image_size=24, resize=28, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    done = export_and_verify(onnx_file(tmp_path / "any.onnx", side="side"), options, photos)
    assert done.result.verdict == "pass"


@pytest.mark.parametrize("told", [True, False], ids=["preprocessor", "no preprocessor"])
def test_a_hugging_face_folder(tmp_path: Path, photos: Path, told: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    options = LoadOptions(classes=TABLE, image_size=32, resize=36)
    if told:
        size = {"height": 32, "width": 32}
        record = {"do_resize": True, "size": size, "resample": 2, "image_mean": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(record))
        options = LoadOptions(classes=TABLE)
    done = export_and_verify(folder, options, photos)
    assert done.result.verdict == "pass"


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("timm:test_vit", 96),  # another position embedding
        ("timm:test_resnet", 64),
        ("torchvision:resnet18", 64),
    ],
)
def test_an_image_size_of_ones_own(tmp_path: Path, photos: Path, arch: str, size: int) -> None:
    torch.manual_seed(0)
    source = tmp_path / "weights.pth"
    torch.save(build(arch, 5, image_size_px=size).state_dict(), source)
    options = LoadOptions(arch=arch, classes=TABLE, image_size=size)
    done = export_and_verify(source, options, photos)
    assert done.result.verdict == "pass"
