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
from ..errors import EngineError, UsageError
from ..loading import open_model
from ..progress import Tracker, silent
from .inputs import Inputs, answers
from .journal import Journal, Run
from .models import default_top_k
from .on_ray import RayOptions, rows_on_ray
from .table import require_parquet

__all__ = ["Written", "predict_to_file"]

_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Written:
    """What an output holds.

    Parameters
    ----------
    rows, errors : how many rows it has, and how many of them are errors.
    continued : how many an earlier run left.
    engine : the name of the engine that answered; None where there was nothing to answer.
    """

    rows: int
    errors: int
    continued: int
    engine: str | None


def predict_to_file(
    bundle: Bundle | str | os.PathLike[str],
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    top_k: int | None = None,
    engine: str = "auto",
    ray: RayOptions | None = None,
    restart: bool = False,
    track: Tracker = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> Written:
    """Classify inputs into ``FILE.jsonl`` or ``FILE.parquet``, one row per input, in their order.

    Rows are kept in ``OUT.partial/`` until all are there. The same call again, after a kill, an
    error or Ctrl-C, continues behind the last whole row; another bundle, list of inputs or option
    is refused, and so is ``auto`` where it takes another engine than before.

    Parameters
    ----------
    top_k : classes per image, or boxes per photograph of a detector; None is 5, or 100.
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
    top_k = default_top_k(opened) if top_k is None else top_k
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
                for name, row in track(rows, total=len(todo), label="predict"):
                    journal.answered_by(name)
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
        journal.finish(boxes=opened.is_detector)
        return Written(journal.rows, journal.errors, journal.continued, journal.engine)


def _rows_here(
    bundle: Bundle, inputs: Inputs, places: range, top_k: int, engine: str
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    if places:
        with open_model(bundle, engine) as model:
            for answer in answers(model, inputs, places, top_k):
                yield model.engine.name, answer.to_dict()
