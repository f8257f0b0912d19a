"""The two sides of a comparison: a bundle, or a checkpoint with a fix applied unfused."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..bundle import Bundle, open_bundle
from ..classes import ClassTable
from ..engines import Engine, check_finite, open_engine
from ..engines.choice import computes
from ..errors import CheckpointError, DataError, FixError, numbered
from ..fixes import AffineMap
from ..fixes.logit_map import LogitMap
from ..manifest import Precision
from ..models.options import LoadOptions
from ..models.reading import source_sha256
from ..preprocessing import Preprocessing

__all__ = [
    "Contender",
    "bundle_contender",
    "checkpoint_contender",
    "is_bundle",
    "precision_not_computed",
    "reference_file",
    "reference_of",
]


@dataclass(eq=False)
class Contender:
    """Something that gives logits for prepared images, with and without its fix.

    Parameters
    ----------
    name : for reports.
    engine : gives the logits before ``pending``.
    classes, preprocessing : of the model.
    pending : the map to apply to the engine's logits; the identity where it is inside the graph.
    inside : the map that is inside the graph already; its inverse, where it has one, gives the
        unfixed logits.
    seen : content hashes of images that chose this model's fix; no figure may come from them.
    notes : what the reader of the result should know.
    not_computed : the graph's precision where the engine computes it in float32 instead.
    seconds : time spent in the engine so far.
    """

    name: str
    engine: Engine
    classes: ClassTable
    preprocessing: Preprocessing
    pending: LogitMap
    inside: LogitMap
    seen: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    notes: tuple[str, ...] = ()
    not_computed: Precision | None = None
    seconds: float = 0.0

    def run(
        self, images: npt.NDArray[np.uint8], identifiers: list[str]
    ) -> tuple[FloatArray, FloatArray]:
        """Return logits of images uint8 (N, H, W, 3), with the fix and as the engine gave them."""
        started = time.perf_counter()
        results = self.engine.run({self.engine.inputs[0].name: images})
        self.seconds += time.perf_counter() - started
        raw = results[self.engine.outputs[0].name]
        check_finite(self.engine.name, raw, identifiers)
        if self.pending.is_identity:
            return raw, raw
        return self.pending.apply(raw, results.get("features")), raw

    def unfixed(self, raw: FloatArray) -> FloatArray | None:
        """Return logits (N, C) as they were before the fix; None where it cannot be undone.

        Parameters
        ----------
        raw : as :meth:`run` gave them, array of shape (N, C).
        """
        if self.inside.is_identity:
            return raw
        return None if self._undo is None else self._undo.apply(raw)

    @cached_property
    def _undo(self) -> LogitMap | None:
        try:
            return self.inside.inverse()
        except FixError:  # the map looks at features, or loses what the logits were
            return None


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is meant as a bundle: a folder with a manifest, or a name in ``.ltd``."""
    folder = Path(path)
    return (folder / "manifest.json").is_file() or folder.suffix == ".ltd"


def bundle_contender(bundle: Bundle, engine: str = "auto") -> Contender:
    """Return a bundle on an engine."""
    identity = AffineMap.identity(len(bundle.classes))
    chosen, seen = bundle.manifest.fix.selected_on, bundle.selection_hashes()
    notes: tuple[str, ...] = ()
    if chosen is not None and chosen.images and not len(seen):
        notes = (
            f"the fix of {bundle.path.name} was chosen on {numbered(chosen.images, 'image')} "
            "without fingerprints: whether they are among these cannot be checked, and if they "
            "are, its figures are flattered",
        )
    opened = open_engine(bundle, engine)
    not_computed, note = precision_not_computed(bundle, opened)
    notes += note
    return Contender(
        name=bundle.path.name,
        engine=opened,
        classes=bundle.classes,
        preprocessing=bundle.preprocessing,
        pending=identity,
        inside=bundle.manifest.fix.logit_map(),
        seen=seen,
        notes=notes,
        not_computed=not_computed,
    )


def precision_not_computed(
    bundle: Bundle, engine: Engine
) -> tuple[Precision | None, tuple[str, ...]]:
    """Return a bundle's precision where an engine computes float32 instead, and a note of it."""
    precision = bundle.manifest.graphs[0].precision
    if computes(engine.name, precision):
        return None, ()
    return precision, (
        f"{engine.name} computes {precision} in float32 on this processor, so nothing here "
        f"says what {precision} costs: verify {bundle.path.name} where it will run",
    )


