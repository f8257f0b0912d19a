"""From a choice for a detector to the ``fix.json`` that export takes."""

from __future__ import annotations

import numpy as np

from ...fixes import CheckpointEntry, FixFile, FixSelection, MethodEntry, encode
from .evidence import BoxEvidence
from .result import BoxCalibration

__all__ = ["fix_file_of_boxes"]


def fix_file_of_boxes(done: BoxCalibration, evidence: BoxEvidence) -> FixFile:
    """Return the chosen fix with its map, its checkpoint and the photographs that chose it.

    The map is over all columns of the head, class names and counts are of the foreground.
    """
    hashes = evidence.hashes if evidence.hashes is not None else np.empty(0, dtype=np.uint64)
    table, made = evidence.classes, evidence.checkpoint
    return FixFile(
        methods=tuple(MethodEntry.model_validate(one) for one in done.chosen.methods()),
        steps=encode(done.fix),
        checkpoint=None if made is None else CheckpointEntry(name=made[0], sha256=made[1]),
        selected_on=FixSelection(
            name=evidence.name,
            images=done.images,
            objective=done.aim.objective,
            balanced_before=done.before.figures.ap,
            balanced_after=done.chosen.figures.ap,
            notes=(done.reason,),
            hashes=FixSelection.packed(hashes),
        ),
        class_names=table.names if table.is_named else None,
        train_counts=table.counts,
    )
