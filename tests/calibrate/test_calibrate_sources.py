"""From a checkpoint and data sets to evidence; what trained the model must not choose its fix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import draw_photo, write_checkpoint

from ltdeploy.calibrate import (
    DataSources,
    calibrate,
    estimated_prior,
    evidence_of_checkpoint,
    prior_of_table,
)
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import FolderDataset
from ltdeploy.errors import DataError, FixError
from ltdeploy.fixes import FixContext
from ltdeploy.models.classifier import Classifier, load_checkpoint

TRAINED = [6, 4, 3, 2, 1, 1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """Return a network of six classes that knows its counts, and no data set."""
    path = tmp_path_factory.mktemp("model") / "ckpt.pt"
    return load_checkpoint(write_checkpoint(path, train_counts=TRAINED))  # type: ignore[return-value]


def photos(folder: Path, counts: Sequence[int], seed: int) -> FolderDataset:
    """Draw photographs of the model's classes, each different from all others of other seeds."""
    for label, count in enumerate(counts):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(count):
            photo = draw_photo(10_000 * seed + 100 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number:03d}.png")
    return FolderDataset(folder)


def copied(source: FolderDataset, to: FolderDataset, images: int) -> None:
    """Put images of one data set into the place of another's: same pixels, other names."""
    for index in range(images):
        Image.open(source.source(index)).save(to.source(len(to) - 1 - index))


def test_a_checkpoint_and_its_data_become_evidence(model: Classifier, tmp_path: Path) -> None:
    sources = DataSources(
        photos(tmp_path / "val", [3] * 6, 1),
        photos(tmp_path / "train", TRAINED, 2),
        photos(tmp_path / "target", [1, 1, 1, 1, 3, 3], 3),
    )
    heard: list[str] = []
    found = evidence_of_checkpoint(model, sources, cache=tmp_path / "cache", warn=heard.append)
    assert heard == []
    assert found.context.evidence() == {
        "head",
        "counts",
        "validation",
        "logits",
        "training",
        "target",
    }
    assert found.context.trained_with == "cross_entropy"
    assert found.checkpoint == ("ckpt.pt", model.source.sha256)
    assert found.hashes is not None
    assert len(set(found.hashes.tolist())) == 18
    assert found.context.head is not None
    assert found.context.features is not None
    head = found.context.head
    np.testing.assert_allclose(
        found.context.features @ head.weight.T + head.bias, found.logits, atol=1e-4
    )
    told = evidence_of_checkpoint(
        model, sources, cache=tmp_path / "cache", trained_with="balanced_softmax"
    )
    assert told.context.trained_with == "balanced_softmax"
    np.testing.assert_array_equal(told.logits, found.logits)
    json.dumps(calibrate(found).to_dict(), allow_nan=False)


def test_training_images_choose_no_fix(model: Classifier, tmp_path: Path) -> None:
    validation = photos(tmp_path / "val", [3] * 6, 1)
    training = photos(tmp_path / "train", TRAINED, 2)
    sources = DataSources(validation, training)
    evidence_of_checkpoint(model, sources)  # negative control: no image in common
    copied(validation, training, 2)
    with pytest.raises(DataError, match=r"2 of the 18 .* among train's .*val/species 0/000.png"):
        evidence_of_checkpoint(model, sources)
    alone = evidence_of_checkpoint(model, DataSources(validation))
    assert alone.hashes is not None
    knows = replace(model, train_hashes=alone.hashes[3:7])
    with pytest.raises(DataError, match=r"4 of the 18 .* among the checkpoint's own"):
        evidence_of_checkpoint(knows, DataSources(validation))
    others = replace(model, train_hashes=alone.hashes + np.uint64(1))
    assert len(evidence_of_checkpoint(others, DataSources(validation)).labels) == 18


def test_a_picture_that_stands_twice_in_a_collection_is_left_out(
    model: Classifier, tmp_path: Path
) -> None:
    validation = photos(tmp_path / "val", [17] * 6, 1)
    # An untrained model knows nothing of 102 images, which would be refused too.
    whole = evidence_of_checkpoint(model, DataSources(validation), force=True)
    assert whole.hashes is not None
    heard: list[str] = []
    knows = replace(model, train_hashes=whole.hashes[:1])
    found = evidence_of_checkpoint(knows, DataSources(validation), warn=heard.append, force=True)
    assert heard == [
        "1 of the 102 validation images of val stand among the checkpoint's own training images "
        "too, the first is val/species 0/000.png; they were left out"
    ]
    np.testing.assert_array_equal(found.logits, whole.logits[1:])
    np.testing.assert_array_equal(found.labels, whole.labels[1:])
    assert found.hashes is not None
    np.testing.assert_array_equal(found.hashes, whole.hashes[1:])
    two = replace(model, train_hashes=whole.hashes[:2])
    with pytest.raises(DataError, match="2 of the 102"):
        evidence_of_checkpoint(two, DataSources(validation))


def test_unreadable_images_are_named(model: Classifier, tmp_path: Path) -> None:
    validation = photos(tmp_path / "val", [2] * 6, 1)
    Path(validation.source(4)).write_bytes(b"no image")
    heard: list[str] = []
    for _ in range(2):  # the second time from the cache
        heard.clear()
        found = evidence_of_checkpoint(
            model, DataSources(validation), cache=tmp_path / "cache", warn=heard.append
        )
        assert found.labels.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
        assert "val/species 2/000.png" in heard[0]
        assert heard[-1] == "1 images of val were left out"


def test_target_priors_are_read_by_name() -> None:
    classes = ClassTable(("lynx", "cat", "dog"), (4, 500, 40))
    prior = prior_of_table(ClassTable(("cat", "lynx"), (30, 10)), classes)
    assert prior.tolist() == [0.25, 0.75, 0.0]
    unnamed = prior_of_table(ClassTable.from_counts([1, 1, 2]), classes)
    assert unnamed.tolist() == [0.25, 0.25, 0.5]
    with pytest.raises(DataError, match="the first is 'wolf'"):
        prior_of_table(ClassTable(("cat", "wolf"), (1, 1)), classes)
    with pytest.raises(DataError, match="has 2 classes and the model 3"):
        prior_of_table(ClassTable.from_counts([1, 1]), classes)


def test_the_prior_of_unlabelled_images_is_found() -> None:
    truth = np.array([0.05, 0.05, 0.1, 0.3, 0.5])
    table = ClassTable.from_counts([400, 100, 30, 8, 3])
    rng = np.random.default_rng(0)

    def logits_of(labels: np.ndarray) -> np.ndarray:
        noise = 1.6 * rng.normal(size=(len(labels), 5))
        return 2.4 * np.eye(5)[labels] + noise + np.log(table.prior())

    labels = np.arange(1000) % 5
    context = FixContext(
        classes=table,
        logits=logits_of(labels),
        labels=labels,
        target_logits=logits_of(rng.choice(5, size=1000, p=truth)),
    )
    found = estimated_prior(context)
    assert found.sum() == pytest.approx(1.0)
    assert np.abs(found - truth).sum() < 0.4 * np.abs(0.2 - truth).sum()
    unseen = labels != 4
    part = replace(context, logits=context.logits[unseen], labels=labels[unseen])  # type: ignore[index]
    with pytest.raises(FixError, match="no validation image"):
        estimated_prior(part)
