"""The two sides of a comparison of detectors: a bundle, or a checkpoint with its fix unfused."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...arrays import FloatArray
from ...boxes import Detections
from ...bundle import Bundle, open_bundle
from ...canvas import Canvas, Placement
from ...classes import ClassTable
from ...engines import Engine, open_engine
from ...engines.detector_reference import DetectorReference
from ...errors import BundleError, CheckpointError, DataError, EngineError, UsageError
from ...fixes import AffineMap
from ...fixes.logit_map import LogitMap
from ...manifest import Precision
from ...models.detectors.onnx_mapping import MAPPING_FILE, OutputMapping, read_mapping
from ...models.options import LoadOptions
from ...postprocess import KeepRule, ScoreRule, masks_on, postprocess_batch
from ..contenders import (
    is_bundle,
    precision_not_computed,
    reference_file,
    require_same_classes,
)

__all__ = ["BoxContender", "bundle_side", "reference_side"]


@dataclass(eq=False)
class BoxContender:
    """Something that finds boxes on canvases, with its fix, and where it can also without.

    Parameters
    ----------
    name : for reports.
    engine : gives boxes and logits before ``pending``.
    pending : the map to apply to the engine's logits; the identity where it is inside the graph.
    seen : fingerprints of canvases that chose this model's fix.
    notes : what the reader of the result should know.
    not_computed : the graph's precision where the engine computes it in float32 instead.
    seconds : time spent in the engine so far.
    """

    name: str
    engine: Engine
    classes: ClassTable
    canvas: Canvas
    score_rule: ScoreRule
    keep_rule: KeepRule
    pending: LogitMap
    seen: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    notes: tuple[str, ...] = ()
    not_computed: Precision | None = None
    seconds: float = 0.0

    def raw(self, images: npt.NDArray[np.uint8]) -> dict[str, FloatArray]:
        """Return the engine's outputs for canvases, uint8 (N, H, W, 3)."""
        started = time.perf_counter()
        results = self.engine.run({"images": images})
        self.seconds += time.perf_counter() - started
        return results

    def found(
        self,
        raw: dict[str, FloatArray],
        placements: Sequence[Placement],
        names: Sequence[str],
        *,
        fixed: bool = True,
    ) -> list[Detections]:
        """Return what is found in each photograph, in its pixels.

        Parameters
        ----------
        raw : as :meth:`raw` gave it.
        fixed : apply what is pending; without, these are the detections before the fix.
        """
        if fixed and not self.pending.is_identity:
            raw = {**raw, "logits": self.pending.apply(raw["logits"]).astype(np.float32)}
        try:
            return postprocess_batch(raw, self.score_rule, self.keep_rule, placements, names)
        except DataError as error:
            raise EngineError(f"{self.engine.name}: {error}") from error

    @property
    def has_masks(self) -> bool:
        """Whether it gives masks, too."""
        if isinstance(self.engine, DetectorReference):
            return self.engine.has_masks
        return any(output.name == "masks" for output in self.engine.outputs)

    def with_masks(
        self,
        images: npt.NDArray[np.uint8],
        found: Sequence[Detections],
        placements: Sequence[Placement],
    ) -> list[Detections]:
        """Return detections with their masks, which a reference computes when asked for them."""
        if not isinstance(self.engine, DetectorReference):
            return list(found)
        placed = [
            replace(one, boxes=where.to_canvas(one.boxes))
            for one, where in zip(found, placements, strict=True)
        ]
        started = time.perf_counter()
        grids = self.engine.masks(images, placed)
        self.seconds += time.perf_counter() - started
        return [
            replace(one, masks=masks_on(where, there.boxes, own))
            for one, there, where, own in zip(found, placed, placements, grids, strict=True)
        ]


def bundle_side(bundle: Bundle, engine: str = "auto") -> BoxContender:
    """Return a detector's bundle on an engine."""
    entry = bundle.manifest.detection
    if entry is None:
        raise BundleError(f"{bundle.path} is a classifier; detectors are compared with detectors.")
    opened = open_engine(bundle, engine)
    not_computed, notes = precision_not_computed(bundle, opened)
    return BoxContender(
        name=bundle.path.name,
        engine=opened,
        classes=bundle.classes,
        canvas=bundle.canvas,
        score_rule=entry.score_rule(),
        keep_rule=entry.keep_rule(),
        pending=AffineMap.identity(bundle.manifest.fix.logit_map().classes),
        seen=bundle.selection_hashes(),
        notes=notes,
        not_computed=not_computed,
    )


def reference_side(
    bundle: Bundle,
    reference: str | os.PathLike[str] | None,
    *,
    trust_pickle: bool = False,
    outputs: OutputMapping | None = None,
) -> BoxContender:
    """Return what a detector's bundle is measured against.

    Parameters
    ----------
    reference : a checkpoint (it gets the bundle's fix, unfused, its canvas and its rules), another
        bundle (as it is), or None for the file that the bundle was exported from.
    outputs : the mapping of an ONNX file, its canvas included; None takes the one that the bundle
        was exported with, and the bundle's canvas.

    Raises
    ------
    CheckpointError
        If that file is not where it was, or is another one now.
    DataError
        If the other bundle has other classes.
    """
    from ...engines.onnx_detector_reference import detector_reference
    from ...models.detectors.detector import load_detector
    from ...models.detectors.onnx_detector import load_onnx_detector

    if outputs is not None and reference is not None and is_bundle(reference):
        raise UsageError(f"--outputs is for ONNX files, and {reference} is a bundle; leave it out.")
    entry = bundle.manifest.detection
    if entry is None:
        raise BundleError(f"{bundle.path} is a classifier; detectors are compared with detectors.")
    if reference is not None and is_bundle(reference):
        other = bundle_side(open_bundle(reference))
        require_same_classes(bundle.classes, other.classes, bundle.path.name, other.name)
        return other
    path, notes = reference_file(bundle, reference)
    arch = None if path.is_dir() else bundle.manifest.arch  # a folder tells itself
    options = LoadOptions(arch=arch, classes=bundle.classes, trust_pickle=trust_pickle)
    if outputs is not None and path.suffix != ".onnx":
        raise UsageError(f"--outputs is for ONNX files, and {path} is none; leave it out.")
    canvas = None if outputs is not None else bundle.canvas
    model = (
        load_onnx_detector(path, outputs or _mapping_of(bundle, path), options, canvas)
        if path.suffix == ".onnx"
        else load_detector(path, options=options, canvas=canvas)
    )
    stated = bundle.manifest.source
    if model.source.sha256 == stated.sha256 and model.source.settings != stated.settings:
        raise CheckpointError(
            f"{path} is the file that {bundle.path} was exported from, and its settings are others "
            "now: a config beside it came, went or changed. Put back the one it had, or export "
            "again."
        )
    return BoxContender(
        name=path.name,
        engine=detector_reference(model),
        classes=bundle.classes,
        canvas=canvas or model.canvas,
        score_rule=entry.score_rule(),
        keep_rule=entry.keep_rule(),
        pending=bundle.manifest.fix.logit_map(),
        notes=notes,
    )


def _mapping_of(bundle: Bundle, path: Path) -> OutputMapping:
    """Return the mapping that a bundle of an ONNX detector was exported with."""
    if MAPPING_FILE not in bundle.manifest.files:
        raise UsageError(
            f"{path} is an ONNX file, and {bundle.path} was not made from one: say what the file's "
            "outputs hold with --outputs FILE."
        )
    return read_mapping(bundle.path / MAPPING_FILE)
