"""The CIFAR pickle folders, read without running what a pickle may ask for."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, did_you_mean
from .base import Dataset

__all__ = ["CifarDataset", "is_cifar_folder"]

_SIDE_PX = 32


class CifarDataset(Dataset):
    """The 32 x 32 images of ``cifar-10-batches-py`` or ``cifar-100-python`` (Krizhevsky 2009).

    Parameters
    ----------
    folder : holds ``test_batch`` and ``data_batch_1`` …, or ``test`` and ``train``.
    split : ``"train"`` or ``"test"``; None means ``"test"``.

    Raises
    ------
    DataError
        For an unknown split, a missing or damaged file, or a pickle that asks for anything but
        numbers, text and arrays of bytes.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        folder = folder.resolve()
        split = split if split is not None else "test"
        if split not in ("train", "test"):
            raise DataError(
                f"The CIFAR folder {folder} has no split {split!r}; it holds train, test."
                f"{did_you_mean(split, ('train', 'test'))}"
            )
        if (folder / "test_batch").is_file():
            files = ["test_batch"] if split == "test" else [f"data_batch_{n}" for n in range(1, 6)]
            meta, names_key, labels_key = "batches.meta", b"label_names", b"labels"
        else:
            files, meta = [split], "meta"
            names_key, labels_key = b"fine_label_names", b"fine_labels"
        pixels: list[npt.NDArray[np.uint8]] = []
        labels: list[int] = []
        for file in files:
            batch = _read_pickle(folder / file)
            pixels.append(_pixels(batch.get(b"data"), folder / file))
            labels += _labels(batch.get(labels_key), len(pixels[-1]), folder / file)
        names = _names(_read_pickle(folder / meta).get(names_key), folder / meta)
        planes = np.concatenate(pixels).reshape(-1, 3, _SIDE_PX, _SIDE_PX)
        self._images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        super().__init__(f"{folder.name}:{split}", names, np.array(labels, dtype=np.int64))

    def source(self, index: int) -> npt.NDArray[np.uint8]:
        image: npt.NDArray[np.uint8] = self._images[index]
        return image

    def identifier(self, index: int) -> str:
        return f"{self.name}#{index}"


def is_cifar_folder(folder: Path) -> bool:
    """Return whether ``folder`` holds the files of a CIFAR pickle folder."""
    return (folder / "batches.meta").is_file() or (
        (folder / "meta").is_file() and any((folder / s).is_file() for s in ("train", "test"))
    )


def _pixels(value: object, path: Path) -> npt.NDArray[np.uint8]:
    width = 3 * _SIDE_PX * _SIDE_PX
    pixels = value.pixels if isinstance(value, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != width:
        got = pixels.shape if pixels is not None else type(value).__name__
        raise DataError(f"{path} holds {got} as 'data'; expected a uint8 array (N, {width}).")
    return pixels


def _labels(value: object, count: int, path: Path) -> list[int]:
    if not isinstance(value, list) or len(value) != count:
        got = f"{len(value)}" if isinstance(value, list) else type(value).__name__
        raise DataError(f"{path} holds {got} labels for {count} images; expected one per image.")
    if not all(isinstance(label, int) and label.bit_length() < 64 for label in value):
        raise DataError(f"{path} holds labels that are not whole numbers of 64 bits.")
    return value


def _names(value: object, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, (bytes, str)) for name in value):
        raise DataError(f"{path} holds no list of class names; expected CIFAR's own meta file.")
    try:
        return tuple((n.encode() if isinstance(n, str) else n).decode() for n in value)
    except UnicodeError as error:
        raise DataError(f"{path} holds a class name that is not text in UTF-8: {error}.") from error


def _read_pickle(path: Path) -> dict[bytes, Any]:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected it in a CIFAR pickle folder.") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
        raise DataError(
            f"{path} cannot be read as a CIFAR pickle: {error or type(error).__name__}. Unpack the "
            "archive again."
        ) from error
    if not isinstance(content, dict):
        got = type(content).__name__.strip("_").lower()
        raise DataError(f"{path} holds a single {got}; expected a dict of CIFAR's.")
    return {
        key.encode(errors="replace") if isinstance(key, str) else key: value
        for key, value in content.items()
    }


class _Array:
    """Stands for a numpy array while a pickle builds it.

    numpy's own ``__setstate__`` believes the pickle: bytes become pointers where its type says so.
    """

    def __init__(self, *_: object) -> None:
        self.pixels: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise DataError("holds an array in an unknown layout; expected CIFAR's own.")
        version, shape, dtype, is_fortran, content = state
        if version != 1 or is_fortran or not isinstance(dtype, _Uint8):
            raise DataError("holds an array that is not uint8 row by row; expected CIFAR's own.")
        if not isinstance(content, bytes) or not _holds(shape, content):
            raise DataError("holds an array whose shape and content differ; expected CIFAR's own.")
        self.pixels = np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _holds(shape: object, content: bytes) -> bool:
    return (
        isinstance(shape, tuple)
        and all(isinstance(length, int) and length >= 0 for length in shape)
        and math.prod(shape) == len(content)
    )


class _Uint8:
    """Stands for the one numpy type that CIFAR's arrays have; no state can make it another."""

    def __init__(self, kind: object, *_: object) -> None:
        if kind not in ("u1", b"u1"):
            raise DataError(f"holds an array of {kind!r}; expected uint8, CIFAR's own.")

    def __setstate__(self, state: object) -> None:
        """Take what numpy stores beside the name: nothing in it matters to bytes."""


def _latin1(text: str, encoding: object) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"asks for the codec {encoding!r}; expected CIFAR's own arrays and lists.")
    return text.encode("latin1")


@dataclass(frozen=True)
class _Callable:
    """Stands for a name that a pickle asks for: it can be called, not changed."""

    function: Callable[..., Any]

    def __call__(self, *arguments: object) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: object) -> None:
        # Without this method a pickle may set any attribute, and the next file would meet it.
        raise DataError("is a pickle that changes a function or class; it was refused.")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Callable(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _Callable(_Array),
    ("numpy", "ndarray"): _Callable(_Array),
    ("numpy", "dtype"): _Callable(_Uint8),
    ("_codecs", "encode"): _Callable(_latin1),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle numbers, text, containers and arrays of bytes; refuse every other name.

    What the allowed names stand for are the placeholders above, never numpy's own.
    """

    def find_class(self, module: str, name: str) -> _Callable:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"is a pickle that asks for {module}.{name}, which could run code; it was refused. "
                "Expected CIFAR's own arrays and lists."
            ) from None
