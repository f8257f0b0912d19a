"""``fix.json``: fixes that are asked for, or one that was fitted and chosen already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from ..errors import FixError, did_you_mean
from ..files import write_whole
from .encoding import ArrayEntry, MethodEntry, SelectionEntry, Step, Strict, decode
from .logit_map import LogitMap
from .spec import FIXES, FixSpec, parse_spec

__all__ = [
    "CheckpointEntry",
    "FixFile",
    "FixSelection",
    "parse_fix",
    "read_fix_file",
    "write_fix_file",
]

_SCHEMA = 1
_LARGEST_FILE_BYTES = 256 << 20
_EXAMPLE = '{"schema": 1, "methods": [{"method": "tau_norm", "parameters": {"tau": 0.7}}]}'


class CheckpointEntry(Strict):
    """The checkpoint that a fix was fitted on."""

    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _HashesEntry(ArrayEntry):
    dtype: Literal["<u8"]
    shape: tuple[Annotated[int, Field(strict=True, ge=0)]]


class FixSelection(SelectionEntry):
    """The images that chose the fix, with their fingerprints: no figure may come from them."""

    hashes: _HashesEntry

    @staticmethod
    def packed(hashes: npt.NDArray[np.uint64]) -> _HashesEntry:
        """Return fingerprints, shape (M,), in the form of the field ``hashes``."""
        entry = _HashesEntry.of(np.unique(np.asarray(hashes, dtype=np.uint64)))
        assert isinstance(entry, _HashesEntry)
        return entry

    def entry(self) -> SelectionEntry:
        """Return the same without the fingerprints, as it stands in a manifest."""
        return SelectionEntry.model_validate(self.model_dump(exclude={"hashes"}))


class FixFile(Strict):
    """What a ``fix.json`` holds.

    Attributes
    ----------
    methods : fixes in order, as :class:`FixSpec` takes them.
    steps : the fitted map; None where the methods are still to be fitted.
    checkpoint : what it was fitted on; None where that is not known.
    selected_on : the images that chose it; None where none did.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    methods: tuple[MethodEntry, ...]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)] | None = None
    checkpoint: CheckpointEntry | None = None
    selected_on: FixSelection | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FixFile:
        if self.steps is None:
            if self.checkpoint is not None or self.selected_on is not None:
                raise ValueError("there are 'checkpoint' or 'selected_on', which need 'steps'")
            self.specs()
            return self
        for entry in self.methods:
            if entry.method not in FIXES:
                raise FixError(
                    f"Unknown fix {entry.method!r}; expected one of {', '.join(FIXES)}."
                    f"{did_you_mean(entry.method, FIXES)}"
                )
        decode(self.steps)
        return self

    def specs(self) -> list[FixSpec]:
        """Return the methods as fixes to be fitted."""
        return [FixSpec(entry.method, dict(entry.parameters)) for entry in self.methods]

    def logit_map(self) -> LogitMap | None:
        """Return the fitted map; None where there is none."""
        return None if self.steps is None else decode(self.steps)

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return the fingerprints of the images that chose the fix, shape (M,)."""
        if self.selected_on is None:
            return np.empty(0, dtype=np.uint64)
        return self.selected_on.hashes.array()


def parse_fix(text: str) -> list[FixSpec | FixFile]:
    """Read ``NAME[:k=v,…]`` or the path of a ``.json`` file, whose methods may be fitted already.

    Raises
    ------
    FixError
        If it names an unknown method or parameter, or as :func:`read_fix_file`.
    """
    if not text.endswith(".json"):
        return [parse_spec(text)]
    file = read_fix_file(Path(text))
    return list(file.specs()) if file.steps is None else [file]


def write_fix_file(path: Path, content: FixFile) -> None:
    """Write a fix file whole or not at all.

    Raises
    ------
    FixError
        If it cannot be written.
    """
    text = content.model_dump_json(by_alias=True, indent=1) + "\n"
    try:
        write_whole(path, text.encode("utf-8"))
    except OSError as error:
        raise FixError(
            f"Cannot write the fix file {path}: {error.strerror or error}. Choose another place "
            "with --out FILE."
        ) from error


def read_fix_file(path: Path) -> FixFile:
    """Read a fix file, strictly; docs/bundle.md specifies it.

    Raises
    ------
    FixError
        If the file is absent, is not JSON, is of another schema, or anything in it is not as
        specified; the text says where.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise FixError(f"The fix file {path} is larger than {_LARGEST_FILE_BYTES >> 20} MiB.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FixError(f"Cannot read the fix file {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise FixError(f"The fix file {path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise FixError(f"The fix file {path} is not a JSON object; expected {_EXAMPLE}.")
    for key in ("schema", "methods"):
        if key not in content:
            raise FixError(f"The fix file {path} lacks {key!r}; expected {_EXAMPLE}.")
    schema = content["schema"]
    if schema != _SCHEMA or isinstance(schema, bool):
        raise FixError(
            f"The fix file {path} has the schema {schema!r}; this version reads {_SCHEMA}."
        )
    try:
        return FixFile.model_validate(content)
    except ValidationError as error:
        raise FixError(f"The fix file {path} {_complaint(error)}") from error
    except FixError as error:
        raise FixError(f"The fix file {path} cannot be used: {error}") from error


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        key = str(first["loc"][0])
        known = [field.alias or name for name, field in FixFile.model_fields.items()]
        return f"has the unknown key {key!r}.{did_you_mean(key, known)}"
    where = ".".join(str(part) for part in first["loc"]) or "the top"
    return f"is not valid at {where}: {first['msg']}."
