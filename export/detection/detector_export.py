"""A detector's checkpoint and fix to a bundle: fold, export with fixed sizes, check, write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy import __version__
from ltdeploy.bundle import (
    GOLDEN,
    SELECTION,
    Bundle,
    GoldenDetections,
    file_entry,
    write_bundle,
)
from ltdeploy.canvas import Canvas, load_on_canvas
from ltdeploy.datasets.species import SpeciesDataset
from ltdeploy.detection_rules import KeepRule
from ltdeploy.engines.one_by_one import any_batch
from ltdeploy.engines.onnx_detector_reference import detector_reference
from ltdeploy.engines.onnxruntime_engine import import_onnxruntime
from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FixFile, FixSpec
from ltdeploy.fixes.encoding import encode
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.manifest import (
    SCHEMA_VERSION,
    DetectionEntry,
    FixEntry,
    GroupEntry,
    HeadEntry,
    Manifest,
    SourceEntry,
)
from ltdeploy.models.detectors.architectures import QUERY_KINDS
from ltdeploy.models.detectors.class_rows import fold_into
from ltdeploy.models.detectors.onnx_detector import OnnxDetector
from ltdeploy.models.detectors.onnx_mapping import MAPPING_FILE
from ltdeploy.progress import Tracker, silent

from ..clean_up import clean_up
from ..entries import class_entries, graph_entry, npz, package_versions
from ..fitting import fit_for_detector
from ..fold import Folding
from ..precision import BoxPrecisionRequest, Lowered, graph_opener, lower_for
from ..precision.gate_run import OpenGraph, on_onnxruntime
from ..precision.sampling import read_first
from ..to_onnx import onnx_from_module
from .detector_checks import LOW_TOLERANCE, DetectorChecks, check_detector_graph, detections_of
from .foreign_graph import onnx_from_foreign_detector
from .kept_detections import rule_inside
from .kept_export import KeptGraph, gives_masks, kept_graph
from .lowered_gate import DetectorTask
from .static_cascade import FixedLogits, StaticCascade
from .static_masks import StaticMaskRcnn, level_names
from .static_one_stage import StaticFcos, StaticRetinaNet
from .static_queries import StaticDetr, StaticQueries
from .static_rcnn import StaticRcnn

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from ltdeploy.classes import ClassTable
    from ltdeploy.datasets.boxes import BoxDataset
    from ltdeploy.engines import Engine
    from ltdeploy.models.detectors.architectures import Kind
    from ltdeploy.models.detectors.detector import Detector

__all__ = ["ExportedDetector", "export_detector"]

_GOLDEN_IMAGES = 6


@dataclass(frozen=True, eq=False)
class ExportedDetector:
    """A written bundle, and what was found on the way.

    Attributes
    ----------
    checks : of the graph in the bundle.
    lowered : how its precision came about; None for float32.
    golden_from : data of which a few photographs are in the bundle; None: drawn ones.
    inside : what suppresses in the graph itself, where that was asked for.
    """

    bundle: Bundle
    checks: DetectorChecks
    lowered: Lowered | None = None
    inside: KeptGraph | None = None
    golden_from: str | None = None

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Photographs that precision was to be chosen on and that could not be used, and why."""
        return () if self.lowered is None else tuple(dict.fromkeys(self.lowered.unreadable))


