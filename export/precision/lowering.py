"""From the float32 graph to the one of the precision asked for, gated where there is data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy import __version__
from ltdeploy._optional import installed_version
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import Dataset, align_labels
from ltdeploy.engines import Engine
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.errors import ExportError, UsageError
from ltdeploy.inference import collect_logits
from ltdeploy.manifest import CalibrationEntry, GateEntry, LoweringEntry, Precision
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.progress import Tracker, silent
from ltdeploy.verify.gate import check_margin

from .cast import to_low_precision
from .gate_run import GateRun, OpenGraph
from .layers import GraphLayers
from .non_finite import require_finite
from .quantise import measure_ranges, quantise
from .ranges import LargeTensor, largest_values, out_of_range
from .sampling import CalibrationImages, read_balanced
from .search import Found, Journal, Recipe, search
from .trade import TradeRow, measure_trade

if TYPE_CHECKING:
    import onnx

__all__ = ["Lowered", "PrecisionRequest", "lower"]

_SPEED_BATCH = 8


@dataclass(frozen=True, eq=False)
class PrecisionRequest:
    """What precision is wanted, and what it may be chosen on.

    Parameters
    ----------
    precision : of the layers between stem and head.
    calibration : training images; int8 takes its ranges from them, fp16 checks its range on them.
    calibration_images : how many of them, as many of each class as there are.
    gate : labelled images that the gate runs on; None applies the recipe ungated.
    engine : what the graph is run on while it is chosen.
    margin : points of class-averaged accuracy that a group may lose.
    search_seconds : after these no new measurement is begun.
    journals : folder for what a search has measured, so that it can go on; None keeps nothing.
    """

    precision: Precision = "fp32"
    calibration: Dataset | None = None
    calibration_images: int = 512
    gate: Dataset | None = None
    engine: str = "auto"
    margin: float = 1.0
    search_seconds: float = 600.0
    journals: Path | None = None

    def __post_init__(self) -> None:
        check_margin(self.margin)
        if self.calibration_images < 1:
            raise UsageError(
                f"--calibration-images is {self.calibration_images}; expected 1 or more."
            )
        if self.precision == "int8" and self.calibration is None:
            raise UsageError(
                "--precision int8 takes the range of every layer from training images, and none "
                "were given; add --calibration DATA (the training set: a few images of every class "
                "are taken)."
            )


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph in the precision asked for.

    Attributes
    ----------
    entry : what the manifest says of it.
    found : the search, where the gate ran.
    seen : fingerprints of the images that the gate ran on, array of shape (K,), uint64.
    large : tensors that float16 cannot hold.
    unreadable : images of calibration or gate that could not be used, and why.
    trade : speed of every division that was tried, those with fewer restored layers first.
    engine : what ran it.
    float32_bytes : size of the float32 graph.
    """

    model: onnx.ModelProto
    entry: LoweringEntry
    found: Found | None
    seen: npt.NDArray[np.uint64]
    large: tuple[LargeTensor, ...]
    unreadable: tuple[tuple[str, str], ...]
    trade: tuple[TradeRow, ...]
    engine: str
    float32_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return what was tried and chosen, for JSON and the report."""
        found = self.found
        return {
            **self.entry.model_dump(),
            "engine": self.engine,
            "float32_bytes": self.float32_bytes,
            "large": [asdict(tensor) for tensor in self.large],
            "fewest": found.fewest if found is not None else None,
            "damage": [
                {"layer": layer, "damage": _finite(damage)}
                for layer, damage in (found.damage.items() if found is not None else ())
            ],
            "trials": [
                {
                    **asdict(row.trial),
                    "low_share": row.low_share,
                    "speed": row.speed,
                    "chosen": found is not None and row.trial is found.chosen,
                }
                for row in self.trade
            ],
        }


def lower(
    model: onnx.ModelProto,
    request: PrecisionRequest,
    classes: ClassTable,
    preprocessing: Preprocessing,
    open_graph: OpenGraph,
    samples: npt.NDArray[np.uint8],
    *,
    track: Tracker = silent,
) -> Lowered:
    """Bring a cleaned-up float32 graph to another precision.

    Parameters
    ----------
    model : the fix inside, shapes inferred, nodes named.
    open_graph : loads a graph of that precision into the engine that is to run it.
    samples : array of shape (K, H, W, 3), uint8: images at hand where no calibration is given.

    Raises
    ------
    ExportError
        If the graph cannot have this precision, gives what is not finite, or no division of its
        layers passes the gate in time.
    DataError, EngineError
    """
    layers = GraphLayers(model)
    names = tuple(layer.name for layer in layers.body)
    if not names:
        raise ExportError(
            "The graph has no layer between its first and its last one: there is nothing whose "
            "precision could be changed. Use --precision fp32."
        )
    calibration = _calibration(request, classes, preprocessing)
    images = samples if calibration is None else calibration.images
    low, large = _recipe(model, request, images)

    def recipe(keep: Collection[str]) -> onnx.ModelProto:
        return model if len(keep) == len(names) else low(keep)

    unreadable = list(calibration.unreadable) if calibration is not None else []
    found: Found | None = None
    trade: tuple[TradeRow, ...] = ()
    seen = np.empty(0, dtype=np.uint64)
    gated: GateEntry | None = None
    if request.gate is None:
        lowered = recipe(())
        require_finite(lowered, open_graph, samples)
    else:
        gate = _gate(model, request, request.gate, classes, preprocessing, open_graph, track)
        require_finite(recipe(()), open_graph, gate.tail[0])
        journal = Journal(_journal_path(request, model, images, gate))
        found = search(
            recipe,
            model,
            names,
            gate,
            journal=journal,
            seconds=request.search_seconds,
            track=track,
        )
        lowered = recipe(frozenset(found.chosen.restored))
        trade = measure_trade(found, recipe, layers, open_graph, gate.tail[0][:_SPEED_BATCH])
        seen = gate.reference.hashes
        unreadable += gate.reference.unreadable
        gated = GateEntry(
            name=request.gate.name,
            images=len(seen),
            margin=request.margin,
            verdict=found.chosen.verdict,
            engine=request.engine,
        )
    restored = found.chosen.restored if found is not None else ()
    entry = LoweringEntry(
        restored=restored,
        low_share=layers.low_share(restored),
        calibration=None
        if calibration is None or request.calibration is None
        else CalibrationEntry(
            name=request.calibration.name,
            images=len(calibration.images),
            classes=len(np.unique(align_labels(request.calibration, classes)[calibration.indices])),
        ),
        gate=gated,
    )
    engine = open_graph(lowered)
    engine.close()
    return Lowered(
        lowered, entry, found, seen, large, tuple(unreadable), trade, engine.name, model.ByteSize()
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _calibration(
    request: PrecisionRequest, classes: ClassTable, preprocessing: Preprocessing
) -> CalibrationImages | None:
    if request.calibration is None:
        return None
    labels = align_labels(request.calibration, classes)
    return read_balanced(request.calibration, labels, preprocessing, request.calibration_images)


def _recipe(
    model: onnx.ModelProto, request: PrecisionRequest, images: npt.NDArray[np.uint8]
) -> tuple[Recipe, tuple[LargeTensor, ...]]:
    """Return what makes the graph from the layers to keep in float32, and what had to be kept."""
    if request.precision == "int8":
        ranges = measure_ranges(model, images)
        return lambda keep: quantise(model, ranges, keep), ()
    always: tuple[str, ...] = ()
    large: tuple[LargeTensor, ...] = ()
    if request.precision == "fp16":
        always, large = out_of_range(model, largest_values(model, images))
    precision = request.precision
    assert precision in ("fp16", "bf16")

    def cast(keep: Collection[str]) -> onnx.ModelProto:
        return to_low_precision(model, precision, {*always, *keep})

    return cast, large


def _gate(
    model: onnx.ModelProto,
    request: PrecisionRequest,
    dataset: Dataset,
    classes: ClassTable,
    preprocessing: Preprocessing,
    open_graph: OpenGraph,
    track: Tracker,
) -> GateRun:
    labels = align_labels(dataset, classes)
    engine: Engine = OnnxRuntimeEngine(model.SerializeToString())
    try:
        reference = collect_logits(
            engine, dataset, labels, preprocessing, track=track, label="gate, float32"
        )
    finally:
        engine.close()
    return GateRun(
        dataset, labels, classes, preprocessing, reference, open_graph, request.margin, track
    )


def _journal_path(
    request: PrecisionRequest,
    model: onnx.ModelProto,
    images: npt.NDArray[np.uint8],
    gate: GateRun,
) -> Path | None:
    """Return a file named after everything that the search's measurements follow from."""
    if request.journals is None:
        return None
    told = {
        "precision": request.precision,
        "engine": request.engine,
        "margin": request.margin,
        "versions": [
            __version__,
            *(installed_version(name) for name in ("onnx", "onnxruntime", "openvino", "PIL")),
        ],
        "counts": gate.classes.counts,
        "preprocessing": gate.preprocessing.to_dict(),
    }
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=20)
    for content in (
        model.SerializeToString(deterministic=True),
        images.tobytes(),
        gate.reference.hashes.tobytes(),
        gate.reference.labels.tobytes(),
    ):
        digest.update(hashlib.blake2b(content).digest())
    return request.journals / f"precision-{digest.hexdigest()}.json"
