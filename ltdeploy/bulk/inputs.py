"""What to classify: files, folders, lists, parquet files and data sets as one numbered row."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from ..datasets import Dataset, open_unlabelled
from ..datasets.cifar import is_cifar_folder
from ..datasets.folder import images_under
from ..errors import DataError, UsageError, did_you_mean
from ..images import ImageSource
from ..loading import Answer, Model

__all__ = ["Inputs", "answers", "open_inputs"]


_KINDS = (
    "an image, a folder of images, a .txt list of paths, a .parquet file, a CIFAR folder, or "
    "'species'"
)


@dataclass(frozen=True)
class _Files:
    """Image files by path; one that is missing gets an error row of its own."""

    paths: list[str]
    base: str  # where relative ones begin: an actor on Ray may stand elsewhere
    by_path: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.paths)

    def source(self, index: int) -> ImageSource:
        return os.path.join(self.base, self.paths[index])

    def identifier(self, index: int) -> str:
        return self.paths[index]


class _Data:
    """A data set that is opened where it is used: a pickled one is opened again.

    Attributes
    ----------
    in_full : whether its images are called by its path as it was given, since another data set's
        would have the same names.
    """

    def __init__(self, given: str, root: str | None) -> None:
        self.given = given
        self.spec = given if _is_species(given) else str(Path(given).expanduser().absolute())
        self.in_full = False
        self._root = None if root is None else str(Path(root).expanduser().absolute())

    @property
    def by_path(self) -> bool:
        """Whether its images are files of their own."""
        return self.spec.lower().endswith(".txt")

    def short_names(self) -> set[str]:
        """Return what may be called alike in another data set: a list's paths, else its name."""
        if self.by_path:
            return {self._opened.identifier(index) for index in range(len(self))}
        return {self._opened.identifier(0)}

    def folder(self) -> str:
        """Return where its paths begin, or the data set itself."""
        return (self._root or os.path.dirname(self.spec)) if self.by_path else self.spec

    @cached_property
    def _opened(self) -> Dataset:
        return open_unlabelled(self.spec, root=self._root)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("given", "spec", "in_full", "_root")
        return {name: value for name, value in vars(self).items() if name in kept}

    def __len__(self) -> int:
        return len(self._opened)

    def source(self, index: int) -> ImageSource:
        return self._opened.source(index)

    def identifier(self, index: int) -> str:
        short = self._opened.identifier(index)
        if not self.in_full:
            return short
        if self.by_path:
            return os.path.join(os.path.dirname(self.given), short)
        return f"{self.given}#{short.rpartition('#')[2]}"


