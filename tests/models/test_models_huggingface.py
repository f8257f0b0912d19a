"""Hugging Face folders, saved by transformers itself, loaded back without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_samples import drawn

from ltdeploy.classes import ClassTable
from ltdeploy.errors import CheckpointError
from ltdeploy.models.classifier import Classifier, LoadOptions, load_checkpoint
from ltdeploy.models.huggingface import folder_preprocessing

transformers = pytest.importorskip("transformers")

NAMES = ["moth", "wasp", "lynx", "newt"]
TABLE = ClassTable.from_counts([100, 40, 9, 2], NAMES)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, tuple[dict[str, Any], int, str, bool]] = {
    "ViT": (SMALL | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}, 32,
            "network.classifier", True),
    "DeiT": (SMALL | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}, 32,
             "network.classifier", True),
    "Swin": ({"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
              "image_size": 32, "patch_size": 4}, 32, "network.classifier", True),
    "ConvNext": ({"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}, 64,
                 "network.classifier", True),
    "ResNet": ({"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}, 64,
               "network.classifier.1", True),
    "MobileNetV2": ({"depth_multiplier": 0.35}, 64, "network.classifier", True),
}  # fmt: skip


def save(folder: Path, kind: str, size: int, **config: Any) -> torch.nn.Module:
    labels = dict(enumerate(NAMES))
    configured = getattr(transformers, f"{kind}Config")(id2label=labels, **config)
    module = drawn(getattr(transformers, f"{kind}ForImageClassification")(configured))
    module.save_pretrained(folder)
    told = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return module


@pytest.mark.parametrize("kind", list(KINDS))
def test_folders_load_back(tmp_path: Path, kind: str) -> None:
    config, size, path, foldable = KINDS[kind]
    module = save(tmp_path, kind, size, **config)
    model = load_checkpoint(tmp_path, options=LoadOptions(classes=TABLE))
    assert isinstance(model, Classifier)
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(model.module(images), module(pixel_values=images).logits)
    assert (model.head_path, model.head.foldable) == (path, foldable)
    assert model.source.class_names == tuple(NAMES)
    assert model.arch == f"hf:{kind.lower()}".replace("mobilenetv2", "mobilenet_v2")
    assert (model.preprocessing.height_px, model.preprocessing.resize_mode) == (size, "squash")


def test_a_folder_with_a_bin_file(tmp_path: Path) -> None:
    config, size, _, _ = KINDS["ResNet"]
    module = save(tmp_path, "ResNet", size, **config)
    (tmp_path / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    model = load_checkpoint(tmp_path)
    assert isinstance(model, Classifier)
    assert model.classes is None


def test_a_folder_in_shards(tmp_path: Path) -> None:
    config, size, _, _ = KINDS["ViT"]
    module = save(tmp_path, "ViT", size, **config)
    (tmp_path / "model.safetensors").unlink()
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load_checkpoint(tmp_path)
    images = torch.randn(1, 3, size, size)
    assert isinstance(model, Classifier)
    with torch.inference_mode():
        assert torch.equal(model.module(images), module(pixel_values=images).logits)


def test_a_training_checkpoint_of_a_folders_architecture(tmp_path: Path) -> None:
    config, size, _, _ = KINDS["ViT"]
    module = save(tmp_path, "ViT", size, **config)
    wrapped = torch.nn.DataParallel(module).state_dict()
    torch.save({"state_dict": wrapped}, tmp_path / "epoch_3.pt")
    options = LoadOptions(arch=f"hf:{tmp_path}", classes=TABLE)
    model = load_checkpoint(tmp_path / "epoch_3.pt", options=options)
    images = torch.randn(1, 3, size, size)
    assert isinstance(model, Classifier)
    with torch.inference_mode():
        assert torch.equal(model.module(images), module(pixel_values=images).logits)


def test_a_folder_without_a_trained_head(tmp_path: Path) -> None:
    """transformers itself would start the head at random values and warn."""
    config, size, _, _ = KINDS["ViT"]
    module = save(tmp_path, "ViT", size, **config)
    weights = {k: v for k, v in module.state_dict().items() if not k.startswith("classifier.")}
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"missing in the file \(classifier\.bias"):
        load_checkpoint(tmp_path)


def test_a_folder_without_weights_or_with_a_foreign_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(CheckpointError, match="no weights"):
        load_checkpoint(tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="not an image classifier"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_checkpoint(tmp_path)


def test_names_in_another_order_than_the_folders(tmp_path: Path) -> None:
    config, size, _, _ = KINDS["ResNet"]
    save(tmp_path, "ResNet", size, **config)
    turned = ClassTable(TABLE.names[::-1], TABLE.counts)
    with pytest.raises(CheckpointError, match="another order"):
        load_checkpoint(tmp_path, options=LoadOptions(classes=turned))


PROCESSORS = {
    "ViTImageProcessor": {},
    "BitImageProcessor": {},
    "DeiTImageProcessor": {},
    "ConvNextImageProcessor": {},
    "MobileNetV2ImageProcessor": {},
    "MobileNetV1ImageProcessor": {},
}


@pytest.mark.parametrize("kind", list(PROCESSORS))
@pytest.mark.parametrize("shape", [(90, 120), (300, 257), (224, 224)])
def test_preprocessing_is_what_transformers_does(
    tmp_path: Path, kind: str, shape: tuple[int, int]
) -> None:
    """The processor's own output against ours, on noise: at most one step of 255 apart."""
    from PIL import Image

    from ltdeploy.images import normalise, prepare

    pillow = getattr(transformers, f"{kind}Pil", None)
    processor = (pillow or getattr(transformers, kind))(**PROCESSORS[kind])
    processor.save_pretrained(tmp_path)
    preprocessing = folder_preprocessing(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = processor(images=image, return_tensors="np")["pixel_values"]
    ours = normalise(prepare(image, preprocessing)[None], preprocessing)
    assert ours.shape == theirs.shape
    step = 1.01 / 255 / min(preprocessing.std)
    assert np.abs(ours - theirs).max() <= step


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"include_top": True}, "include_top"),
        ({"resample": 9}, "resample"),
        ({"size": {"shortest_edge": 224}}, "without a centre crop"),
        ({"size": {"longest_edge": 224}}, "size"),
        ({"do_resize": False}, "do_resize"),
    ],
)
def test_preprocessing_that_is_not_reproduced(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    base = {"size": {"height": 224, "width": 224}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(base | told))
    with pytest.raises(CheckpointError, match=said):
        folder_preprocessing(tmp_path)


def test_no_preprocessor_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json.*--image-size"):
        folder_preprocessing(tmp_path)
