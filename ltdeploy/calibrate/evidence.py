"""What a choice of fix rests on: arrays, checked once, wherever they came from."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..classes import ClassTable
from ..errors import DataError, did_you_mean
from ..fixes import FixContext
from ..models.head import Activation, Head
from ..models.trained_with import resolve_trained_with
from .plausible import refuse_foreign_features, refuse_probabilities, refuse_unrelated_labels

__all__ = ["Evidence", "check_context", "check_finite", "read_npz"]

_REQUIRED = ("logits", "labels", "counts")
_OPTIONAL = (
    "names",
    "features",
    "weight",
    "bias",
    "train_features",
    "train_labels",
    "target_logits",
    "trained_with",
    "activation",
)
_WRITTEN = 'numpy.savez("arrays.npz", logits=…, labels=…, counts=…)'
_ACTIVATIONS = ("softmax", "sigmoid")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Labelled validation logits with what is known of the model.

    Parameters
    ----------
    context : what fixes may learn from; holds logits, labels and classes at least.
    name : what the data are called in reports.
    hashes : fingerprints of the validation images, array of shape (N,), uint64; None where only
        logits are known.
    checkpoint : name and sha256 of the model's file, or None.
    provenance : where all this came from, by label, for reports.
    """

    context: FixContext
    name: str
    hashes: npt.NDArray[np.uint64] | None = None
    checkpoint: tuple[str, str] | None = None
    provenance: dict[str, str] | None = None

    @property
    def logits(self) -> npt.NDArray[np.floating[Any]]:
        """Validation logits, array of shape (N, C)."""
        assert self.context.logits is not None
        return self.context.logits

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Validation labels, array of shape (N,)."""
        assert self.context.labels is not None
        return self.context.labels

    @property
    def activation(self) -> Activation:
        """What turns the model's logits into probabilities."""
        return "softmax" if self.context.head is None else self.context.head.activation

    @property
    def classes(self) -> ClassTable:
        """The class table, with training counts."""
        assert self.context.classes is not None
        return self.context.classes


def check_context(context: FixContext) -> FixContext:
    """Return the context with labels as int64 and no halves, or say what does not fit together.

    Raises
    ------
    DataError
        For shapes that differ, logits that are not finite or are probabilities, labels out of
        range, fewer than two images or classes, training counts that the training labels
        contradict; and, unless forced, labels or features that have nothing to do with the logits.
    """
    logits, labels, table = context.logits, context.labels, context.classes
    assert logits is not None
    assert table is not None
    classes = len(table)
    _check_logits("logits", logits, classes)
    checked = _check_labels("labels", labels, len(logits), classes)
    present = np.unique(checked)
    if len(checked) < 2 or len(present) < 2:
        raise DataError(
            f"The validation data has {len(checked)} images of {len(present)} "
            f"{'class' if len(present) == 1 else 'classes'}; choosing a fix needs at least two "
            "images of two classes, better three images of every class."
        )
    _refuse_training_data(checked, context)
    if context.target_logits is not None:
        _check_logits("target_logits", context.target_logits, classes)
        refuse_probabilities("target_logits", context.target_logits, force=context.force)
    head = context.head
    if head is not None and head.classes != classes:
        raise DataError(
            f"The head has {head.classes} rows and the class table {classes} classes; expected one "
            "row and one count per class, in the same order."
        )
    depth = None if head is None else head.weight.shape[1]
    _check_features("features", context.features, len(logits), depth)
    train_labels = context.train_labels
    if context.train_features is not None or train_labels is not None:
        if context.train_features is None:
            raise DataError(
                "There are 'train_labels' and no 'train_features'; give both, or neither."
            )
        count = len(context.train_features)
        train_labels = _check_labels("train_labels", train_labels, count, classes)
        _check_features("train_features", context.train_features, count, depth)
        _check_counts(train_labels, table)
    refuse_probabilities("logits", logits, force=context.force)
    if not context.force:
        refuse_unrelated_labels(logits, checked)
        refuse_foreign_features(logits, context.features, head)
    return replace(
        context,
        labels=checked,
        train_labels=train_labels,
        logits=_widened(logits),
        features=_widened(context.features),
        train_features=_widened(context.train_features),
        target_logits=_widened(context.target_logits),
    )


