"""Bundles on disk: written whole or not at all, opened only when every byte is as declared."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from .arrays import FloatArray, file_sha256
from .boxes import Detections
from .canvas import Canvas
from .classes import ClassTable
from .errors import BundleError, LtdeployError
from .files import check_cancelled, write_whole
from .manifest import SCHEMA_VERSION, FileEntry, Manifest
from .preprocessing import Preprocessing

__all__ = [
    "Bundle",
    "Golden",
    "GoldenDetections",
    "attach",
    "file_entry",
    "open_bundle",
    "write_bundle",
]

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
SELECTION = "selection.npz"
# What a verification leaves in a finished bundle; everything else is sealed at export.
ATTACHMENTS = frozenset({"report.html", "baseline.json"})
# Engines built on this machine from the sealed graph: a cache, with hashes of its own.
ENGINES = "engines"
_LARGEST_ARRAYS_BYTES = 1 << 30
_LARGEST_MANIFEST_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Golden:
    """A few inputs, uint8 (K, H, W, 3), and the reference's logits for them, float32 (K, C)."""

    images: npt.NDArray[np.uint8]
    logits: FloatArray


@dataclass(frozen=True, eq=False)
class GoldenDetections:
    """A few canvases, uint8 (K, H, W, 3), and what the reference finds there, in canvas pixels."""

    images: npt.NDArray[np.uint8]
    found: tuple[Detections, ...]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return them as the arrays of ``golden.npz``."""
        return {
            "images": self.images,
            "counts": np.array([len(one) for one in self.found], np.int64),
            "boxes": np.concatenate([one.boxes for one in self.found]).astype(np.float32),
            "scores": np.concatenate([one.scores for one in self.found]).astype(np.float32),
            "labels": np.concatenate([one.labels for one in self.found]),
        }


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its validated manifest."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The bundle's name, without the folder's ending."""
        return self.manifest.name

    @property
    def classes(self) -> ClassTable:
        """Class table."""
        return self.manifest.class_table()

    @property
    def preprocessing(self) -> Preprocessing:
        """How photographs are made ready for the graph."""
        return self.manifest.image_preprocessing()

    @property
    def is_detector(self) -> bool:
        """Whether it finds boxes."""
        return self.manifest.task == "detection"

    @property
    def canvas(self) -> Canvas:
        """How photographs come onto a detector's canvas."""
        return self.manifest.canvas()

    @property
    def graph_path(self) -> Path:
        """The ONNX file."""
        return self.path / self.manifest.graphs[0].file

    @property
    def source_path(self) -> Path:
        """Where the checkpoint stood when the bundle was written; it may not be there any more."""
        return self.path.resolve().parent / self.manifest.source.path

    def golden(self) -> Golden:
        """Return the golden samples."""
        arrays = self._arrays(GOLDEN, ("images", "logits"))
        images, logits = arrays["images"], arrays["logits"]
        size = (self.preprocessing.height_px, self.preprocessing.width_px, 3)
        if (
            images.shape[1:] != size
            or images.dtype != np.uint8
            or logits.shape != (len(images), len(self.classes))
            or logits.dtype != np.float32
        ):
            raise self._unreadable(GOLDEN, f"{images.dtype} {images.shape}, {logits.shape}")
        return Golden(images, logits)

    def golden_detections(self) -> GoldenDetections:
        """Return a detector's golden samples."""
        names = ("images", "counts", "boxes", "scores", "labels")
        images, counts, boxes, scores, labels = self._arrays(GOLDEN, names).values()
        if (
            images.shape[1:] != (self.canvas.height_px, self.canvas.width_px, 3)
            or images.dtype != np.uint8
            or counts.shape != (len(images),)
            or counts.min(initial=0) < 0
            or not counts.sum() == len(boxes) == len(scores) == len(labels)
        ):
            raise self._unreadable(GOLDEN, f"{images.dtype} {images.shape}, {counts.sum()} boxes")
        ends = np.cumsum(counts)
        found = tuple(
            Detections(boxes[end - n : end], scores[end - n : end], labels[end - n : end])
            for n, end in zip(counts, ends, strict=True)
        )
        return GoldenDetections(images, found)

    def selection_hashes(self) -> npt.NDArray[np.uint64]:
        """Return the fingerprints of the images that chose the fix; empty if none did."""
        if SELECTION not in self.manifest.files:
            return np.empty(0, dtype=np.uint64)
        hashes: npt.NDArray[np.uint64] = self._arrays(SELECTION, ("hashes",))["hashes"]
        return hashes

    def _arrays(self, file: str, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        if file not in self.manifest.files:
            raise self._unreadable(file, "it is not among the hashed files")
        try:
            with zipfile.ZipFile(self.path / file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > _LARGEST_ARRAYS_BYTES:
                raise self._unreadable(file, f"it unpacks to {size >> 20} MiB")
            with np.load(self.path / file, allow_pickle=False) as loaded:
                return {name: loaded[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._unreadable(file, str(error)) from error

    def _unreadable(self, file: str, reason: str) -> BundleError:
        return BundleError(
            f"The bundle {self.path} cannot be used: {file} is unreadable ({reason}). Export again."
        )


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle after checking its schema, every file's hash, and that no path leaves it.

    Raises
    ------
    BundleError
        If the folder is not a bundle, was written by a newer version, is incomplete, or holds a
        file that is not what the manifest says.
    """
    folder = Path(path)
    if not folder.exists():
        raise BundleError(f"There is no bundle at {folder}; make one with 'ltdeploy export CKPT'.")
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}. Expected a folder written by "
            "'ltdeploy export'."
        )
    manifest = _read_manifest(folder)
    root = folder.resolve()
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(
                f"The bundle {folder} is incomplete: {name} is missing. Export again."
            )
        if not file.resolve().is_relative_to(root):
            raise BundleError(f"The bundle {folder} is unsafe: {name} is a link that leaves it.")
        try:
            same = file.stat().st_size == entry.bytes and file_sha256(file) == entry.sha256
        except OSError as error:
            reason = error.strerror or error
            raise BundleError(f"{file} cannot be read: {reason}.") from error
        if not same:
            raise BundleError(
                f"The bundle {folder} was changed after it was written: {name} does not have the "
                f"sha256 {entry.sha256[:12]}… of its manifest. Export it again."
            )
    strangers = _strangers(folder, manifest)
    if strangers:
        raise BundleError(
            f"The bundle {folder} holds {strangers[0]!r}, which its manifest does not list; what "
            "is not hashed is not trusted. Remove it, or export again."
        )
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        if file.stat().st_size > _LARGEST_MANIFEST_BYTES:
            raise BundleError(f"{file} is larger than {_LARGEST_MANIFEST_BYTES >> 20} MiB.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}); the bundle is damaged.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        versions = content.get("versions")
        written_by = versions.get("ltdeploy") if isinstance(versions, dict) else None
        raise BundleError(
            f"The bundle {folder} has the schema {schema}, written by ltdeploy "
            f"{written_by or 'in a newer version'}; "
            f"this version reads schema {SCHEMA_VERSION}. Upgrade with: pip install -U ltdeploy"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise BundleError(f"{file} is not valid at {where}: {first['msg']}.") from error
    except LtdeployError as error:
        raise BundleError(f"{file} is not valid: {error}") from error


def file_entry(content: bytes) -> FileEntry:
    """Return hash and size of a file's content."""
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle into a temporary folder beside ``path`` and rename it into place.

    An older bundle at ``path`` is replaced in the last step only; when anything fails before (a
    full disk, Ctrl-C) it stays as it was and nothing is left behind.

    Parameters
    ----------
    manifest : its hashes are replaced by those of ``files``.
    files : content by path inside the bundle.

    Raises
    ------
    BundleError
        If the place is taken by something that is not a bundle, or cannot be written.
    """
    _refuse_what_is_no_bundle(path)
    entries = {name: file_entry(content) for name, content in files.items()}
    # model_copy does not validate; reading it back does, file names included.
    complete = Manifest.model_validate_json(
        manifest.model_copy(update={"files": entries}).to_json()
    )
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o755)
        for name, content in files.items():
            _write_synced(temporary / name, content)
        _write_synced(temporary / MANIFEST, complete.to_json().encode())
        check_cancelled()
        _replace_folder(temporary, path)
    except OSError as error:
        raise BundleError(
            f"Cannot write the bundle {path}: {error.strerror or error}. Nothing was changed; free "
            "some space or choose another place with --out NAME.ltd."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(path, complete)


def _refuse_what_is_no_bundle(path: Path) -> None:
    if not path.exists() and not path.is_symlink():
        return
    advice = "it is left alone. Choose another name with --out NAME.ltd."
    try:
        strangers = _strangers(path, _read_manifest(path))
    except BundleError as error:
        raise BundleError(f"{path} exists and is not a bundle; {advice}") from error
    if strangers:
        raise BundleError(f"{path} holds {strangers[0]!r}, which no bundle does; {advice}")


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    """Return the files of a folder that are not the bundle's; hidden ones are anybody's.

    Of what stands in ``engines/`` nothing is loaded here: who loads it checks it.
    """
    own = {*manifest.files, *ATTACHMENTS, MANIFEST}
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    return sorted(
        name
        for name in found
        if name not in own and not name.startswith(".") and not _is_engine_file(folder, name)
    )


def _is_engine_file(folder: Path, name: str) -> bool:
    """Whether a file is one that an engine keeps: a plain one, in a folder that is no link."""
    place = PurePosixPath(name)
    return (
        place.parent == PurePosixPath(ENGINES)
        and place.suffix in (".plan", ".json")
        and not (folder / ENGINES).is_symlink()
        and not (folder / name).is_symlink()
        and (folder / name).is_file()
    )


def _write_synced(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _replace_folder(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; a folder already there is put back if that fails."""
    if not path.exists():
        new.rename(path)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        path.rename(retired / path.name)
        new.rename(path)
    finally:
        # Also on Ctrl-C between the two: the old bundle goes only when the new one is there.
        if not path.exists():
            (retired / path.name).rename(path)
        shutil.rmtree(retired, ignore_errors=True)


def attach(bundle: Bundle, files: Mapping[str, bytes]) -> None:
    """Write a report or baseline into a finished bundle; they stand outside its seal.

    The manifest does not hash them: a report that is half-written, or written by two runs at once,
    must never make a model unloadable, and a signature of the manifest stays true.

    Raises
    ------
    BundleError
        If another file is named, or the bundle cannot be written.
    """
    if not ATTACHMENTS.issuperset(files):
        raise BundleError(
            f"Only {', '.join(sorted(ATTACHMENTS))} may change in a finished bundle; got "
            f"{', '.join(sorted(files))}."
        )
    try:
        for name, content in files.items():
            write_whole(bundle.path / name, content)
    except OSError as error:
        raise BundleError(
            f"Cannot write into the bundle {bundle.path}: {error.strerror or error}. Write the "
            "report elsewhere with --html FILE."
        ) from error
