"""What ``inspect`` reports, complete and partial, and on the real checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from model_samples import CLASSES, COUNTS, drawn

from ltdeploy.classes import ClassTable
from ltdeploy.errors import CheckpointError
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import Classifier, LoadOptions, load_checkpoint
from ltdeploy.models.inspection import inspect_checkpoint, rank_correlation


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, 12, elements=st.integers(-4, 4).map(float)),
    hnp.arrays(np.float64, 12, elements=st.integers(-4, 4).map(float)),
)
def test_rank_correlation_is_spearmans(a: np.ndarray, b: np.ndarray) -> None:
    from scipy.stats import spearmanr

    found = rank_correlation(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)


def write(path: Path, order: int) -> Path:
    """Write a checkpoint whose row norms rise (1), fall (-1) or do not follow (0) the counts."""
    module = drawn(build("cifar:resnet20", CLASSES))
    rows = torch.nn.functional.normalize(module.linear.weight.detach(), dim=1)
    norms = [1.0 + 0.1 * i for i in range(CLASSES)]
    norms = {1: norms[::-1], -1: norms, 0: [1.3, 1.0, 1.4, 1.2, 1.1, 1.5, 1.25]}[order]
    with torch.no_grad():
        module.linear.weight.copy_(rows * torch.tensor(norms)[:, None])
    torch.save({"state_dict": module.state_dict(), "cls_num_list": COUNTS, "loss": "bs"}, path)
    return path


def test_norms_that_follow_the_counts(tmp_path: Path) -> None:
    report = inspect_checkpoint(write(tmp_path / "x.pth", 1))
    assert report.is_complete
    assert report.head is not None
    assert report.head.norm_correlation == pytest.approx(1.0)
    assert (report.head.norm_min, report.head.norm_max) == pytest.approx((1.0, 1.6))
    assert "τ-norm can help" in report.advice[0]
    assert any("correct twice" in text for text in report.advice)
    assert report.preprocessing_from == "architecture"


@pytest.mark.parametrize(("order", "words"), [(-1, "fall with"), (0, "hardly follow")])
def test_norms_that_do_not(tmp_path: Path, order: int, words: str) -> None:
    report = inspect_checkpoint(write(tmp_path / "x.pth", order))
    assert words in report.advice[0]
    assert "logit adjustment" in report.advice[0]


def test_a_cosine_head_has_no_norms_to_level(tmp_path: Path) -> None:
    module = build("cifar:resnet32", CLASSES, head="cosine")
    data = {"epoch": 1, "arch": "resnet32", "best_acc1": 0.0, "state_dict": module.state_dict()}
    torch.save(data, tmp_path / "x.pth")
    report = inspect_checkpoint(tmp_path / "x.pth")
    assert "no norms that τ-norm could level" in report.advice[0]
    assert report.trained_with == "ldam"
    assert report.missing
    assert report.missing[0].startswith("--classes")


def test_an_unknown_network_is_reported_as_far_as_it_goes(tmp_path: Path) -> None:
    weights = {
        "trunk.a.weight": torch.zeros(8, 3, 3, 3),
        "head.fc.weight": torch.zeros(CLASSES, 8),
        "head.fc.bias": torch.zeros(CLASSES),
    }
    torch.save({"state_dict": weights, "arch": "my_net"}, tmp_path / "x.pth")
    report = inspect_checkpoint(tmp_path / "x.pth")
    assert report.arch is None
    assert report.head is not None
    assert (report.head.path, report.head.classes, report.head.features) == ("head.fc", CLASSES, 8)
    assert [text.split()[0] for text in report.missing] == ["--arch", "--classes"]
    assert any("'my_net'" in note for note in report.notes)
    assert json.loads(json.dumps(report.to_dict()))["arch"] is None
    with pytest.raises(CheckpointError, match="does not fit the architecture"):
        inspect_checkpoint(tmp_path / "x.pth", LoadOptions(arch="torchvision:resnet18"))


def test_json_keys_are_stable(tmp_path: Path) -> None:
    told = inspect_checkpoint(write(tmp_path / "x.pth", 1)).to_dict()
    assert list(told) == [
        "schema", "path", "layout", "arch", "tensors", "head", "classes", "class_names",
        "preprocessing", "preprocessing_text", "preprocessing_from", "trained_with", "advice",
        "notes", "missing",
    ]  # fmt: skip
    assert told["classes"]["groups"] == {"many": 2, "medium": 3, "few": 2}
    assert json.loads(json.dumps(told)) == told


def test_onnx_without_its_options(tmp_path: Path) -> None:
    from test_models_onnx import TOLD, graph

    path = tmp_path / "x.onnx"
    path.write_bytes(graph().SerializeToString())
    table = ClassTable.from_counts(COUNTS)
    report = inspect_checkpoint(path, LoadOptions(classes=table))
    assert report.head is not None
    assert report.head.norm_correlation is not None
    assert len(report.missing) == 3
    assert inspect_checkpoint(path, LoadOptions(classes=table, **TOLD)).is_complete


def test_the_real_checkpoint_needs_no_option(data_dir: Path) -> None:
    path = data_dir / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar"
    report = inspect_checkpoint(path)
    assert report.is_complete
    assert (report.layout, report.arch) == ("LDAM-DRW", "cifar:resnet20")
    assert report.classes is not None
    assert (report.classes.counts[0], report.classes.counts[-1]) == (500, 5)
    assert report.head is not None
    assert report.head.norm_correlation == pytest.approx(0.847, abs=0.01)


@pytest.mark.slow
def test_the_real_checkpoint_has_the_accuracy_of_its_readme(data_dir: Path) -> None:
    """28.34 % on all 10,000 test images."""
    import pyarrow.parquet as parquet

    from ltdeploy.images import load_prepared, normalise

    model = load_checkpoint(data_dir / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar")
    assert isinstance(model, Classifier)
    table = parquet.read_table(data_dir / "cifar100" / "test.parquet")
    encoded = [row["bytes"] for row in table["image"].to_pylist()]
    images = np.stack([load_prepared(content, model.preprocessing) for content in encoded])
    correct = 0
    labels = np.array(table["label"])
    for start in range(0, len(images), 500):
        batch = torch.from_numpy(normalise(images[start : start + 500], model.preprocessing))
        with torch.inference_mode():
            predicted = model.module(batch).argmax(1).numpy()
        correct += int((predicted == labels[start : start + 500]).sum())
    assert correct == 2834


def test_a_folder_without_preprocessing_lists_all_that_is_missing(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert found.head is not None
    assert found.head.classes == CLASSES
    assert [line.split()[0] for line in found.missing] == ["--image-size", "--classes"]
    told = LoadOptions(
        image_size=32, resize="squash", classes=ClassTable.from_counts([1] * CLASSES)
    )
    assert inspect_checkpoint(tmp_path, told).is_complete
