"""A parquet file in the Hugging Face image layout."""

from __future__ import annotations

import bisect
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._optional import require
from ..errors import DataError, ImageError
from .base import Dataset

__all__ = ["ParquetDataset"]

_LABEL_COLUMNS = ("label", "labels", "fine_label", "target")
# Enough to hold CIFAR-sized files whole, so that shuffled access does not read groups again.
_CACHE_BYTES = 256 * 2**20


class ParquetDataset(Dataset):
    """Encoded images and integer labels of one parquet file, read one row group at a time.

    The image column is a struct of ``bytes`` and ``path`` (either may be null; a path begins at the
    file's folder) or plain binary. Class names stand in the schema's ``huggingface`` metadata.

    Parameters
    ----------
    labelled : False does not look at labels, and does without them; every label is 0 then.

    Raises
    ------
    DataError
        If the file is not parquet, or has no image or no label column.
    """

    def __init__(self, path: Path, *, labelled: bool = True) -> None:
        pyarrow = require("pyarrow", extra="verify", purpose="read parquet files")
        parquet = require("pyarrow.parquet", extra="verify", purpose="read parquet files")
        self._path = path
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}.") from error
        schema = self._file.schema_arrow
        self._column = _image_column(schema, pyarrow, path)
        metadata = self._file.metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [int(start) for start in np.cumsum([0, *rows])]
        self._groups: OrderedDict[int, _RowGroup] = OrderedDict()
        self._cached_bytes = 0
        # ParquetFile is not made for several threads, and reading a group twice helps nobody.
        self._lock = threading.Lock()
        names: tuple[str, ...] | None = None
        labels = np.zeros(sum(rows), dtype=np.int64)
        if labelled:
            label_column = _label_column(schema, pyarrow, path)
            names = _class_names(_features(schema.metadata).get(label_column))
            labels = self._labels(label_column)
        super().__init__(path.name, names, labels)

    def _labels(self, label_column: str) -> npt.NDArray[np.int64]:
        column = self._file.read(columns=[label_column]).column(0)
        if column.null_count:
            raise DataError(
                f"{self._path} has {column.null_count} rows without a value in the label column "
                f"{label_column!r}; expected a whole number in every row."
            )
        labels: npt.NDArray[np.int64] = column.to_numpy().astype(np.int64)
        return labels

    def source(self, index: int) -> bytes | Path:
        group = bisect.bisect_right(self._starts, index) - 1
        encoded, path = self._group(group).row(index - self._starts[group])
        if encoded is not None:
            return encoded
        if path is not None:
            return self._path.parent / path
        raise ImageError(f"{self.identifier(index)} holds neither bytes nor a path.")

    def identifier(self, index: int) -> str:
        return f"{self.name}#{index}"

    def _group(self, group: int) -> _RowGroup:
        with self._lock:
            cached = self._groups.get(group)
            if cached is not None:
                self._groups.move_to_end(group)
                return cached
            loaded = _RowGroup(self._file.read_row_group(group, columns=[self._column]).column(0))
            self._groups[group] = loaded
            self._cached_bytes += loaded.size_bytes
            while self._cached_bytes > _CACHE_BYTES and len(self._groups) > 1:
                _, dropped = self._groups.popitem(last=False)
                self._cached_bytes -= dropped.size_bytes
            return loaded


class _RowGroup:
    """The image column of one row group."""

    def __init__(self, column: Any) -> None:
        self.size_bytes: int = column.nbytes
        self._column = column

    def row(self, row: int) -> tuple[bytes | None, str | None]:
        value = self._column[row].as_py()
        if isinstance(value, dict):
            return value.get("bytes"), value.get("path")
        return value, None


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Return the ``features`` of the schema's ``huggingface`` metadata, empty where there are none.

    Damaged metadata only costs the class names, so it counts as none.
    """
    try:
        info = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = info["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_column(schema: Any, pyarrow: Any, path: Path) -> str:
    for field in schema:
        kind = field.type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return str(field.name)
        if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
            return str(field.name)
    raise DataError(
        f"{path} has the columns {', '.join(schema.names)} and no image among them; expected a "
        "column of encoded images, struct<bytes, path>, as Hugging Face's data sets write it."
    )


def _label_column(schema: Any, pyarrow: Any, path: Path) -> str:
    integers = [str(field.name) for field in schema if pyarrow.types.is_integer(field.type)]
    for name in _LABEL_COLUMNS:
        if name in integers:
            return name
    if len(integers) == 1:
        return integers[0]
    raise DataError(
        f"{path} has the whole-number columns {', '.join(integers) or '(none)'}; expected one "
        f"called {', '.join(_LABEL_COLUMNS[:-1])} or {_LABEL_COLUMNS[-1]}."
    )


def _class_names(feature: object) -> tuple[str, ...] | None:
    if not isinstance(feature, dict):
        return None
    names = feature.get("names")
    if isinstance(names, dict):  # older data sets number them: {"0": "cat", "1": "dog"}
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)
