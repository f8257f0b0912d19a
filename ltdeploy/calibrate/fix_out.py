"""From a choice to the ``fix.json`` that export takes."""

from __future__ import annotations

import numpy as np

from ..fixes import CheckpointEntry, FixFile, FixSelection, MethodEntry, encode
from .evidence import Evidence
from .result import Calibration

__all__ = ["fix_file_of"]


def fix_file_of(done: Calibration, evidence: Evidence) -> FixFile:
    """Return the chosen fix with its fitted map, its checkpoint and the images that chose it.

    The classes go in too: a checkpoint may know less of them than the arrays or data did.
    """
    hashes = evidence.hashes if evidence.hashes is not None else np.empty(0, dtype=np.uint64)
    table = evidence.classes
    before, after = done.before.figures.balanced, done.chosen.figures.balanced
    return FixFile(
        methods=tuple(MethodEntry.model_validate(one) for one in done.chosen.methods()),
        steps=encode(done.fix),
        checkpoint=(
            None
            if evidence.checkpoint is None
            else CheckpointEntry(name=evidence.checkpoint[0], sha256=evidence.checkpoint[1])
        ),
        selected_on=FixSelection(
            name=evidence.name,
            images=done.images,
            objective=done.aim.objective,
            balanced_before=None if before is None else before.value,
            balanced_after=None if after is None else after.value,
            notes=(done.reason,),
            hashes=FixSelection.packed(hashes),
        ),
        class_names=table.names if table.is_named else None,
        train_counts=table.counts,
    )
