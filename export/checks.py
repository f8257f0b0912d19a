"""What is checked after every export instead of being assumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray
from ltdeploy.engines import Engine, check_finite
from ltdeploy.errors import ExportError

__all__ = ["LOW_TOLERANCE", "TOLERANCE", "Checks", "check_graph", "relative_difference"]

TOLERANCE = 1e-4  # of the largest logit; float32 sums in another order differ by far less
# In low precision only the gate can say what is too far from the reference; between batches an
# engine may round otherwise, which is small against what a layer that mixes images would do.
LOW_TOLERANCE = {"tolerance": float("inf"), "batch_tolerance": 0.05}
_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Checks:
    """The figures of the checks, all of which passed.

    Attributes
    ----------
    engine : what ran the graph.
    samples : images used.
    symbolic_batch : whether the batch axis is symbolic in the file.
    reference_difference : largest difference from the unfused reference, relative to its largest
        logit.
    batch_difference : the same between batches of 1, 2, 5 and permuted images.
    """

    engine: str
    samples: int
    symbolic_batch: bool
    reference_difference: float
    batch_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)


def relative_difference(reference: FloatArray, candidate: FloatArray) -> float:
    """Return ``max |a − b| / max(1, max |a|)``, the scale on which float32 rounding lives."""
    wide = reference.astype(np.float64)
    return float(np.abs(wide - candidate).max() / max(1.0, float(np.abs(wide).max())))


def check_graph(
    engine: Engine,
    images: npt.NDArray[np.uint8],
    expected: FloatArray,
    *,
    tolerance: float = TOLERANCE,
    batch_tolerance: float = TOLERANCE,
) -> Checks:
    """Run an exported graph on real inputs and compare it with the reference.

    Parameters
    ----------
    engine : the exported graph, loaded.
    images : array of shape (K, H, W, 3), uint8, K ≥ 5.
    expected : the unfused reference's logits, array of shape (K, C).
    tolerance, batch_tolerance : what may differ from the reference, and between batches, relative
        to the largest logit.

    Raises
    ------
    ExportError
        If the batch axis is fixed, logits differ from the reference or between batch sizes.
    EngineError
        If logits are not finite.
    """
    symbolic = all(spec.shape[0] is None for spec in (*engine.inputs, *engine.outputs))
    if not symbolic:
        raise ExportError(
            f"The exporter froze the batch axis: {engine.inputs} → {engine.outputs}. The model's "
            "code depends on the batch size (len(tensor), a reshape with a constant); export it "
            "from a version that does not."
        )
    together = _logits(engine, images)
    check_finite(engine.name, together, [f"golden sample {i}" for i in range(len(images))])
    difference = relative_difference(expected, together)
    if not difference <= tolerance:
        raise ExportError(
            f"The exported graph differs from the reference by {difference:.2g} of the largest "
            f"logit on {len(images)} images; expected at most {tolerance:g}. The fold or the "
            "export changed the model; nothing was written."
        )
    batch_difference = 0.0
    order = np.random.default_rng(0).permutation(len(images))
    for size in _BATCHES:
        for index in (np.arange(len(images)), order):
            parts = [
                _logits(engine, images[index[start : start + size]])
                for start in range(0, len(index), size)
            ]
            batch_difference = max(
                batch_difference, relative_difference(together[index], np.concatenate(parts))
            )
    if not batch_difference <= batch_tolerance:
        raise ExportError(
            f"The exported graph gives other answers in batches of 1, 2 and 5 than in one batch of "
            f"{len(images)}: they differ by {batch_difference:.2g} of the largest logit. A layer "
            f"mixes the images of a batch, or {engine.name} computes this graph wrongly for some "
            "sizes (another --engine tells which); nothing was written."
        )
    return Checks(engine.name, len(images), symbolic, difference, batch_difference)


def _logits(engine: Engine, images: npt.NDArray[np.uint8]) -> FloatArray:
    return engine.run({engine.inputs[0].name: np.ascontiguousarray(images)})["logits"]