class Inputs:
    """Images in a fixed order, named and counted, none of them read yet. Can be pickled.

    Parameters
    ----------
    parts : what follows each other.
    """

    def __init__(self, parts: Sequence[_Files | _Data]) -> None:
        self._parts = tuple(parts)
        self._starts = list(itertools.accumulate((len(part) for part in parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def source(self, index: int) -> ImageSource:
        """Return the image at ``index`` undecoded. Thread-safe."""
        part, place = self._find(index)
        return part.source(place)

    def identifier(self, index: int) -> str:
        """Return what its row calls the image at ``index``."""
        part, place = self._find(index)
        return part.identifier(place)

    def fingerprint(self) -> str:
        """Return a sha256 of where the images stand, in their order, and of files that hold many.

        Of files their whole path, size and time of change: the same names in another folder are
        other images, and a file that was replaced is another one.
        """
        digest = hashlib.sha256()
        for part in self._parts:
            if isinstance(part, _Data) and Path(part.spec).is_file():
                digest.update(_state(part.spec))
            for index in range(len(part)):
                digest.update(os.fsencode(part.identifier(index)) + b"\0")
                source = part.source(index) if part.by_path else None
                if isinstance(source, str | os.PathLike):
                    digest.update(_state(source))
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[_Files | _Data, int]:
        number = bisect.bisect_right(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]


def _state(path: str | os.PathLike[str]) -> bytes:
    """Return where a file is, its size and time of change; of one that is missing where it is."""
    whole = os.fsencode(os.path.abspath(path))
    try:
        found = os.stat(path)
    except OSError:
        return whole + b"\0missing\0"
    return whole + f"\0{found.st_size}\0{found.st_mtime_ns}\0".encode()


def answers(model: Model, inputs: Inputs, places: Iterable[int], top_k: int) -> Iterator[Answer]:
    """Yield the answer to each input at ``places``, in order: the work, wherever it runs.

    Raises
    ------
    EngineError
        If the engine fails; the text names the images of that batch.
    """
    images = ((inputs.identifier(place), partial(inputs.source, place)) for place in places)
    return model.stream(images, top_k=top_k)


def open_inputs(texts: Sequence[str], *, root: str | None = None) -> Inputs:
    """Open what the command line calls ``INPUT…``.

    Parameters
    ----------
    texts : image files; folders, whose images at any depth are taken in sorted order; ``.txt``
        lists of paths, with or without labels; ``.parquet`` files in the Hugging Face image layout;
        CIFAR pickle folders; ``species``.
    root : folder that the paths of lists begin at.

    Raises
    ------
    DataError
        For what is not there, a folder without an image, or as
        :func:`ltdeploy.datasets.open_unlabelled`.
    UsageError
        For what is not read: stdin and addresses; for a root without a list.
    """
    if root is not None and not any(text.lower().endswith(".txt") for text in texts):
        raise UsageError(f"--root {root} was given, but no .txt list of paths; leave it out.")
    parts = list(_parts(texts, root, os.getcwd()))
    _tell_apart([p for p in parts if isinstance(p, _Data) and not _is_species(p.spec)])
    return Inputs(list(_joined(parts)))


def _parts(texts: Sequence[str], root: str | None, base: str) -> Iterator[_Files | _Data]:
    for text in texts:
        if text == "-" or "://" in text:
            raise UsageError(
                f"Cannot classify {text!r}: neither stdin nor addresses are read. Save the images "
                "first and give the folder, or a .txt list of their paths."
            )
        path = Path(text).expanduser()
        suffix = path.suffix.lower()
        if not _is_species(text):
            _require_there(text, path)
        if suffix == ".txt" and os.path.isfile(path):
            yield _Data(text, root)
        elif suffix == ".parquet" or _is_species(text) or _is_cifar(path):
            yield _Data(text, None)
        elif os.path.isdir(path):
            yield _Files(_images_in(path), base)
        else:
            yield _Files([text], base)


def _require_there(text: str, path: Path) -> None:
    """Refuse what is typed wrong: rows of errors would be the answer to nothing."""
    try:
        os.stat(path)
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{text!r} cannot be read: {reason}; expected {_KINDS}.") from error
    near = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    missing = path.absolute().relative_to(near).parts[0]
    names = os.listdir(near) if os.access(near, os.R_OK) else []
    hint = did_you_mean(missing, [*names, "species"])
    raise DataError(f"{text} does not exist; expected {_KINDS}.{hint}")


def _tell_apart(data: Sequence[_Data]) -> None:
    """Call images by their data set's whole path where two data sets have names in common."""
    owner: dict[str, _Data] = {}
    for part in data if len(data) > 1 else ():
        for name in part.short_names():
            other = owner.setdefault(name, part)
            if other.folder() != part.folder():
                part.in_full = other.in_full = True


def _is_species(text: str) -> bool:
    return text.partition(":")[0] == "species"


def _is_cifar(path: Path) -> bool:
    return os.path.isdir(path) and is_cifar_folder(path)


def _images_in(folder: Path) -> list[str]:
    found = [os.path.join(folder, path) for path in images_under(folder)[0]]
    if not found:
        raise DataError(f"The folder {folder} holds no image; expected .jpg, .png, .webp, ….")
    return found


def _joined(parts: list[_Files | _Data]) -> Iterator[_Files | _Data]:
    """Join files that follow each other, so that thousands on a command line are one part."""
    for is_files, group in itertools.groupby(parts, lambda part: isinstance(part, _Files)):
        if not is_files:
            yield from group
            continue
        files = [part for part in group if isinstance(part, _Files)]
        yield _Files([path for part in files for path in part.paths], files[0].base)