def _widened(array: Any) -> Any:
    """Return half precision as float32: what a fix makes of it may not fit into a half."""
    return array if array is None or array.dtype != np.float16 else array.astype(np.float32)


def _refuse_training_data(labels: npt.NDArray[np.int64], context: FixContext) -> None:
    """Refuse data with exactly the training counts of a long tail: no other data has these."""
    assert context.classes is not None
    counts = np.array(context.classes.counts)
    same = np.array_equal(np.bincount(labels, minlength=len(counts)), counts)
    if same and np.ptp(counts) and not context.force:
        raise DataError(
            f"Every class has as many of these {len(labels):,} images as it had in training: they "
            "are the training images, which the model knows by heart. A fix chosen on them means "
            "nothing; give images that it was not trained on, or --force if they are others."
        )


def _check_logits(name: str, logits: Any, classes: int) -> None:
    if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.floating):
        raise DataError(
            f"'{name}' has the shape {logits.shape} and the type {logits.dtype}; expected floating "
            "point numbers of shape (images, classes), as logits.astype(numpy.float32) makes them."
        )
    if logits.shape[1] != classes:
        raise DataError(
            f"'{name}' has {logits.shape[1]} columns and there are {classes} training counts; "
            "expected one column and one count per class, in the same order."
            f"{' It is transposed: give its .T.' if len(logits) == classes else ''}"
        )
    if not len(logits):
        raise DataError(f"'{name}' has no row; expected one per image.")
    check_finite(name, logits)


def check_finite(name: str, logits: npt.NDArray[Any]) -> None:
    """Raise :class:`DataError` for the first of the logits, shape (N, C), that is no number."""
    for start in range(0, len(logits), 1024):
        finite = np.isfinite(logits[start : start + 1024])
        if not finite.all():
            row = start + int(np.flatnonzero(~finite.all(axis=1))[0])
            label = int(np.flatnonzero(~np.isfinite(logits[row]))[0])
            raise DataError(
                f"'{name}' is not finite: row {row} has {logits[row, label]} for the class "
                f"{label}. A model that gives such logits must be repaired first."
            )


def _check_labels(name: str, labels: Any, rows: int, classes: int) -> npt.NDArray[np.int64]:
    labels = np.asarray(labels)
    assert isinstance(labels, np.ndarray)
    if np.issubdtype(labels.dtype, np.floating) and np.array_equal(labels, np.floor(labels)):
        labels = labels.astype(np.int64)
    if labels.shape != (rows,) or not np.issubdtype(labels.dtype, np.integer):
        one_hot = labels.shape == (rows, classes)
        raise DataError(
            f"'{name}' has the shape {labels.shape} and the type {labels.dtype}; expected "
            f"{rows:,} whole numbers, one label per row: the class's place in 'counts'"
            f"{', as labels.argmax(axis=1) gives it' if one_hot else ''}."
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise DataError(
            f"'{name}' holds {len(outside)} labels outside 0..{classes - 1}, the first is "
            f"{labels[outside[0]]} in row {outside[0]}; expected the class's place in 'counts'."
            f"{' Labels that start at 1 must be lowered by one.' if labels.min() == 1 else ''}"
        )
    checked: npt.NDArray[np.int64] = labels.astype(np.int64)
    return checked


def _check_features(name: str, features: Any, rows: int, depth: int | None) -> None:
    if features is None:
        return
    if features.ndim != 2 or len(features) != rows or depth not in (None, features.shape[1]):
        raise DataError(
            f"'{name}' has the shape {features.shape}; expected ({rows}, "
            f"{depth if depth is not None else 'features'}): one row per image, as the head is "
            "given it."
        )
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise DataError(f"'{name}' is not finite in row {row}; repair the model or that image.")


def _check_counts(train_labels: npt.NDArray[np.int64], table: ClassTable) -> None:
    """Refuse more training images of a class than its count: classes are swapped, or data mixed.

    Fewer may be unreadable ones, or a sample.
    """
    found = np.bincount(train_labels, minlength=len(table))
    differ = np.flatnonzero(found > np.array(table.counts))
    if len(differ):
        first = int(differ[0])
        raise DataError(
            f"The training counts contradict the training data for {len(differ)} of {len(table)} "
            f"classes: {table.names[first]!r} (label {first}) has the count {table.counts[first]} "
            f"and {found[first]} training images. Give the counts of this training data, or the "
            "data that the counts are of, with classes in the same order."
        )


def read_npz(path: str | os.PathLike[str], *, force: bool = False) -> Evidence:
    """Read logits, labels and training counts from a ``.npz`` file; nothing in it is executed.

    ``logits`` (N, C), ``labels`` (N,) and ``counts`` (C,) must be there. Any of these may be:
    ``names`` (C,), ``features`` (N, D), ``weight`` (C, D) and ``bias`` (C,) of the head,
    ``train_features`` (M, D) and ``train_labels`` (M,), ``target_logits`` (T, C),
    ``trained_with`` and ``activation`` (texts).

    Parameters
    ----------
    force : allow what is refused as meaningless or harmful.

    Raises
    ------
    DataError
        If the file cannot be read, lacks an array, holds an unknown one, or they do not fit.
    UsageError
        If ``trained_with`` is nearly a name that is known.
    """
    path = Path(path)
    arrays = _arrays_of(path)
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}. "
            f"Expected {_needed()}."
        )
    for name in arrays:
        if name not in _REQUIRED + _OPTIONAL:
            hint = did_you_mean(name, _REQUIRED + _OPTIONAL)
            raise DataError(f"{path} holds {name!r}, which is unknown. Expected {_needed()}.{hint}")
    context = FixContext(
        head=_head(path, arrays),
        classes=_table(path, arrays),
        logits=arrays["logits"],
        labels=arrays["labels"],
        features=arrays.get("features"),
        train_features=arrays.get("train_features"),
        train_labels=arrays.get("train_labels"),
        target_logits=arrays.get("target_logits"),
        trained_with=resolve_trained_with(
            str(arrays["trained_with"]) if "trained_with" in arrays else None,
            f"'trained_with' in {path.name}",
        ),
        force=force,
    )
    return Evidence(check_context(context), path.name, provenance={"Data": path.name})


