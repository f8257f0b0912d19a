"""Top-1 of every image at every strength of a fix, without mapping all logits at each strength.

What makes it short stands in :mod:`.curves`; here rows are read and shared out to threads.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..errors import FixError
from .affine import AffineMap
from .base import Fix, FixContext
from .curves import curves_of, require_finite, winners
from .logit_map import LogitMap

__all__ = ["sweep_fix", "sweep_maps", "sweep_top1"]

Labels = npt.NDArray[np.int32]
_Read = Callable[[int, int], FloatArray]

_BLOCK_ELEMENTS = 1 << 19  # 2 MB of float32: stays in the cache, and calls cost next to nothing
_CHUNK_ROWS = 1024
_MOST_THREADS = 4


def sweep_top1(
    logits: FloatArray | Path | str,
    scale_exponents: npt.ArrayLike | None,
    shift_slopes: npt.ArrayLike | None,
    strengths: npt.ArrayLike,
    offset: npt.ArrayLike | None = None,
) -> Labels:
    """Return the top-1 label of every image at every strength of a one-parameter family.

    Either ``z + τ g`` (logit adjustment: g = −log π) or ``(z − b) exp(τ h)`` (τ-normalisation:
    h_c = −log(‖w_c‖ / gm), and b the bias where it is dropped).

    Parameters
    ----------
    logits : array of shape (N, C), or the path of an .npy file that holds it, which is read in
        blocks and never held; so is the file of a memory map (of a whole file, not of a part).
    scale_exponents : h, array of shape (C,), or None.
    shift_slopes : g, array of shape (C,), or None; one of the two is given.
    strengths : τ, array of shape (S,).
    offset : b, array of shape (C,), subtracted from the logits first, or None.

    Returns
    -------
    array of shape (N, S), int32: ``(logits * scale + shift).argmax(1)`` per strength, computed in
    float32 (float64 for float64 logits); ties go to the lower label.

    Raises
    ------
    FixError
        For shapes that do not belong together, or logits that are not finite.
    """
    if (scale_exponents is None) == (shift_slopes is None):
        raise FixError("A sweep needs exponents of the scale or slopes of the shift, one of them.")
    values = np.asarray(strengths, dtype=np.float64)
    slopes = np.asarray(
        shift_slopes if scale_exponents is None else scale_exponents, dtype=np.float64
    )
    if values.ndim != 1 or not len(values) or slopes.ndim != 1:
        raise FixError(
            f"A sweep needs strengths of shape (S,) and slopes of shape (C,); got {values.shape} "
            f"and {slopes.shape}."
        )
    moved = np.zeros(len(slopes)) if offset is None else np.asarray(offset, dtype=np.float64)
    if shift_slopes is not None:
        maps = [AffineMap(np.ones(len(slopes)), tau * slopes - moved) for tau in values]
    else:
        scales = [np.exp(tau * slopes) for tau in values]
        maps = [AffineMap(scale, -scale * moved) for scale in scales]
    return sweep_maps(logits, maps, values)


def sweep_fix(fixes: Sequence[Fix], context: FixContext, strengths: npt.ArrayLike) -> Labels:
    """Return the top-1 label of every validation image under each of ``fixes``.

    Parameters
    ----------
    fixes : one fix at several strengths, for example ``[TauNorm(tau) for tau in grid]``.
    context : must hold logits of shape (N, C).
    strengths : the strength of each fix, array of shape (S,).

    Returns
    -------
    array of shape (N, S), int32.

    Raises
    ------
    FixError
        If a fix cannot be fitted, or see :func:`sweep_maps`.
    """
    assert context.logits is not None
    maps = [fix.fit(context) for fix in fixes]
    return sweep_maps(context.logits, maps, strengths, context.features)


def sweep_maps(
    logits: FloatArray | Path | str,
    maps: Sequence[LogitMap],
    strengths: npt.ArrayLike,
    features: FloatArray | None = None,
) -> Labels:
    """Return the top-1 label of every image under each of ``maps``, shape (N, S), int32.

    Maps that follow one of the two families of :func:`sweep_top1` over ``strengths`` are
    recognised by their numbers and take the short way; any others are applied block by block.

    Parameters
    ----------
    logits : see :func:`sweep_top1`.
    maps : one per strength.
    strengths : array of shape (S,).
    features : array of shape (N, D), for maps that look at them.

    Raises
    ------
    FixError
        For shapes that do not belong together, or logits that are not finite.
    """
    values = np.asarray(strengths, dtype=np.float64)
    source, read, dtype = _open(logits)
    if source.ndim != 2 or values.shape != (len(maps),) or not len(maps):
        raise FixError(
            f"A sweep needs logits of shape (N, C) and a map per strength; got {source.shape}, "
            f"{len(maps)} maps and strengths of shape {values.shape}."
        )
    images, classes = source.shape
    for one in maps:
        if one.classes != classes:
            raise FixError(
                f"The logits have {classes} classes and the fix's map {one.classes}; they belong "
                "to different models."
            )
    curves = curves_of(maps, values, dtype)
    rows = max(1, _BLOCK_ELEMENTS // classes)
    chunk = max(rows, _CHUNK_ROWS)
    top1 = np.empty((images, len(maps)), dtype=np.int32)

    def work(start: int) -> None:
        stop = min(start + chunk, images)
        with np.errstate(over="ignore", invalid="ignore"):  # require_finite says where
            if curves is None:
                _plain(read, start, stop, rows, maps, features, top1)
            else:
                blocks = (read(row, min(row + rows, stop)) for row in range(start, stop, rows))
                winners(blocks, curves, start, top1[start:stop])

    starts = range(0, images, chunk)
    threads = min(len(starts), len(os.sched_getaffinity(0)), _MOST_THREADS)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(work, starts))
    return top1


def _open(logits: FloatArray | Path | str) -> tuple[FloatArray, _Read, npt.DTypeLike]:
    """Return the logits, a function that returns rows of them, and the dtype to compute in.

    What a memory map has shown counts as resident until the system wants it back, so the rows of
    its file are read into an array of their own instead.
    """
    source = _mapped(logits) if isinstance(logits, str | Path) else logits
    dtype = np.float64 if source.dtype.itemsize > 4 else np.float32
    base: object = source.base
    # A part of a map does not know where in the file it begins; a copy-on-write map may differ
    # from its file.
    if (
        isinstance(source, np.memmap)
        and isinstance(base, mmap.mmap)
        and source.mode != "c"
        and source.flags.c_contiguous
    ):
        file, begin, stored = str(source.filename), source.offset, source.dtype
        columns = source.shape[-1]

        def read_file(start: int, stop: int) -> FloatArray:
            block = np.fromfile(
                file,
                dtype=stored,
                count=(stop - start) * columns,
                offset=begin + start * columns * stored.itemsize,
            )
            return block.reshape(stop - start, columns).astype(dtype, copy=False)

        return source, read_file, dtype

    def read_array(start: int, stop: int) -> FloatArray:
        return np.ascontiguousarray(source[start:stop], dtype=dtype)

    return source, read_array, dtype


def _mapped(path: Path | str) -> FloatArray:
    """Return the array of an .npy file as a memory map."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FixError(f"Cannot read the logits of {path}: {error}") from error
    if not isinstance(found, np.memmap):
        raise FixError(
            f"{path} holds several arrays; logits are swept from an .npy file of one array. Write "
            "it with numpy.save."
        )
    return found


def _plain(
    read: _Read,
    start: int,
    stop: int,
    rows: int,
    maps: Sequence[LogitMap],
    features: FloatArray | None,
    top1: Labels,
) -> None:
    """Fill ``top1[start:stop]`` by applying every map to every block."""
    for row in range(start, stop, rows):
        end = min(row + rows, stop)
        logits = read(row, end)
        require_finite(logits.max(axis=1), row)
        inputs = None if features is None else features[row:end]
        for column, one in enumerate(maps):
            top1[row:end, column] = one.apply(logits, inputs).argmax(axis=1)
