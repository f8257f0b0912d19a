"""Run both sides over the same images and judge what happened to the tail."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..bundle import Bundle, open_bundle
from ..datasets import Batch, Dataset, Loader, align_labels
from ..errors import DataError, numbered
from ..inference import batch_size_for, fingerprints
from ..models.options import LoadOptions
from ..progress import Tracker, silent
from .assess import Accumulator
from .contenders import (
    Contender,
    bundle_contender,
    checkpoint_contender,
    is_bundle,
    reference_of,
    require_same_classes,
)
from .gate import check_margin
from .result import VerifyResult, name_some

__all__ = ["Verification", "compare_models", "verify_bundle"]

_MOST_SHARED = 0.01  # of the images of a data set


@dataclass(frozen=True, eq=False)
class Verification:
    """A verdict and everything a report needs to explain it.

    Attributes
    ----------
    dataset : what it was measured on.
    unreadable : identifier and reason of every image that could not be used.
    names : of reference and candidate.
    provenance : what was verified and how, by label.
    seconds : time in the reference's engine, the candidate's engine, and in all.
    """

    result: VerifyResult
    dataset: Dataset
    unreadable: tuple[tuple[str, str], ...]
    names: tuple[str, str]
    provenance: dict[str, str]
    seconds: dict[str, float]


def verify_bundle(
    bundle: Bundle | str | os.PathLike[str],
    dataset: Dataset,
    *,
    reference: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    margin: float = 1.0,
    trust_pickle: bool = False,
    track: Tracker = silent,
) -> Verification:
    """Measure a bundle against its reference on ``dataset``.

    Parameters
    ----------
    reference : a checkpoint or another bundle; None takes the file it was exported from.
    margin : points of class-averaged accuracy that a group may lose.

    Raises
    ------
    DataError
        If more than one in a hundred images of ``dataset`` chose the bundle's fix, labels do not
        fit, or nothing is readable.
    CheckpointError, BundleError, EngineError
    """
    check_margin(margin)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    before = reference_of(opened, reference, trust_pickle=trust_pickle)
    after = bundle_contender(opened, engine)
    methods = opened.manifest.fix.methods
    listed = "; ".join(
        f"{m.method}({', '.join(f'{k}={v}' for k, v in m.shown().items())})" for m in methods
    )
    provenance = {
        "Bundle": opened.path.name,
        "Graph sha256": opened.manifest.files[opened.manifest.graphs[0].file].sha256,
        "Checkpoint sha256": opened.manifest.source.sha256,
        "Fix": listed or "none",
    }
    return _measure(before, after, dataset, margin, provenance, track)


def compare_models(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    dataset: Dataset,
    *,
    options: LoadOptions | None = None,
    margin: float = 1.0,
    track: Tracker = silent,
) -> Verification:
    """Compare two bundles or checkpoints class by class, ``a`` being the reference."""
    check_margin(margin)
    sides = [
        bundle_contender(open_bundle(path))
        if is_bundle(path)
        else checkpoint_contender(path, options)
        for path in (a, b)
    ]
    return _measure(sides[0], sides[1], dataset, margin, {}, track, with_unfixed=False)


def _measure(
    reference: Contender,
    candidate: Contender,
    dataset: Dataset,
    margin: float,
    provenance: dict[str, str],
    track: Tracker,
    *,
    with_unfixed: bool = True,
) -> Verification:
    require_same_classes(reference.classes, candidate.classes, reference.name, candidate.name)
    labels = align_labels(dataset, candidate.classes)
    started = time.perf_counter()
    accumulator = Accumulator(candidate.classes)
    hashes: list[npt.NDArray[np.uint64]] = []
    size = batch_size_for(candidate.preprocessing)
    loader = Loader(dataset, labels, candidate.preprocessing, batch_size=size)
    batches: Iterator[tuple[Batch, Batch]]
    if reference.preprocessing == candidate.preprocessing:
        batches = ((batch, batch) for batch in loader)
    else:
        # Which images are readable does not depend on their size, so both stay in step.
        other = Loader(dataset, labels, reference.preprocessing, batch_size=size)
        batches = zip(other, loader, strict=True)
    total = -(-len(dataset) // size)
    chose = (_ImagesThatChose(reference, dataset), _ImagesThatChose(candidate, dataset))
    for before, after in track(batches, total=total, label="verify"):
        if not np.array_equal(before.indices, after.indices):
            raise DataError(
                f"An image of {dataset.name} was readable once and unreadable a moment later; the "
                "two models would be compared on different images. Run again."
            )
        hashes.append(fingerprints(after.images))
        other_hashes = hashes[-1] if before is after else fingerprints(before.images)
        # What chose a fix was decoded in full, even where the candidate decodes JPEG files scaled.
        seen = (other_hashes, hashes[-1])
        kept = ~(chose[0].among(before, other_hashes) | chose[1].among(after, *seen))
        names = [dataset.identifier(int(index)) for index in after.indices]
        fixed, raw = reference.run(before.images, names)
        answered, _ = candidate.run(after.images, names)
        unfixed = reference.unfixed(raw) if with_unfixed else None
        if kept.any():
            accumulator.update(
                after.labels[kept],
                fixed[kept],
                answered[kept],
                None if unfixed is None else unfixed[kept],
                after.indices[kept],
            )
    result = accumulator.result(margin, unreadable=len(loader.unreadable))
    wall = time.perf_counter() - started
    for side in (reference, candidate):
        side.engine.close()
    described = {
        **provenance,
        "Candidate": f"{candidate.name} on {candidate.engine.name}",
        "Reference": f"{reference.name} on {reference.engine.name}",
        "Data": f"{dataset.name}, {result.images:,} images",
        "Data fingerprint": _digest(hashes),
        "Date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ltdeploy": __version__,
    }
    told = (*reference.notes, *candidate.notes, *(side.note() for side in chose))
    notes = tuple(dict.fromkeys(note for note in told if note))
    if notes:
        described["Note"] = "; ".join(notes)
    seconds = {"reference": reference.seconds, "candidate": candidate.seconds, "total": wall}
    return Verification(
        result=replace(
            result, notes=notes, not_computed=candidate.not_computed or reference.not_computed
        ),
        dataset=dataset,
        unreadable=tuple(loader.unreadable),
        names=(reference.name, candidate.name),
        provenance=described,
        seconds=seconds,
    )


def _digest(hashes: list[npt.NDArray[np.uint64]]) -> str:
    """Return 128 bits for a data set as a model saw it, whatever the order of its images."""
    return hashlib.blake2b(np.sort(np.concatenate(hashes)).tobytes(), digest_size=16).hexdigest()


class _ImagesThatChose:
    """Finds images that chose a side's fix: a few are left out, more are refused.

    Large collections hold a few pictures twice, so that one may stand on both sides of a split.
    """

    def __init__(self, side: Contender, dataset: Dataset) -> None:
        self._side = side
        self._dataset = dataset
        self._found: list[str] = []

    def among(self, batch: Batch, *hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which images of a batch chose the fix, array of shape (N,).

        Parameters
        ----------
        hashes : fingerprints of the batch's images, arrays of shape (N,), as either side sees them.

        Raises
        ------
        DataError
            If they are more than one in a hundred images of the data set.
        """
        shared: npt.NDArray[np.bool_] = np.any(np.isin(hashes, self._side.seen), axis=0)
        self._found += [self._dataset.identifier(int(i)) for i in batch.indices[shared]]
        if len(self._found) > _MOST_SHARED * len(self._dataset):
            raise DataError(
                f"{self._dataset.name} holds images that chose the fix or the precision of "
                f"{self._side.name} ({int(shared.sum())} of the {len(shared)} looked at just now, "
                f"the first is {self._found[0]}); a figure measured on them would flatter it. "
                "Verify on images that were not given to --val of 'calibrate' or 'export'."
            )
        return shared

    def note(self) -> str:
        """Return what was left out, or an empty text."""
        if not self._found:
            return ""
        return (
            f"{numbered(len(self._found), 'image')} that chose the fix or the precision of "
            f"{self._side.name} left out: {name_some(self._found, 1)}"
        )
