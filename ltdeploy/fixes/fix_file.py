"""``fix.json``: fixes that are asked for, or one that was fitted and chosen already."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from ..classes import ClassTable
from ..errors import DataError, FixError, did_you_mean
from ..files import write_whole
from .affine import AffineMap
from .encoding import ArrayEntry, MethodEntry, SelectionEntry, Step, Strict, decode
from .logit_map import LogitMap
from .maps import NewHead, compose, steps_of
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
_MOST_STEPS = 32
_MOST_OTHER_COLUMNS = 2  # of a detector's head: background, and with seesaw an objectness
_LARGEST_NUMBER = 1e30  # times any logit it is still far from float32's end, 3.4e38
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
    class_names, train_counts : of the classes it was fitted for, in label order; None where they
        were not known. A detector's have no entry for the one or two columns that are no class.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    methods: Annotated[tuple[MethodEntry, ...], Field(max_length=_MOST_STEPS)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=_MOST_STEPS)] | None = None
    checkpoint: CheckpointEntry | None = None
    selected_on: FixSelection | None = None
    class_names: tuple[str, ...] | None = None
    train_counts: tuple[Annotated[int, Field(strict=True, ge=0, le=2**53)], ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FixFile:
        if self.steps is None:
            for key in ("checkpoint", "selected_on", "class_names", "train_counts"):
                if getattr(self, key) is not None:
                    raise ValueError(f"there is {key!r}, which needs 'steps'")
            self.specs()
            return self
        for entry in self.methods:
            if entry.method not in FIXES:
                raise FixError(
                    f"Unknown fix {entry.method!r}; expected one of {', '.join(FIXES)}."
                    f"{did_you_mean(entry.method, FIXES)}"
                )
        fitted = _usable(self.steps)
        if not self.methods and not fitted.is_identity:
            raise ValueError("there are 'steps' and in 'methods' nothing that made them")
        self._require_classes(fitted.classes)
        return self

    def _require_classes(self, columns: int) -> None:
        lists = {"class_names": self.class_names, "train_counts": self.train_counts}
        sizes = {key: len(told) for key, told in lists.items() if told is not None}
        classes = next(iter(sizes.values()), columns)
        for key, size in sizes.items():
            if not columns - _MOST_OTHER_COLUMNS <= size <= columns:
                raise ValueError(f"{key!r} has {size} entries and 'steps' {columns} classes")
            if size != classes:
                raise ValueError(f"{key!r} has {size} entries and 'class_names' {classes}")
        try:
            ClassTable.from_counts(self.train_counts or [1] * classes, self.class_names)
        except DataError as error:
            raise FixError(str(error)) from error

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
    if not path.exists():
        raise FixError(
            f"There is no fix file at {path}; 'ltdeploy calibrate CKPT --val DATA --out {path}' "
            "writes one."
        )
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise FixError(f"The fix file {path} is larger than {_LARGEST_FILE_BYTES >> 20} MiB.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FixError(f"Cannot read the fix file {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise FixError(
            f"The fix file {path} is not JSON ({error}): it was cut short or damaged. Write it "
            "again with 'ltdeploy calibrate'."
        ) from error
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


def _usable(steps: tuple[Step, ...]) -> LogitMap:
    """Return the map of the steps; refuse one that float32 cannot hold or that loses everything."""
    singles = [decode((step,)) for step in steps]
    _require_moderate(singles)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
        whole = compose(*singles)
    _require_moderate(steps_of(whole))
    for step in steps_of(whole):
        rows = step.scale if isinstance(step, AffineMap) else None
        if isinstance(step, NewHead):
            rows = step.weight
        if rows is not None and not (np.ptp(rows, axis=0).any() if rows.ndim == 2 else rows.any()):
            raise FixError(
                "the map gives every image the same answer: it does not look at the logits or "
                "features. Write it again with 'ltdeploy calibrate'."
            )
    return whole


def _require_moderate(steps: Iterable[LogitMap]) -> None:
    for step in steps:
        for name, value in vars(step).items():
            largest = 0.0 if value is None else float(np.abs(value).max(initial=0.0))
            if largest > _LARGEST_NUMBER:
                raise FixError(
                    f"the {name} of the {type(step).__name__} holds {largest:g}, with which logits "
                    f"overflow in float32; expected numbers up to {_LARGEST_NUMBER:g}. Write it "
                    "again with 'ltdeploy calibrate'."
                )


def _complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        key = str(first["loc"][0])
        known = [field.alias or name for name, field in FixFile.model_fields.items()]
        return f"has the unknown key {key!r}.{did_you_mean(key, known)}"
    if first["type"] == "too_long":
        return f"has more than {_MOST_STEPS} {first['loc'][0]}, which no fix takes."
    where = ".".join(str(part) for part in first["loc"]) or "the top"
    return f"is not valid at {where}: {first['msg'].removeprefix('Value error, ')}."
