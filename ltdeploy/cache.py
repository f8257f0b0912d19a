"""What a model gave for a data set, on disk, found again by what it was made from.

An entry is a folder named after the checkpoint's sha256, the architecture, the preprocessing, the
versions of what decodes, resizes and computes, and the bytes of every image, so that a change of
any of them is another entry. It is written beside its place and renamed; what is half there, or was
changed since, is thrown away and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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

__all__ = ["CacheForm", "Kept", "cached", "cached_logits", "entry_key", "image_digest"]

T = TypeVar("T")

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

    form = CacheForm(
        "logits",
        _ARRAYS,
        pack=_packed,
        unpack=lambda kept: _logits(kept, labels, features=_tells_features(model)),
    )
    return cached(form, run, lambda: [_key(model, dataset)], cache=cache, warn=warn)


@dataclass(frozen=True, eq=False)
class Kept:
    """What stands in an entry.

    Parameters
    ----------
    arrays : by name; one that comes in parts is written part after part along its first axis, so
        that it need not stand in memory twice, and is read whole.
    unreadable : identifier and reason of every image that could not be used.
    """

    arrays: Mapping[str, npt.NDArray[Any] | Sequence[npt.NDArray[Any]]]
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class CacheForm(Generic[T]):
    """How a result becomes an entry and comes back.

    Parameters
    ----------
    what : its name in messages, ``"logits"``.
    names : every array that an entry may hold.
    pack, unpack : ``unpack`` raises a ValueError, LookupError or TypeError where an entry's arrays
        do not fit together.
    """

    what: str
    names: tuple[str, ...]
    pack: Callable[[T], Kept]
    unpack: Callable[[Kept], T]


def cached(
    form: CacheForm[T],
    make: Callable[[], T],
    keys: Callable[[], Sequence[str]],
    *,
    cache: Path | None,
    warn: Callable[[str], None] = lambda text: None,
) -> T:
    """Return a result from the cache where it stands in it, else made and kept.

    Parameters
    ----------
    keys : names of the entries that would do; what is made is kept under the last one. Asked only
        where there is a cache, as :func:`entry_key` has all images read.
    cache : the folder; None makes the result and keeps nothing.
    warn : is told, in words, of an entry that was damaged or could not be written.

    Raises
    ------
    UsageError
        If ``cache`` is a file.
    """
    if cache is None:
        return make()
    # os.path and not Path: what may not be looked at is as good as absent, and said when written.
    if os.path.isfile(cache):
        raise UsageError(f"--cache is {str(cache)!r}, a file; expected a folder, or --no-cache.")
    entries = [cache / key for key in keys()]
    for entry in filter(os.path.lexists, entries):
        try:
            return form.unpack(_read(entry, form.names))
        except _DAMAGED as error:
            warn(f"the cached {form.what} in {entry} are damaged ({error}) and were made anew")
            _remove(entry)
    made = make()
    try:
        _write(entries[-1], form.pack(made))
    except OSError as error:
        reason = error.strerror or error
        warn(
            f"the {form.what} could not be kept in {cache} ({reason}); the next run makes them anew"
        )
    return made


def entry_key(told: Mapping[str, Any], packages: Iterable[str], images: Iterable[bytes]) -> str:
    """Return an entry's name: 160 bits of everything that a result follows from.

    Parameters
    ----------
    told : what the model is, as JSON values.
    packages : import names of what decodes, resizes and computes; their versions count.
    images : a digest of each image, as :func:`image_digest` makes it.
    """
    versions = {package: installed_version(package) for package in packages}
    content = {"schema": _SCHEMA, "versions": {"ltdeploy": __version__, **versions}, **told}
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=20)
    for image in images:
        digest.update(image)
    return digest.hexdigest()


def image_digest(source: Any) -> bytes:
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


def _key(model: Classifier | OnnxClassifier, dataset: Dataset) -> str:
    told = {
        "checkpoint": model.source.sha256,
        "arch": model.arch,
        "head": [model.head_path, model.head.scale],
        "preprocessing": model.preprocessing.to_dict(),
    }
    images = (image_digest(dataset.source(index)) for index in range(len(dataset)))
    return entry_key(told, _VERSIONED, images)


def _tells_features(model: Classifier | OnnxClassifier) -> bool:
    from .models.onnx_classifier import OnnxClassifier

    return isinstance(model, OnnxClassifier) or model.head.foldable


def _packed(made: Logits) -> Kept:
    arrays = {name: getattr(made, name) for name in _ARRAYS}
    told = {name: array for name, array in arrays.items() if array is not None}
    return Kept(told, made.unreadable)


def _logits(kept: Kept, labels: npt.NDArray[np.int64], *, features: bool) -> Logits:
    arrays: Mapping[str, Any] = kept.arrays
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
        kept.unreadable,
        arrays.get("features"),
    )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _read(entry: Path, names: Sequence[str]) -> Kept:
    told = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, digest in told["files"].items():
        path = entry / f"{name}.npy"
        if name not in names or _file_digest(path) != digest:
            raise ValueError(f"{path.name} is not what was written")
        arrays[name] = np.load(path, allow_pickle=False)
    unreadable = tuple((str(image), str(reason)) for image, reason in told["unreadable"])
    return Kept(arrays, unreadable)


def _write(entry: Path, kept: Kept) -> None:
    """Write an entry whole or not at all; of two that write the same one, one wins."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
    try:
        files = {}
        for name, array in kept.arrays.items():
            path = temporary / f"{name}.npy"
            if isinstance(array, np.ndarray):
                np.save(path, array, allow_pickle=False)
            else:
                _save_parts(path, array)
            files[name] = _file_digest(path)
        told = {"schema": _SCHEMA, "files": files, "unreadable": kept.unreadable}
        (temporary / "entry.json").write_text(json.dumps(told), encoding="utf-8")
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_parts(path: Path, parts: Sequence[npt.NDArray[Any]]) -> None:
    """Write arrays of the shapes (n, ...), one at least, as the one array that they make."""
    header = {
        "descr": np.lib.format.dtype_to_descr(parts[0].dtype),
        "fortran_order": False,
        "shape": (sum(len(part) for part in parts), *parts[0].shape[1:]),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())


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
