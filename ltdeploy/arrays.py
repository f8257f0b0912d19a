"""Small numeric helpers on NumPy arrays that several rooms share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]

__all__ = ["FloatArray", "IntArray", "file_sha256", "log_softmax", "sigmoid", "softmax", "top_k"]

_HASH_CHUNK_BYTES = 1 << 20


def log_softmax(logits: FloatArray) -> FloatArray:
    """Return ``z - log Σ exp z`` over the last axis, shifted by the maximum so nothing overflows.

    Parameters
    ----------
    logits : array of shape (..., C).
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def softmax(logits: FloatArray) -> FloatArray:
    """Return probabilities over the last axis of ``logits`` of shape (..., C)."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return ``1 / (1 + exp −z)`` of any array, without overflow."""
    result: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return result


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Return the indices of the ``k`` largest scores per row, best first, ties to the lower index.

    Parameters
    ----------
    scores : array of shape (N, C), finite.

    Returns
    -------
    array of shape (N, min(k, C)), int64.
    """
    classes = scores.shape[1]
    k = min(k, classes)
    best = np.empty((len(scores), k), dtype=np.int64)
    # Sorting thousands of classes for the five best would cost a fast engine a tenth of its speed.
    least = np.partition(scores, classes - k, axis=1)[:, classes - k]
    for row, (values, enough) in enumerate(zip(scores, least, strict=True)):
        reached = np.flatnonzero(values >= enough)
        best[row] = reached[np.argsort(-values[reached], kind="stable")[:k]]
    return best


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hex, read in pieces so that memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
