"""Run an engine over a data set, decoding ahead of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray, IntArray
from .canvas import Canvas
from .datasets import Dataset, Loader
from .engines import Engine, check_finite
from .errors import DataError
from .preprocessing import Preprocessing
from .progress import Tracker, silent

__all__ = ["Logits", "batch_size_for", "collect_logits", "fingerprints"]

# Large enough to keep the cores busy, small enough that activations stay near the cache.
_BATCH_PIXELS = 16 * 224 * 224
_BATCH_SIZES = (1, 256)


@dataclass(frozen=True, eq=False)
class Logits:
    """A data set's logits.

    Attributes
    ----------
    logits : array of shape (N, C), float32, for the readable images only.
    labels, indices : arrays of shape (N,): labels in the class table's order, places in the data.
    hashes : array of shape (N,), uint64: fingerprints of the prepared images.
    unreadable : identifier and reason of every image that could not be used.
    features : array of shape (N, D), float32: what the head is given; None where the engine does
        not tell it.
    """

    logits: FloatArray
    labels: IntArray
    indices: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    unreadable: tuple[tuple[str, str], ...]
    features: FloatArray | None = None


def batch_size_for(preprocessing: Preprocessing | Canvas) -> int:
    """Return images per batch: 16 at 224 pixels, more of smaller ones, fewer of larger ones."""
    low, high = _BATCH_SIZES
    return max(low, min(high, _BATCH_PIXELS // (preprocessing.height_px * preprocessing.width_px)))


def fingerprints(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return 64 bits of BLAKE2b per prepared image, shape (N,), of images (N, H, W, 3).

    Of the pixels a model sees and not of the file: the same picture stored losslessly in another
    format, under another name or in another container has the same fingerprint. A JPEG of it has
    other pixels, and so another one.
    """
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def collect_logits(
    engine: Engine,
    dataset: Dataset,
    labels: IntArray,
    preprocessing: Preprocessing,
    *,
    track: Tracker = silent,
    label: str = "images",
) -> Logits:
    """Return the engine's logits, and features where it tells them, for every readable image.

    Parameters
    ----------
    labels : array of shape (N,), aligned to the model's class table.

    Raises
    ------
    DataError
        If no image is readable.
    EngineError
        If logits are not finite; the text names the image.
    """
    size = batch_size_for(preprocessing)
    loader = Loader(dataset, labels, preprocessing, batch_size=size)
    rows: dict[str, FloatArray] = {}  # filled in place: nothing of this size is held twice
    indices, hashes = [], []
    done = 0
    total = -(-len(dataset) // size)
    for batch in track(loader, total=total, label=label):
        results = engine.run({engine.inputs[0].name: batch.images})
        names = [dataset.identifier(int(i)) for i in batch.indices]
        check_finite(engine.name, results[engine.outputs[0].name], names)
        for name, values in results.items():
            if name not in rows:
                rows[name] = np.empty((len(dataset), values.shape[1]), values.dtype)
            rows[name][done : done + len(values)] = values
        done += len(batch.indices)
        indices.append(batch.indices)
        hashes.append(fingerprints(batch.images))
    if not done:
        first = loader.unreadable[0]
        raise DataError(
            f"None of the {len(dataset)} images of {dataset.name} is readable; the first is "
            f"{first[0]}: {first[1]}"
        )
    kept = np.concatenate(indices)
    return Logits(
        rows[engine.outputs[0].name][:done],
        labels[kept],
        kept,
        np.concatenate(hashes),
        tuple(loader.unreadable),
        rows["features"][:done] if "features" in rows else None,
    )
