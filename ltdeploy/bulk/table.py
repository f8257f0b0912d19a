"""Answers as a parquet file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from .._optional import require
from ..files import replacing

__all__ = ["require_parquet", "write_table"]

_ROWS_PER_GROUP = 10_000


def require_parquet() -> tuple[Any, Any]:
    """Return pyarrow and its parquet module, or say which extra brings them."""
    purpose = "write parquet files"
    return (
        require("pyarrow", extra="verify", purpose=purpose),
        require("pyarrow.parquet", extra="verify", purpose=purpose),
    )


def write_table(rows: Path, out: Path, *, boxes: bool = False) -> None:
    """Write JSON lines as parquet, whole or not at all, a row group at a time.

    Columns: ``input`` text; ``top`` a list of ``label`` int32, ``name`` text, ``prob`` float32,
    ``group`` text, null where there is an error; ``error`` text or null. Of a detector ``boxes`` in
    place of ``top``: ``label``, ``name``, ``score``, ``box`` (four float32, xyxy in pixels),
    ``mask`` (``size`` and ``counts`` of int32, null where the model gives none), ``group``.

    Parameters
    ----------
    rows : JSON lines as ``to_dict`` of :class:`ltdeploy.predictor.Prediction` or of
        :class:`ltdeploy.detector.DetectionResult` makes them.
    boxes : whether they are a detector's.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    pyarrow, parquet = require_parquet()
    fields = [("label", pyarrow.int32()), ("name", pyarrow.string())]
    if boxes:
        box = pyarrow.list_(pyarrow.float32(), 4)
        lengths = pyarrow.list_(pyarrow.int32())
        mask = pyarrow.struct([("size", lengths), ("counts", lengths)])
        fields += [("score", pyarrow.float32()), ("box", box), ("mask", mask)]
    else:
        fields.append(("prob", pyarrow.float32()))
    found = pyarrow.list_(pyarrow.struct([*fields, ("group", pyarrow.string())]))
    schema = pyarrow.schema(
        [
            ("input", pyarrow.string()),
            ("boxes" if boxes else "top", found),
            ("error", pyarrow.string()),
        ]
    )
    with (
        rows.open(encoding="utf-8") as lines,
        replacing(out) as temporary,
        parquet.ParquetWriter(temporary, schema) as writer,
    ):
        while batch := [_row(line) for line in itertools.islice(lines, _ROWS_PER_GROUP)]:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def _row(line: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    for name in ("input", "error"):
        if name in row:  # parquet's texts are UTF-8, which file names need not be
            row[name] = row[name].encode("utf-8", "backslashreplace").decode()
    return row