def checkpoint_contender(
    path: str | os.PathLike[str],
    options: LoadOptions | None = None,
    *,
    fix: LogitMap | None = None,
) -> Contender:
    """Return a checkpoint in float32, with ``fix`` applied to its logits.

    Parameters
    ----------
    fix : None applies none.
    """
    from ..engines.torch_reference import reference_engine, require_suits
    from ..models.classifier import load_checkpoint

    model = load_checkpoint(Path(path), options=options)
    classes = model.require_complete()
    identity = AffineMap.identity(model.head.classes)
    pending = identity if fix is None else fix
    require_suits(pending, model)
    return Contender(
        name=Path(path).name,
        engine=reference_engine(model, features=pending.needs_features),
        classes=classes,
        preprocessing=model.preprocessing,
        pending=pending,
        inside=identity,
    )


def reference_of(
    bundle: Bundle, reference: str | os.PathLike[str] | None, *, trust_pickle: bool = False
) -> Contender:
    """Return what a bundle is measured against.

    Parameters
    ----------
    reference : a checkpoint (it gets the bundle's fix, unfused, and its preprocessing), another
        bundle (as it is), or None for the file that the bundle was exported from.

    Raises
    ------
    CheckpointError
        If that file is not where it was, or is another one now.
    DataError
        If the other bundle has other classes.
    """
    if reference is not None and is_bundle(reference):
        other = open_bundle(reference)
        contender = bundle_contender(other)
        require_same_classes(bundle.classes, contender.classes, bundle.path.name, contender.name)
        return contender
    path, notes = reference_file(bundle, reference)
    head = bundle.manifest.head
    # ONNX files and Hugging Face folders tell their architecture themselves.
    told = bundle.manifest.arch.partition(":")[0] in ("onnx", "hf")
    options = LoadOptions(
        arch=None if told else bundle.manifest.arch,
        classes=bundle.classes,
        preprocessing=dataclasses.replace(bundle.preprocessing, jpeg_scaling=False),
        head_scale=head.scale if head.kind == "cosine" else None,
        trust_pickle=trust_pickle,
    )
    contender = checkpoint_contender(path, options, fix=bundle.manifest.fix.logit_map())
    contender.notes = notes
    return contender


def reference_file(
    bundle: Bundle, reference: str | os.PathLike[str] | None
) -> tuple[Path, tuple[str, ...]]:
    """Return the checkpoint that a bundle is measured against, and what to know of it.

    Parameters
    ----------
    reference : a checkpoint, or None for the file that the bundle was exported from.

    Raises
    ------
    CheckpointError
        If that file is not where it was, or is another one now.
    """
    path = bundle.source_path if reference is None else Path(reference)
    if reference is None and not path.exists():
        raise CheckpointError(
            f"The checkpoint that {bundle.path} was exported from is not at {path} any more. Say "
            "where it is with --reference FILE; it may also be another bundle."
        )
    if not path.exists() or source_sha256(path) == bundle.manifest.source.sha256:
        return path, ()
    if reference is None:
        raise CheckpointError(
            f"{path} has changed since {bundle.path} was exported from it. Export the bundle "
            "again, or name the file to measure against with --reference FILE."
        )
    return path, (f"{path.name} is not the file that the bundle was exported from (sha256)",)


def require_same_classes(a: ClassTable, b: ClassTable, name_a: str, name_b: str) -> None:
    """Raise :class:`DataError` unless both tables have the same classes in the same order."""
    if a.names == b.names:
        return
    if len(a) != len(b):
        raise DataError(
            f"{name_a} has {len(a)} classes and {name_b} {len(b)}; only models of the same classes "
            "can be compared."
        )
    first = next(i for i, (x, y) in enumerate(zip(a.names, b.names, strict=True)) if x != y)
    raise DataError(
        f"{name_a} and {name_b} name their classes differently: label {first} is "
        f"{a.names[first]!r} in one and {b.names[first]!r} in the other. Export both with the same "
        "--classes FILE."
    )
