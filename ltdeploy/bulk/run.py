"""Classify many images into a file that a killed process loses nothing of."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arrays import file_sha256
from ..bundle import Bundle, open_bundle
from ..engines import open_engine
from ..errors import EngineError, UsageError
from ..predictor import Predictor
from ..progress import Tracker, silent
from .inputs import Inputs, answers
from .journal import Journal, Run
from .on_ray import RayOptions, rows_on_ray
from .table import require_parquet

__all__ = ["Written", "predict_to_file"]

_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Written:
    """How many rows an output has, how many of them are errors, and how many were there before."""

    rows: int
    errors: int
    continued: int


def predict_to_file(
    bundle: Bundle | str | os.PathLike[str],
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    top_k: int = 5,
    engine: str = "auto",
    ray: RayOptions | None = None,
    restart: bool = False,
    track: Tracker = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> Written:
    """Classify inputs into ``FILE.jsonl`` or ``FILE.parquet``, one row per input, in their order.

    Rows are kept in ``OUT.partial/`` until all are there. The same call again, after a kill, an
    error or Ctrl-C, continues behind the last whole row; another bundle, list of inputs or option
    is refused.

    Parameters
    ----------
    ray : None runs in this process; otherwise on a Ray cluster, see
        :func:`ltdeploy.bulk.on_ray.rows_on_ray`. Either can continue what the other began.
    restart : drop what an earlier run left, and begin again.
    warn : told the error of each input that cannot be used.

    Raises
    ------
    UsageError
        If ``out`` has another ending, cannot be written, or holds the beginning of another run.
    BundleError, EngineError, MissingExtraError
        As :func:`ltdeploy.load`; an engine that fails on the way names the images it failed on.
    """
    path = Path(out)
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--out is {str(out)!r}; expected a name that ends in .jsonl or .parquet.")
    if path.suffix == ".parquet":
        require_parquet()  # now, and not after the work
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    run = Run(
        bundle=file_sha256(opened.path / "manifest.json"),
        images=len(inputs),
        inputs=inputs.fingerprint(),
        top_k=top_k,
        engine=engine,
    )
    with Journal(path, run, inputs, restart=restart) as journal:
        todo = range(journal.rows, len(inputs))
        if ray is None:
            rows = _rows_here(opened, inputs, todo, top_k, engine)
        else:
            rows = rows_on_ray(opened, inputs, todo, top_k, engine, ray)
        with closing(rows):
            try:
                for row in track(rows, total=len(todo), label="predict"):
                    journal.write(row)
                    if "error" in row:
                        warn(row["error"])
            except EngineError as error:
                if not journal.rows:
                    raise
                raise EngineError(
                    f"{error} The {journal.rows} rows before are kept in {journal.folder}; the "
                    "same command goes on behind them."
                ) from error
        journal.finish()
        return Written(journal.rows, journal.errors, journal.continued)


def _rows_here(
    bundle: Bundle, inputs: Inputs, places: range, top_k: int, engine: str
) -> Generator[dict[str, Any], None, None]:
    if places:
        with Predictor(bundle, open_engine(bundle, engine)) as model:
            for answer in answers(model, inputs, places, top_k):
                yield answer.to_dict()
