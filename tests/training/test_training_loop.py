"""Training: it learns, repeats itself, refuses what cannot work, and writes whole checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from ltdeploy.datasets import Dataset
from ltdeploy.datasets.species import SIZE_PX, SPECIES, SpeciesDataset, split_counts
from ltdeploy.errors import CheckpointError, DataError, UsageError
from ltdeploy.images import ImageSource, Preprocessing

torch = pytest.importorskip("torch")

from ltdeploy.models.architectures import build, check_arch  # noqa: E402
from ltdeploy.training import (  # noqa: E402
    QUICKSTART,
    QUICKSTART_ARCH,
    QUICKSTART_PREPROCESSING,
    TrainOptions,
    train,
)
from ltdeploy.training.batches import TrainImages, crop_and_flip  # noqa: E402
from ltdeploy.training.loop import learning_rate  # noqa: E402

T = TypeVar("T")
SMALL = Preprocessing(height_px=16, width_px=16)
ARCH = "cifar:resnet20"


class Stripes(Dataset):
    """Upright stripes, level stripes and plain gray, with noise: easy to tell apart."""

    def __init__(self, counts: tuple[int, ...] = (24, 16, 8), broken: frozenset[int] = frozenset()):
        labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        super().__init__("stripes", ("upright", "level", "plain")[: len(counts)], labels)
        self.broken = broken

    def source(self, index: int) -> ImageSource:
        if index in self.broken:
            return b"not an image"
        random = np.random.default_rng(index)
        waves = 60 * np.sin(np.arange(16) * 1.5)
        pattern = (waves[None, :], waves[:, None], np.zeros((16, 16)))[self.labels[index]]
        image = (
            128 + np.broadcast_to(pattern, (16, 16))[..., None] + random.normal(0, 8, (16, 16, 3))
        )
        return np.clip(image, 0, 255).astype(np.uint8)

    def identifier(self, index: int) -> str:
        return f"stripes#{index}"


def fit(out: Path, dataset: Dataset | None = None, **changes: Any) -> Any:
    options = TrainOptions(**({"epochs": 6, "batch_size": 16, "learning_rate": 0.05} | changes))
    return train(dataset or Stripes(), ARCH, options, out, preprocessing=SMALL)


def test_it_learns_and_the_checkpoint_says_all(tmp_path: Path) -> None:
    shown: list[tuple[str, int | None, int]] = []

    def tracker(items: Iterable[T], *, total: int | None, label: str) -> Iterable[T]:
        shown.append((label, total, 0))
        for item in items:
            yield item
            shown[-1] = (label, total, shown[-1][2] + 1)

    dataset = Stripes()
    options = TrainOptions(epochs=8, batch_size=16, learning_rate=0.05, seed=3)
    path = tmp_path / "deep" / "ckpt.pt"
    result = train(dataset, ARCH, options, path, preprocessing=SMALL, tracker=tracker)
    assert result.path == path
    assert len(result.losses) == 8
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert result.accuracy > 80
    assert result.unreadable == ()
    assert shown[-1] == (f"Training {ARCH}", 24, 24)

    saved = torch.load(path, weights_only=True)
    told = saved["ltdeploy"]
    assert told["schema"] == 1
    assert told["arch"] == ARCH
    assert told["class_names"] == ["upright", "level", "plain"]
    assert told["train_counts"] == [24, 16, 8]
    assert Preprocessing.from_dict(told["preprocessing"]) == SMALL
    assert (told["trained_with"], told["epochs"], told["seed"]) == ("cross_entropy", 8, 3)
    assert (told["train_data"]["name"], told["train_data"]["images"]) == ("stripes", 48)
    assert len(told["train_data"]["hashes"]) == 48
    build(ARCH, 3).load_state_dict(saved["state_dict"], strict=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["ckpt.pt"]


def test_ltdeploy_loads_what_it_trained(tmp_path: Path) -> None:
    from ltdeploy.models.classifier import load_checkpoint

    fit(tmp_path / "ckpt.pt", epochs=1)
    model = load_checkpoint(tmp_path / "ckpt.pt")
    assert model.arch == ARCH
    assert model.classes is not None
    assert model.classes.counts == (24, 16, 8)
    assert model.preprocessing == SMALL
    assert model.trained_with == "cross_entropy"


def test_a_seed_repeats_a_training_and_another_does_not(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = fit(tmp_path / "a.pt", epochs=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(12)
    again = fit(tmp_path / "b.pt", epochs=2)
    other = fit(tmp_path / "c.pt", epochs=2, seed=1)
    assert first.losses == again.losses != other.losses
    weights = [torch.load(tmp_path / f"{n}.pt", weights_only=True)["state_dict"] for n in "abc"]
    same = [torch.equal(weights[0][k], weights[1][k]) for k in weights[0]]
    assert all(same)
    assert not all(torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
def test_unreadable_images_are_named_and_left_out(memory_bytes: int) -> None:
    dataset = Stripes((6, 6), broken=frozenset({2, 9}))
    images = TrainImages(dataset, SMALL, memory_bytes=memory_bytes)
    random = np.random.default_rng(0)
    list(images.deal(random, 4))
    assert {name for name, _ in images.unreadable} == {"stripes#2", "stripes#9"}
    dealt = np.concatenate([batch.indices for batch in images.deal(random, 5)])
    assert sorted(dealt) == [0, 1, 3, 4, 5, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
def test_batches_hold_the_images_that_they_name(memory_bytes: int) -> None:
    dataset = Stripes()
    images = TrainImages(dataset, SMALL, memory_bytes=memory_bytes)
    batches = list(images.deal(np.random.default_rng(5), 10))
    assert [len(batch.labels) for batch in batches] == [10, 10, 10, 10]
    for batch in batches:
        assert np.array_equal(batch.labels, dataset.labels[batch.indices])
        assert np.array_equal(batch.images[3], dataset.source(int(batch.indices[3])))
    orders = [batches[0].indices, next(iter(images.deal(np.random.default_rng(6), 10))).indices]
    assert not np.array_equal(*orders)


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
def test_a_training_with_unreadable_images_goes_on_and_does_not_count_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    keeping = partial(TrainImages, memory_bytes=memory_bytes)
    monkeypatch.setattr("ltdeploy.training.loop.TrainImages", keeping)
    broken = frozenset({2, *range(8, 12)})
    result = fit(tmp_path / "x.pt", Stripes((6, 2, 4), broken), epochs=1, batch_size=4)
    assert {name for name, _ in result.unreadable} == {f"stripes#{index}" for index in broken}
    assert result.classes.counts == (5, 2, 0)
    told = torch.load(tmp_path / "x.pt", weights_only=True)["ltdeploy"]
    assert told["train_counts"] == [5, 2, 0]
    assert (told["train_data"]["name"], told["train_data"]["images"]) == ("stripes", 7)
    assert len(told["train_data"]["hashes"]) == 7


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
def test_no_readable_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    keeping = partial(TrainImages, memory_bytes=memory_bytes)
    monkeypatch.setattr("ltdeploy.training.loop.TrainImages", keeping)
    with pytest.raises(DataError, match="None of the 4 images of stripes"):
        fit(tmp_path / "x.pt", Stripes((2, 2), broken=frozenset(range(4))))
    assert not (tmp_path / "x.pt").exists()


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one class, 'upright'"):
        fit(tmp_path / "x.pt", Stripes((4,)))


def test_a_loss_that_explodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"learning rate 1e\+30 is too high"):
        fit(tmp_path / "x.pt", learning_rate=1e30)
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"padding": 0.5},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_named(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(UsageError, match=f"{name} is .*expected"):
        TrainOptions(**changes)


def test_an_old_checkpoint_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"the old one")

    def full_disk(content: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        fit(path, epochs=1)
    assert path.read_bytes() == b"the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


def test_an_impossible_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        fit(tmp_path / "file" / "x.pt", epochs=1)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    options = TrainOptions(learning_rate=0.2, warmup=0.1)
    rates = [learning_rate(step, 200, options) for step in range(200)]
    assert np.argmax(rates) in (19, 20)
    assert max(rates) == pytest.approx(0.2)
    assert (np.diff(rates[:20]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] < 0.001


def test_augmentation_moves_and_mirrors_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 12, 12, 3), dtype=np.uint8)
    moved = crop_and_flip(images, np.random.default_rng(1), 2)
    assert moved.shape == images.shape
    assert np.array_equal(moved, crop_and_flip(images, np.random.default_rng(1), 2))
    still = crop_and_flip(images, np.random.default_rng(1), 0)
    flipped = np.array([np.array_equal(a[:, ::-1], b) for a, b in zip(images, still, strict=True)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(images, still, strict=True)])
    assert (flipped ^ kept).all()
    assert 16 < flipped.sum() < 48


def test_quickstart_is_trainable_as_it_stands() -> None:
    check_arch(QUICKSTART_ARCH)
    assert QUICKSTART_PREPROCESSING.height_px <= SIZE_PX
    assert QUICKSTART.seed == 0


@pytest.mark.slow
def test_the_drawn_species_leave_a_tail_to_win_back(tmp_path: Path) -> None:
    """Train a third of quickstart: the gap is there, and a known prior closes part of it."""
    from dataclasses import replace

    from ltdeploy.datasets import Loader
    from ltdeploy.images import normalise

    path = tmp_path / "q.pt"
    options = replace(QUICKSTART, epochs=max(1, QUICKSTART.epochs // 3))
    size = replace(QUICKSTART_PREPROCESSING, height_px=48, width_px=48)
    train(SpeciesDataset("train"), QUICKSTART_ARCH, options, path, preprocessing=size)
    module = build(QUICKSTART_ARCH, len(SPECIES)).eval()
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    dataset = SpeciesDataset("val")
    with torch.no_grad():
        logits = np.concatenate(
            [
                module(torch.from_numpy(normalise(batch.images, size))).numpy()
                for batch in Loader(dataset, dataset.labels, size, 112)
            ]
        )
    counts = split_counts("train")
    many, few = counts > 100, counts < 20

    def accuracy(z: np.ndarray, group: np.ndarray) -> float:
        right = z.argmax(axis=1) == dataset.labels
        return float(100 * right[group[dataset.labels]].mean())

    adjusted = logits - np.log(counts / counts.sum())
    assert accuracy(logits, many) - accuracy(logits, few) > 15
    assert accuracy(adjusted, few) - accuracy(logits, few) > 8
