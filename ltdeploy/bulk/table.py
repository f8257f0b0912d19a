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


def write_table(rows: Path, out: Path) -> None:
    """Write JSON lines as parquet, whole or not at all, a row group at a time.

    Columns: ``input`` text; ``top`` a list of ``label`` int32, ``name`` text, ``prob`` float32,
    ``group`` text, null where there is an error; ``error`` text or null.

    Parameters
    ----------
    rows : JSON lines as :meth:`ltdeploy.predictor.Prediction.to_dict` makes them.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    pyarrow, parquet = require_parquet()
    score = pyarrow.struct(
        [
            ("label", pyarrow.int32()),
            ("name", pyarrow.string()),
            ("prob", pyarrow.float32()),
            ("group", pyarrow.string()),
        ]
    )
    schema = pyarrow.schema(
        [("input", pyarrow.string()), ("top", pyarrow.list_(score)), ("error", pyarrow.string())]
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
