"""Run both sides over the same images and judge what happened to the tail."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .. import __version__
from ..bundle import Bundle, open_bundle
from ..datasets import Batch, Dataset, Loader, align_labels
from ..errors import DataError, ImageError
from ..inference import batch_size_for
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
from .result import VerifyResult

__all__ = ["Verification", "compare_models", "verify_bundle"]


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
    engine: str = "onnxruntime",
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
        If images of ``dataset`` chose the bundle's fix, labels do not fit, or nothing is readable.
    CheckpointError, BundleError, EngineError
    """
    check_margin(margin)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    before = reference_of(opened, reference, trust_pickle=trust_pickle)
    after = bundle_contender(opened, engine)
    methods = opened.manifest.fix.methods
    listed = "; ".join(
        f"{m.method}({', '.join(f'{k}={v}' for k, v in m.parameters.items())})" for m in methods
    )
    provenance = {"Bundle": opened.path.name, "Fix": listed or "none"}
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
    for side in (reference, candidate):
        _refuse_images_that_chose_the_fix(side, dataset)
    started = time.perf_counter()
    accumulator = Accumulator(candidate.classes)
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
    for before, after in track(batches, total=total, label="verify"):
        names = [dataset.identifier(int(index)) for index in after.indices]
        fixed, unfixed = reference.run(before.images, names)
        answered, _ = candidate.run(after.images, names)
        accumulator.update(
            after.labels, fixed, answered, unfixed if with_unfixed else None, after.indices
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
        "ltdeploy": __version__,
    }
    for note in (*reference.notes, *candidate.notes):
        described["Note"] = "; ".join(filter(None, [described.get("Note"), note]))
    seconds = {"reference": reference.seconds, "candidate": candidate.seconds, "total": wall}
    return Verification(
        result=result,
        dataset=dataset,
        unreadable=tuple(loader.unreadable),
        names=(reference.name, candidate.name),
        provenance=described,
        seconds=seconds,
    )


def _refuse_images_that_chose_the_fix(side: Contender, dataset: Dataset) -> None:
    if not len(side.seen):
        return
    seen = set(side.seen.tolist())
    shared = []
    for index in range(len(dataset)):
        with contextlib.suppress(ImageError):  # the run itself names what is unreadable
            if dataset.content_hash(index) in seen:
                shared.append(dataset.identifier(index))
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(dataset)} images of {dataset.name} chose the fix of "
            f"{side.name} (the first is {shared[0]}); a figure measured on them would flatter it. "
            "Verify on images that were not given to 'export --val'."
        )
