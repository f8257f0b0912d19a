"""From the float32 graph to the one of the precision asked for, gated where there is data."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ltdeploy import __version__
from ltdeploy._optional import installed_version
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import Dataset
from ltdeploy.datasets.boxes import BoxDataset
from ltdeploy.inference import fingerprints
from ltdeploy.manifest import CalibrationEntry, GateEntry, LoweringEntry, Precision
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.progress import Tracker, silent

from .gate_run import ClassifierTask, OpenGraph
from .non_finite import require_finite
from .open_graph import computes
from .ranges import LargeTensor, largest_values, out_of_range
from .recipe import Recipe, cast_recipe, int8_recipe
from .request import Data, PrecisionRequest, Request
from .sampling import CalibrationImages
from .search import Found, Gate, Journal, search
from .trade import TradeRow, measure_trade

if TYPE_CHECKING:
    import onnx

__all__ = ["Lowered", "Task", "lower", "lower_for"]


_Given = TypeVar("_Given", Dataset, BoxDataset, contravariant=True)


class Task(Protocol[_Given]):
    """How images are read and graphs judged: for classes, or for boxes."""

    def balanced(self, dataset: _Given, budget: int) -> CalibrationImages:
        """Read at most ``budget`` images, as many of each class as there are."""

    def gate(
        self,
        whole: onnx.ModelProto,
        dataset: _Given,
        margin: float,
        open_graph: OpenGraph,
        track: Tracker,
    ) -> Gate:
        """Return the gate on labelled images, with what the float32 graph makes of them."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph in the precision asked for.

    Attributes
    ----------
    entry : what the manifest says of it.
    found : the search, where the gate ran.
    seen : fingerprints of the gate's images that had a part in it, array of shape (K,), uint64.
    large : tensors that float16 cannot hold.
    unreadable : images of calibration or gate that could not be used, and why.
    trade : speed of every division that was tried, those with fewer restored layers first.
    engine : what ran it.
    checked : whether that engine rounds as this precision does; without, there is no gate.
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
    checked: bool
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
    """Bring a classifier's cleaned-up float32 graph to another precision.

    Parameters
    ----------
    preprocessing : of the bundle; the gate's float32 side decodes in the same way, so that what
        scaled decoding costs (:mod:`.scaling`) is not taken for what precision costs.
    model, open_graph, samples : as for :func:`lower_for`.

    Raises
    ------
    ExportError, DataError, EngineError
        As :func:`lower_for`.
    """
    task = ClassifierTask(classes, preprocessing)
    return lower_for(task, model, request, open_graph, samples, track=track)


def lower_for(
    task: Task[Data],
    model: onnx.ModelProto,
    request: Request[Data],
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
    samples : array of shape (K, H, W, 3), uint8: images at hand where no others are given.

    Raises
    ------
    ExportError
        If the graph cannot have this precision, gives what is not finite, or no division of its
        layers passes the gate in time.
    DataError, EngineError
    """
    source = request.source
    calibration = None if source is None else task.balanced(source, request.calibration_images)
    images = samples if calibration is None else calibration.images
    recipe = _recipe(model, request.precision, images)
    engine = _name_of(open_graph, recipe.make(()))
    unreadable = list(calibration.unreadable) if calibration is not None else []
    found: Found | None = None
    trade: tuple[TradeRow, ...] = ()
    seen = fingerprints(images if source is not None and source is request.gate else images[:0])
    gated: GateEntry | None = None
    checked = computes(engine, request.precision)
    if request.gate is None or not checked:
        lowered = recipe.make(())
        require_finite(lowered, open_graph, samples)
    else:
        gate = task.gate(recipe.whole, request.gate, request.margin, open_graph, track)
        require_finite(recipe.make(()), open_graph, gate.tail[0])
        path = _journal_path(request, recipe.whole, images, gate, engine)
        found = search(
            recipe.make,
            recipe.whole,
            recipe.layers,
            gate,
            journal=Journal(path),
            seconds=request.search_seconds,
            track=track,
        )
        lowered = recipe.make(frozenset(found.chosen.restored))
        trade = measure_trade(found, recipe, open_graph, gate.tail[0])
        seen = gate.hashes
        unreadable += gate.unreadable
        gated = GateEntry(
            name=request.gate.name,
            images=len(seen),
            margin=request.margin,
            verdict=found.chosen.verdict,
            engine=engine,
        )
    restored = found.chosen.restored if found is not None else ()
    entry = LoweringEntry(
        restored=restored,
        low_share=recipe.low_share(restored),
        calibration=None
        if calibration is None or source is None
        else CalibrationEntry(
            name=source.name, images=len(calibration.images), classes=calibration.classes
        ),
        gate=gated,
    )
    return Lowered(
        lowered,
        entry,
        found,
        seen,
        recipe.large,
        tuple(unreadable),
        trade,
        engine,
        checked,
        model.ByteSize(),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _recipe(model: onnx.ModelProto, precision: Precision, images: npt.NDArray[np.uint8]) -> Recipe:
    if precision == "int8":
        return int8_recipe(model, images)
    if precision == "fp16":
        return cast_recipe(model, "fp16", *out_of_range(model, largest_values(model, images)))
    return cast_recipe(model, "bf16")


def _name_of(open_graph: OpenGraph, model: onnx.ModelProto) -> str:
    engine = open_graph(model)
    engine.close()
    return engine.name


def _journal_path(
    request: Request[Data],
    model: onnx.ModelProto,
    images: npt.NDArray[np.uint8],
    gate: Gate,
    engine: str,
) -> Path | None:
    """Return a file named after everything that the search's measurements follow from."""
    if request.journals is None:
        return None
    told = {
        "precision": request.precision,
        "engine": [request.engine, engine],
        "margin": request.margin,
        "versions": [
            __version__,
            *(installed_version(name) for name in ("onnx", "onnxruntime", "openvino", "PIL")),
        ],
        "gate": gate.facts(),
    }
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=20)
    for content in (
        model.SerializeToString(deterministic=True),
        images.tobytes(),
        gate.hashes.tobytes(),
        gate.truth(),
    ):
        digest.update(hashlib.blake2b(content).digest())
    return request.journals / f"precision-{digest.hexdigest()}.json"