def export_detector(
    model: Detector | OnnxDetector,
    fixes: Sequence[FixSpec | FixFile],
    out: Path,
    *,
    images: BoxDataset | None = None,
    precision: BoxPrecisionRequest | None = None,
    nms_in_graph: bool = False,
    force: bool = False,
    track: Tracker = silent,
) -> ExportedDetector:
    """Fold the fixes into the class layer, export to ONNX, check the graph and write ``out``.

    Parameters
    ----------
    fixes : with fixed parameters, or from a fix file that ``calibrate`` wrote; applied in order.
    images : photographs to check the graph with, a few of which become golden samples; where there
        are none those of ``precision``, and drawn ones without any.
    precision : None is float32.
    nms_in_graph : let the graph itself give the detections kept, for those who serve it elsewhere.
    force : apply a fix even where it is refused as harmful, or was fitted on another checkpoint.

    Raises
    ------
    ExportError, FixError, CheckpointError, BundleError
        With the cause; nothing is written then, and an older bundle at ``out`` stays.
    """
    import_onnxruntime()
    masks = nms_in_graph and gives_masks(model)
    keep = rule_inside(model.keep_rule, masks=masks) if nms_in_graph else model.keep_rule
    fitted = fit_for_detector(model, fixes, force=force)
    fix, table = fitted.fix, fitted.classes
    low = precision if precision is not None and precision.precision != "fp32" else None
    at_hand = [images] if low is None else [images, low.gate, low.calibration]
    given = next((data for data in at_hand if data is not None), None)
    canvases = _canvases(model, given)
    reference = detector_reference(model)
    raw = reference.run({"images": canvases})
    reference.close()
    raw["logits"] = fix.apply(raw["logits"])
    rules = model.score_rule, keep, model.canvas
    expected = detections_of(raw, *rules)

    metadata = {"ltdeploy.version": __version__, "ltdeploy.arch": model.arch}
    traced, folding, notes = _traced(model, fix, metadata, levels=masks)
    graph = clean_up(traced)
    checks = _checked(_opener(None)(graph), canvases, expected, *rules, raw=raw)
    lowered: Lowered | None = None
    if low is not None:
        lowered, engine = _lowered(model, keep, table, graph, low, canvases, track)
        graph = lowered.model
        checks = _checked(engine, canvases, expected, *rules, LOW_TOLERANCE)
    inside: KeptGraph | None = None
    if nms_in_graph:
        inside = kept_graph(model, graph, rules, _opener(low), canvases, exact=low is None)
        graph = inside.graph
    content = graph.SerializeToString()
    golden = GoldenDetections(canvases, tuple(expected))
    files = {"model.onnx": content, GOLDEN: npz(**golden.arrays())}
    chose = fitted.hashes if lowered is None else np.union1d(fitted.hashes, lowered.seen)
    if fitted.selection is not None or len(chose):
        files[SELECTION] = npz(hashes=chose)
    if isinstance(model, OnnxDetector):
        files[MAPPING_FILE] = model.mapping.to_json().encode()
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        task="detection",
        name=out.name.removesuffix(".ltd"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        arch=model.arch,
        classes=class_entries(table),
        groups=GroupEntry(names=table.rule.names, above=table.rule.above),
        head=HeadEntry(
            kind="linear",
            path=model.head_paths[0],
            features=model.head.weight.shape[1],
            bias=model.head.bias is not None,
            scale=1.0,
            background=model.head.background,
            activation=model.head.activation,
        ),
        fix=FixEntry(
            methods=fitted.methods,
            steps=encode(fix),
            folded=folding,
            selected_on=fitted.selection,
            notes=fitted.notes,
        ),
        preprocessing=model.canvas.to_dict(),
        detection=DetectionEntry(scores=asdict(model.score_rule), keep=asdict(keep)),
        graphs=(graph_entry(graph, low, lowered, checks.score_difference),),
        source=SourceEntry(
            path=os.path.relpath(model.source.path, out.parent),
            sha256=model.source.sha256,
            layout=model.source.layout,
            trained_with=model.trained_with,
            notes=(*model.source.notes, *notes),
            settings=model.source.settings,
        ),
        versions=package_versions(),
        files={name: file_entry(held) for name, held in files.items()},
    )
    bundle = write_bundle(out, manifest, files)
    golden_from = None if given is None else given.name
    return ExportedDetector(bundle, checks, lowered, inside, golden_from)