def _arrays_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.exists():
        raise DataError(f"{path} does not exist. Write it with {_WRITTEN}.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz file, or a damaged one. Write it with {_WRITTEN}.")
    arrays = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                arrays[name] = file[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{path}: {name!r} holds Python objects, which are not loaded, since that could "
                "run code. Save it as numbers or texts: numpy.asarray(x, dtype=…)."
            ) from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{path} is damaged at {name!r} ({reason.rstrip('.')}). Write it again with {_WRITTEN}."
        ) from error
    return arrays


def _needed() -> str:
    return f"{', '.join(_REQUIRED)}, and at will {', '.join(_OPTIONAL)}"


def _table(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> ClassTable:
    counts = arrays["counts"]
    whole = counts.ndim == 1 and np.issubdtype(counts.dtype, np.number)
    if not whole or not (np.abs(counts) < 2**53).all() or (counts != np.floor(counts)).any():
        raise DataError(
            f"{path}: 'counts' has the shape {counts.shape} and the type {counts.dtype}; expected "
            "one whole number per class, the images it was trained with."
        )
    names = None
    if "names" in arrays:
        names = [str(name) for name in arrays["names"].reshape(-1)]
    return ClassTable.from_counts([int(count) for count in counts], names)


def _head(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> Head | None:
    activation = str(arrays.get("activation", "softmax"))
    if activation not in _ACTIVATIONS:
        raise DataError(
            f"{path}: 'activation' is {activation!r}; expected one of {', '.join(_ACTIVATIONS)}."
            f"{did_you_mean(activation, _ACTIVATIONS)}"
        )
    if "weight" not in arrays:
        if "bias" in arrays:
            raise DataError(f"{path} holds a 'bias' and no 'weight'; give both, or neither.")
        if activation == "softmax":
            return None
        # Only its activation is known; a head without columns has no rows to normalise.
        classes = arrays["logits"].shape[-1]
        return Head("linear", np.zeros((classes, 0)), activation="sigmoid", foldable=False)
    weight, bias = arrays["weight"], arrays.get("bias")
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and not (
            np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()
        ):
            raise DataError(f"{path}: '{name}' must be finite floating point numbers.")
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise DataError(
            f"{path}: 'weight' has the shape {weight.shape}"
            f"{'' if bias is None else f' and bias {bias.shape}'}; expected (classes, features) "
            "and (classes,)."
        )
    wide = None if bias is None else bias.astype(np.float64)
    return Head("linear", weight.astype(np.float64), wide, activation=activation)  # type: ignore[arg-type]
