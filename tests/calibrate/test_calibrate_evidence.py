"""Arrays from anywhere: what is read, and what is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltdeploy.calibrate import measure_lean, read_npz
from ltdeploy.classes import ClassTable
from ltdeploy.errors import DataError, UsageError

COUNTS = np.array([400, 120, 40, 10, 3])


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "logits": rng.normal(size=(20, 5)).astype(np.float32),
        "labels": np.arange(20) % 5,
        "counts": COUNTS,
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays(**changes))
    return path


def test_the_three_arrays_are_enough(tmp_path: Path) -> None:
    evidence = read_npz(written(tmp_path))
    assert evidence.logits.shape == (20, 5)
    assert evidence.labels.dtype == np.int64
    assert evidence.classes.counts == tuple(COUNTS)
    assert evidence.context.head is None


def test_everything_that_may_be_given_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight, features = rng.normal(size=(5, 3)), rng.normal(size=(20, 3))
    path = written(
        tmp_path,
        names=np.array(["a", "b", "c", "d", "e"]),
        logits=(features @ weight.T).astype(np.float16),
        features=features,
        weight=weight,
        bias=np.zeros(5),
        train_features=rng.normal(size=(int(COUNTS.sum()), 3)),
        train_labels=np.repeat(np.arange(5), COUNTS),
        target_logits=rng.normal(size=(7, 5)),
        trained_with=np.array("cross_entropy"),
    )
    context = read_npz(path).context
    assert context.evidence() == {"head", "counts", "validation", "logits", "training", "target"}
    assert context.trained_with == "cross_entropy"
    assert context.classes is not None
    assert context.classes.names[4] == "e"
    assert context.logits is not None
    assert context.logits.dtype == np.float32  # halves could not hold every fix's answer


LOGITS = np.zeros((20, 5))
SWAPPED = np.repeat(np.arange(5), COUNTS[::-1])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"counts": None}, r"lacks counts; it holds logits, labels"),
        ({"logit": LOGITS}, "Did you mean 'logits'"),
        ({"labels": np.arange(20) % 6}, r"3 labels outside 0\.\.4, the first is 5 in row 5"),
        ({"labels": np.arange(20) % 5 + 1}, "start at 1 must be lowered"),
        ({"labels": np.arange(19) % 5}, r"shape \(19,\)"),
        ({"labels": (np.arange(20) % 5) + 0.5}, "20 whole numbers"),
        ({"labels": np.eye(5, dtype=int)[np.arange(20) % 5]}, r"as labels\.argmax\(axis=1\)"),
        ({"logits": np.zeros((5, 20))}, r"20 columns .* transposed: give its \.T"),
        ({"labels": np.zeros(20, dtype=int)}, "20 images of 1 class"),
        ({"logits": LOGITS[:1], "labels": np.zeros(1, dtype=int)}, "1 images of 1 class"),
        ({"logits": np.zeros((20, 4))}, "4 columns and there are 5 training counts"),
        ({"logits": np.zeros((20, 5), dtype=int)}, "floating point"),
        ({"logits": np.where(np.arange(100).reshape(20, 5) == 42, np.nan, 0.0)}, "row 8 has nan"),
        ({"logits": np.where(np.arange(100).reshape(20, 5) == 42, np.inf, 0.0)}, "class 2"),
        ({"counts": COUNTS - 3.5}, "one whole number per class"),
        ({"counts": COUNTS * 1e300}, "one whole number per class"),
        ({"counts": COUNTS * 0}, "All training counts are zero"),
        ({"counts": COUNTS - 10}, "expected 0 or more"),
        ({"bias": np.zeros(5)}, "a 'bias' and no 'weight'"),
        ({"weight": np.zeros((4, 2))}, "head has 4 rows"),
        ({"features": np.zeros((19, 2))}, r"'features' has the shape \(19, 2\)"),
        ({"train_labels": np.zeros(3, dtype=int)}, "no 'train_features'"),
        ({"activation": np.array("softmin")}, "Did you mean 'softmax'"),
        (
            {"train_features": np.zeros((573, 2)), "train_labels": SWAPPED},
            r"contradict the training data for 2 of 5 classes: '3' \(label 3\) has the count 10",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_npz(written(tmp_path, **changes))


def test_how_it_was_trained_is_resolved_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in arrays\.npz .*Did you mean 'balanced_softmax'"):
        read_npz(written(tmp_path, trained_with=np.array("balanced_softmx")))
    sampled = read_npz(written(tmp_path, trained_with=np.array("class_aware_sampler"))).context
    assert sampled.trained_with == "class_balanced_sampling"


def test_data_with_the_training_counts_is_taken_for_training_data(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(5), COUNTS)
    logits = np.eye(5)[labels] + np.random.default_rng(0).normal(size=(len(labels), 5))
    with pytest.raises(DataError, match="they are the training images"):
        read_npz(written(tmp_path, logits=logits, labels=labels))
    assert len(read_npz(written(tmp_path, logits=logits[1:], labels=labels[1:])).labels) == 572
    assert len(read_npz(written(tmp_path, logits=logits, labels=labels), force=True).labels) == 573
    even = np.arange(500) % 5
    equal = {"logits": 4.0 * np.eye(5)[even], "labels": even, "counts": np.full(5, 100)}
    assert len(read_npz(written(tmp_path, **equal)).labels) == 500


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_text("logits")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        read_npz(path)
    np.save(tmp_path / "y.npy", LOGITS)
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        read_npz(tmp_path / "y.npy")
    with pytest.raises(DataError, match="does not exist"):
        read_npz(tmp_path / "absent.npz")
    whole = written(tmp_path).read_bytes()
    path.write_bytes(whole.replace(whole[200:220], b"\0" * 20))
    with pytest.raises(DataError, match="is damaged at 'logits'"):
        read_npz(path)


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, **arrays(names=np.array([object()] * 5, dtype=object)))
    with pytest.raises(DataError, match=r"'names' holds Python objects.*could run code"):
        read_npz(path)


def leaning(slope: float) -> tuple[np.ndarray, np.ndarray, ClassTable]:
    """Logits whose mean follows the log count with a known slope."""
    rng = np.random.default_rng(2)
    table = ClassTable.from_counts(np.geomspace(1000, 5, 20).astype(int).tolist())
    labels = np.repeat(np.arange(20), 30)
    noise = rng.normal(size=(600, 20))
    logits = 3.0 * np.eye(20)[labels] + slope * np.log(table.prior()) + noise
    return logits, labels, table


@pytest.mark.parametrize("slope", [1.0, 0.4, 0.0, -0.5])
def test_the_lean_that_was_planted_is_measured(slope: float) -> None:
    lean = measure_lean(*leaning(slope))
    assert lean is not None
    assert lean.slope == pytest.approx(slope, abs=0.05)
    assert lean.corrected == (slope < 0.15)
    assert ("twice" in lean.sentence()) == (slope < 0.15)


def test_equal_counts_have_no_lean() -> None:
    logits, labels, _ = leaning(1.0)
    assert measure_lean(logits, labels, ClassTable.from_counts([50] * 20)) is None
