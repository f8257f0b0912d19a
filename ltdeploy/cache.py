"""Logits and features on disk, found again by what they were made from.

An entry is a folder named after the checkpoint's sha256, the architecture, the preprocessing, the
versions of what decodes, resizes and computes, and the bytes of every image, so that a change of
any of them is another entry. It is written beside its
place and renamed; what is half there, or was changed since, is thrown away and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import __version__
from ._optional import installed_version
from .datasets import Dataset
from .engines.torch_reference import reference_engine
from .errors import UsageError
from .inference import Logits, collect_logits
from .progress import Tracker, silent

if TYPE_CHECKING:
    from .models.classifier import Classifier
    from .models.onnx_classifier import OnnxClassifier

__all__ = ["cached_logits"]

_SCHEMA = 1
_ARRAYS = ("logits", "features", "indices", "hashes")
_VERSIONED = ("PIL", "torch", "onnxruntime")  # another one may give other pixels or logits
_STALE_S = 24 * 3600  # what a killed process left behind
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def cached_logits(
    model: Classifier | OnnxClassifier,
    dataset: Dataset,
    labels: npt.NDArray[np.int64],
    *,
    cache: Path | None,
    track: Tracker = silent,
    label: str = "images",
    warn: Callable[[str], None] = lambda text: None,
) -> Logits:
    """Return a model's logits and features of a data set, from the cache where they stand in it.

    Parameters
    ----------
    labels : array of shape (N,), aligned to the model's class table; they are not in the cache.
    cache : the folder; None runs the model and keeps nothing.
    warn : is told, in words, of an entry that was damaged or could not be written.

    Raises
    ------
    UsageError
        If ``cache`` is a file.
    DataError, EngineError
        As :func:`~ltdeploy.inference.collect_logits`.
    """

    def run() -> Logits:
        engine = reference_engine(model, features=True)
        try:
            return collect_logits(
                engine, dataset, labels, model.preprocessing, track=track, label=label
            )
        finally:
            engine.close()

    if cache is None:
        return run()
    # os.path and not Path: what may not be looked at is as good as absent, and said when written.
    if os.path.isfile(cache):
        raise UsageError(f"--cache is {str(cache)!r}, a file; expected a folder, or --no-cache.")
    entry = cache / _key(model, dataset)
    if os.path.lexists(entry):
        try:
            return _read(entry, labels, features=_tells_features(model))
        except _DAMAGED as error:
            warn(f"the cached logits in {entry} are damaged ({error}) and were made anew")
            _remove(entry)
    made = run()
    try:
        _write(entry, made)
    except OSError as error:
        reason = error.strerror or error
        warn(f"the logits could not be kept in {cache} ({reason}); the next run makes them anew")
    return made


def _key(model: Classifier | OnnxClassifier, dataset: Dataset) -> str:
    """Return 160 bits of everything that the logits follow from."""
    told = {
        "schema": _SCHEMA,
        "versions": {
            "ltdeploy": __version__,
            **{package: installed_version(package) for package in _VERSIONED},
        },
        "checkpoint": model.source.sha256,
        "arch": model.arch,
        "head": [model.head_path, model.head.scale],
        "preprocessing": model.preprocessing.to_dict(),
    }
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=20)
    for index in range(len(dataset)):
        digest.update(_image_digest(dataset.source(index)))
    return digest.hexdigest()


def _image_digest(source: Any) -> bytes:
    """Return a digest of an image as it is stored: its file's bytes, or its pixels."""
    if isinstance(source, str | os.PathLike):
        try:
            content = Path(source).read_bytes()
        except OSError as error:  # unreadable now and in the entry: named again when it is read
            content = f"unreadable {source} {error.errno}".encode()
    elif isinstance(source, bytes):
        content = source
    else:
        pixels = np.asarray(source)
        content = repr((pixels.shape, pixels.dtype.str)).encode() + pixels.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _tells_features(model: Classifier | OnnxClassifier) -> bool:
    from .models.onnx_classifier import OnnxClassifier

    return isinstance(model, OnnxClassifier) or model.head.foldable


def _read(entry: Path, labels: npt.NDArray[np.int64], *, features: bool) -> Logits:
    told = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, digest in told["files"].items():
        path = entry / f"{name}.npy"
        if name not in _ARRAYS or _file_digest(path) != digest:
            raise ValueError(f"{path.name} is not what was written")
        arrays[name] = np.load(path, allow_pickle=False)
    unreadable = tuple((str(image), str(reason)) for image, reason in told["unreadable"])
    if ("features" in arrays) != features:
        raise ValueError("features.npy is not listed" if features else "features.npy is listed")
    indices = arrays["indices"]
    if any(array.shape[:1] != indices.shape for array in arrays.values()):
        raise ValueError("its arrays have different lengths")
    if indices.min(initial=0) < 0:
        raise ValueError("it has negative indices")
    return Logits(
        arrays["logits"],
        labels[indices],
        indices,
        arrays["hashes"],
        unreadable,
        arrays.get("features"),
    )


def _write(entry: Path, made: Logits) -> None:
    """Write an entry whole or not at all; of two that write the same one, one wins."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
    try:
        files = {}
        for name in _ARRAYS:
            array = getattr(made, name)
            if array is not None:
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
                files[name] = _file_digest(temporary / f"{name}.npy")
        told = {"schema": _SCHEMA, "files": files, "unreadable": made.unreadable}
        (temporary / "entry.json").write_text(json.dumps(told), encoding="utf-8")
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(entry: Path) -> None:
    if entry.is_symlink() or not entry.is_dir():
        with contextlib.suppress(OSError):
            entry.unlink()  # what a link points to is not ours
    else:
        shutil.rmtree(entry, ignore_errors=True)


def _remove_stale(cache: Path) -> None:
    for left in cache.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