def _lowered(
    model: Detector | OnnxDetector,
    keep: KeepRule,
    table: ClassTable,
    graph: onnx.ModelProto,
    request: BoxPrecisionRequest,
    canvases: npt.NDArray[np.uint8],
    track: Tracker,
) -> tuple[Lowered, Engine]:
    """Return the graph in another precision, and the engine that runs it."""
    open_graph = _opener(request)
    task = DetectorTask(table, model.canvas, model.score_rule, keep)
    lowered = lower_for(task, graph, request, open_graph, canvases, track=track)
    return lowered, open_graph(lowered.model)


def _opener(low: BoxPrecisionRequest | None) -> OpenGraph:
    """Return what opens graphs in the precision asked for, whatever batch they take."""
    load = on_onnxruntime if low is None else graph_opener(low.engine, low.precision)
    return lambda graph: any_batch(load(graph))


def _checked(engine: Engine, *rest: Any, raw: Any = None) -> DetectorChecks:
    try:
        return check_detector_graph(engine, *rest, raw=raw)
    finally:
        engine.close()


def _traced(
    model: Detector | OnnxDetector, fix: LogitMap, metadata: dict[str, str], *, levels: bool
) -> tuple[onnx.ModelProto, Folding, tuple[str, ...]]:
    """Return the graph with the fix inside, how it was folded, and notes.

    Parameters
    ----------
    levels : let it give the feature levels that masks are pooled from.
    """
    if isinstance(model, OnnxDetector):
        return onnx_from_foreign_detector(model, fix, metadata)
    module, folding = _folded(model, fix)
    static = static_module(module, model.architecture.kind, model.canvas)
    outputs = ["boxes", "logits", *(["quality"] if model.score_rule.quality != "none" else [])]
    if levels:
        static = StaticMaskRcnn(module, model.canvas.height_px, model.canvas.width_px).eval()
        outputs += level_names(static)
    if folding == "nodes":
        assert isinstance(fix, AffineMap)
        static = FixedLogits(static, fix).eval()
    graph = onnx_from_module(
        static,
        model.canvas.as_preprocessing(),
        metadata,
        outputs,
        strict=model.architecture.kind in QUERY_KINDS,  # their code asks for the batch's length
    )
    return graph, folding, ()


def _folded(model: Detector, fix: LogitMap) -> tuple[nn.Module, Folding]:
    """Return the detector with the fix in its class layer; the model stays as it is."""
    if fix.is_identity:
        return model.module, "none"
    if not isinstance(fix, AffineMap):
        raise FixError(
            "A detector's class layer takes affine maps of the logits alone, and this fix is none: "
            "use norcal, logn, odds, group_odds or logit_adjustment."
        )
    if not model.head.foldable:
        return model.module, "nodes"
    return fold_into(model.module, model.architecture.kind, fix.scale, fix.shift), "weights"


def static_module(module: nn.Module, kind: Kind, canvas: Canvas) -> nn.Module:
    """Return the formulation of a detector with fixed sizes, for the graph."""
    size = canvas.height_px, canvas.width_px
    if kind == "retinanet":
        return StaticRetinaNet(module, *size).eval()
    if kind == "fcos":
        return StaticFcos(module, *size).eval()
    if kind == "detr":
        return StaticDetr(module, *size).eval()
    if kind in QUERY_KINDS:
        return StaticQueries(module, *size).eval()
    if kind == "cascade_rcnn":
        return StaticCascade(module, *size).eval()
    return StaticRcnn(module, *size).eval()


def _canvases(model: Detector | OnnxDetector, images: BoxDataset | None) -> npt.NDArray[np.uint8]:
    """Return a few ready canvases, uint8 (K, H, W, 3), evenly over what is readable of the data."""
    source: Any = SpeciesDataset(split="val") if images is None else images
    places = np.unique(np.linspace(0, len(source) - 1, 4 * _GOLDEN_IMAGES).astype(int))
    order = np.argsort(np.arange(len(places)) % 4, kind="stable")

    def load(index: int, name: str) -> npt.NDArray[np.uint8]:
        return load_on_canvas(source.source(index), model.canvas, name=name)[0]

    return read_first(source, places[order], _GOLDEN_IMAGES, load)[0]
