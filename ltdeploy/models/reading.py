"""From a path to what the file holds: recognise its kind, read it safely, or say why not."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._optional import require
from ..arrays import file_sha256
from ..errors import CheckpointError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Content", "check_path", "read_content", "read_json", "read_weights", "source_sha256"]

_SUFFIXES = (".pt", ".pth", ".tar", ".th", ".ckpt", ".bin", ".pkl", ".safetensors", ".onnx")
Kind = Literal["pickle", "safetensors", "hf"]


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds, before anybody has made sense of it.

    Parameters
    ----------
    kind : how it was stored.
    data : the unpickled object; for safetensors and Hugging Face folders the tensors by key.
    metadata : the strings in a safetensors header, or a folder's ``config.json``.
    """

    kind: Kind
    data: Any
    metadata: dict[str, Any] = field(default_factory=dict)


def check_path(path: Path) -> None:
    """Raise unless something that could be a checkpoint stands at `path`.

    Raises
    ------
    CheckpointError
        For a wrong path (with the nearest sibling), a folder without a model, or an empty file.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return
        inside = sorted(p.name for p in path.iterdir() if p.name.endswith(_SUFFIXES))
        listed = f" It contains {', '.join(inside[:5])}: name one of these." if inside else ""
        if (path / "manifest.json").is_file():
            listed = " It looks like an exported bundle, which needs no loading as a checkpoint."
        raise CheckpointError(
            f"{path} is a folder without a config.json; expected a checkpoint file "
            f"({', '.join(_SUFFIXES)}) or a Hugging Face model folder.{listed}"
        )
    if not path.exists():
        parent = path.parent
        if not parent.is_dir():
            raise CheckpointError(f"There is no checkpoint {path}: the folder {parent} is missing.")
        hint = did_you_mean(path.name, [p.name for p in parent.iterdir()])
        raise CheckpointError(f"There is no checkpoint {path}.{hint}")
    if not path.is_file():
        raise CheckpointError(f"{path} is neither a file nor a folder; expected a checkpoint.")
    if path.stat().st_size == 0:
        raise CheckpointError(
            f"{path} is empty (0 bytes); the copy or the training run that wrote it did not finish."
        )


def read_content(path: Path, *, trust_pickle: bool = False) -> Content:
    """Read a checkpoint file or a Hugging Face folder.

    Raises
    ------
    CheckpointError
        If it cannot be read, with what it looks like instead.
    UnsafeCheckpointError
        If loading it would run code.
    """
    check_path(path)
    try:
        if path.is_dir():
            return Content("hf", read_weights(path), read_json(path / "config.json"))
        with path.open("rb") as file:
            head = file.read(512)
        if path.suffix == ".safetensors" or _is_safetensors(head):
            tensors, metadata = _read_safetensors(path)
            return Content("safetensors", tensors, metadata)
        _refuse_foreign(path, head)
        return Content("pickle", _load_pickle(path, trust_pickle))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}. Check the file's permissions."
        ) from error


def _load_pickle(path: Path, trust: bool) -> Any:
    safe = require("ltdeploy.models.safe_pickle", extra="torch", purpose="read checkpoints")
    return safe.load_pickle(path, trust=trust)


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Raise if the first bytes, or the members of a zip, show something else than a checkpoint."""
    text = head.lstrip().lower()
    looks_like = None
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        looks_like = "a web page: the download gave a login or error page instead of the file"
    elif head.startswith(b"\x89HDF"):
        looks_like = "an HDF5 file, as Keras writes; export that model to ONNX and give the .onnx"
    elif head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")):
        looks_like = "a compressed archive; unpack it first and give the file inside"
    elif head.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        looks_like = "an image"
    elif head[257:262] == b"ustar":
        looks_like = (
            "a tar archive. If it is one in which PyTorch before 0.2 stored checkpoints, load and "
            "save it again with a PyTorch of that time; otherwise unpack it and give the file "
            "inside (the .pth.tar of today's training codes is not a tar archive)"
        )
    elif _is_text(head):
        looks_like = "a text file"
    if looks_like:
        raise CheckpointError(f"{path} is not a checkpoint: it looks like {looks_like}.")
    if head.startswith(b"PK"):
        _refuse_foreign_zip(path)


def _refuse_foreign_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is cut short: its beginning is a torch.save file, its end is missing "
            f"({path.stat().st_size:,} bytes are here). Copy or download it again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is a damaged zip file: {error}. Copy it again.") from error
    parts = {part for name in names for part in name.split("/")}
    if "constants.pkl" in parts:
        raise CheckpointError(
            f"{path} is a TorchScript program (torch.jit.save), whose graph cannot be fixed and "
            "exported here. Save the weights of the model it was made from: "
            "torch.save(model.state_dict(), 'weights.pt'), or export that model to ONNX."
        )
    if "archive_format" in parts or "serialized_exported_program.json" in parts:
        raise CheckpointError(
            f"{path} is an exported program (.pt2, torch.export.save). Loading these runs code "
            "from the file, so ltdeploy does not. Give the model's weights "
            "(torch.save(model.state_dict(), 'weights.pt')) or its ONNX export."
        )
    if "data.pkl" not in parts:
        kind = "NumPy arrays (.npz)" if any(n.endswith(".npy") for n in names) else "a zip archive"
        raise CheckpointError(
            f"{path} is not a checkpoint: it looks like {kind}, with {', '.join(names[:3])} inside."
        )


def _is_text(head: bytes) -> bool:
    # Protocol-0 pickles are text too, and torch.save can be told to write them.
    if head.startswith((b"(", b"c", b"\x80", b"I", b"L")) and b"\n" in head and b"." in head:
        return False
    try:
        return head.decode("utf-8").isprintable() or not any(b < 9 for b in head)
    except UnicodeDecodeError as error:
        # A character may be cut where the sample ends.
        return error.start > len(head) - 4 and not any(b < 9 for b in head[: error.start])


def _is_safetensors(head: bytes) -> bool:
    """Whether the file begins with a plausible header length and the JSON of safetensors."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    library = require("safetensors", extra="torch", purpose="read .safetensors files")
    try:
        with library.safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except library.SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. It is damaged or cut short; copy or "
            "download it again."
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a Hugging Face folder, sharded or not, safetensors before pickles.

    Raises
    ------
    CheckpointError
        If there are no PyTorch weights in it, or a shard is missing or outside the folder.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return _read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            shards = read_json(index).get("weight_map", {})
            for shard in sorted(set(shards.values())):
                file = folder / str(shard)
                if file.parent.resolve() != folder.resolve() or not file.is_file():
                    raise CheckpointError(
                        f"{index} names the shard {shard!r}, which is not a file in {folder}."
                    )
                tensors |= _read_tensors(file)
            return tensors
    raise CheckpointError(
        f"{folder} has a config.json and no weights; expected model.safetensors or "
        "pytorch_model.bin (or their .index.json with shards)."
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    loaded: dict[str, Tensor] = _load_pickle(path, False)
    return loaded


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    CheckpointError
        If it is not JSON or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; expected an object.")
    return value


def source_sha256(path: Path) -> str:
    """Return the sha256 of a checkpoint file; for a folder, of its config and weights together."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin"):
            digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
