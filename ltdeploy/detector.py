"""A detector's bundle as something that answers: photographs in, boxes out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import FloatArray
from .boxes import Detections
from .bundle import Bundle, open_bundle
from .canvas import Placement
from .classes import ClassTable
from .engines import Engine, open_engine
from .errors import BundleError, DataError, EngineError, ImageError, UsageError
from .images import ImageSource
from .pairing import agreement
from .postprocess import postprocess_batch
from .streaming import NamedImage, stream_answers

__all__ = ["DetectionPredictor", "DetectionResult", "FoundBox", "load_detector"]

_GOLDEN_SCORE = 1e-3  # other processors sum in another order
_GOLDEN_LEAST_SCORE = 0.05  # below, suppression may keep another of two boxes that are alike
_LOW_PRECISION_FACTOR, _LOW_PRECISION_ROOM = 4.0, 0.1


@dataclass(frozen=True)
class FoundBox:
    """One detection: class, score in 0..1, and box xyxy in pixels of the photograph.

    ``mask`` is the object over the whole photograph in COCO's run-length encoding, see
    :func:`ltdeploy.masks.run_lengths`; None where the model gives none.
    """

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    group: str
    train_count: int
    mask: dict[str, Any] | None = None


@dataclass(frozen=True)
class DetectionResult:
    """What was found in one photograph, best first, or why it could not be used.

    Attributes
    ----------
    input : what was asked, as a path or a place in the list.
    found : the boxes.
    error : why the image could not be used, else None.
    """

    input: str
    found: tuple[FoundBox, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return ``input`` and ``boxes`` (label, name, score, box, group, mask), or ``error``."""
        if self.error is not None:
            return {"input": self.input, "error": self.error}
        boxes = [
            {
                "label": one.label,
                "name": one.name,
                "score": one.score,
                "box": list(one.box),
                "group": one.group,
                **({} if one.mask is None else {"mask": one.mask}),
            }
            for one in self.found
        ]
        return {"input": self.input, "boxes": boxes}


class DetectionPredictor:
    """Finds boxes with one bundle. Thread-safe; ``close()`` it or use it as a context manager.

    Parameters
    ----------
    bundle : an opened detector's bundle.
    engine : what runs it.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        entry = bundle.manifest.detection
        if entry is None:
            raise BundleError(f"{bundle.path} is a classifier; load it with ltdeploy.load().")
        self.bundle = bundle
        self.engine = engine
        self.classes: ClassTable = bundle.classes
        self.canvas = bundle.canvas
        self.score_rule, self.keep_rule = entry.score_rule(), entry.keep_rule()
        self._groups = self.classes.groups
        self._closed = threading.Event()

    def __enter__(self) -> DetectionPredictor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine. Calling it twice is allowed."""
        if not self._closed.is_set():
            self._closed.set()
            self.engine.close()

    def predict(self, image: ImageSource, *, min_score: float = 0.05) -> DetectionResult:
        """Find boxes in one photograph.

        Parameters
        ----------
        image : a path, encoded bytes, a uint8 array (H, W, 3) or a PIL image.
        min_score : boxes below it are left out.

        Raises
        ------
        ImageError
            If it cannot be used.
        """
        (answer,) = self.stream([("#0", image)], min_score=min_score)
        if answer.error is not None:
            raise ImageError(answer.error)
        return answer

    __call__ = predict

    def stream(
        self,
        images: Iterable[NamedImage],
        *,
        top_k: int = 100,
        min_score: float = 0.05,
    ) -> Iterator[DetectionResult]:
        """Find boxes in named images as they come, decoding the next while the engine runs.

        Parameters
        ----------
        top_k : boxes per answer at most, best first.
        min_score : boxes below it are left out.

        Yields
        ------
        DetectionResult
            One per image, in order; one that cannot be used has its ``error`` set.

        Raises
        ------
        EngineError
            If the engine fails; the text names the images of that batch.
        """
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; expected 1 or more.")
        if not 0 <= min_score <= 1:
            raise UsageError(f"min_score is {min_score}; expected a number from 0 to 1.")
        return stream_answers(
            images,
            self.canvas,
            lambda run, names: (
                self.named(name, found[:top_k], min_score)
                for name, found in zip(
                    names, self.detect(run.images, run.placements, names=names), strict=True
                )
            ),
            lambda name, reason: DetectionResult(name, error=reason),
        )

    def detect(
        self,
        images: npt.NDArray[np.uint8],
        placements: Sequence[Placement],
        *,
        names: Sequence[str] | None = None,
    ) -> list[Detections]:
        """Find boxes on ready canvases, everything that the manifest's rule keeps.

        Parameters
        ----------
        images : array of shape (N, H, W, 3), uint8, as :meth:`Canvas.prepare` gives them.
        placements : where the photographs stand on them.
        names : what errors call them; by default their places.

        Raises
        ------
        EngineError
            If the engine fails or gives what is not finite; the text names the images.
        """
        if not len(images):
            return []
        names = names if names is not None else [f"#{place}" for place in range(len(images))]
        outputs = self.raw(images, names)
        try:
            return postprocess_batch(outputs, self.score_rule, self.keep_rule, placements, names)
        except DataError as error:
            raise EngineError(f"{self.engine.name}: {error}") from error

    def raw(self, images: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, FloatArray]:
        """Return the graph's outputs for ready canvases."""
        if self._closed.is_set():
            raise UsageError(
                f"The predictor of {self.bundle.name} was closed; load the bundle again."
            )
        try:
            return self.engine.run({"images": images})
        except EngineError as error:
            raise EngineError(
                f"{error} It was at work on {len(names)} images, from {names[0]} to {names[-1]}."
            ) from error

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Run black canvases in these batch sizes, so that no request pays for what is lazy."""
        size = (self.canvas.height_px, self.canvas.width_px, 3)
        for count in batch_sizes:
            self.raw(np.zeros((count, *size), np.uint8), [f"#{place}" for place in range(count)])

    def replay_golden(self) -> float:
        """Run the bundle's golden samples and return the largest difference of a score.

        Raises
        ------
        BundleError
            If this machine finds other boxes than the reference.
        """
        golden = self.bundle.golden_detections()
        whole = self.canvas.place(self.canvas.height_px, self.canvas.width_px)
        found = self.detect(golden.images, [whole] * len(golden.images))
        at_export = self.bundle.manifest.graphs[0].golden_difference
        low = min(_LOW_PRECISION_FACTOR * at_export, at_export + _LOW_PRECISION_ROOM)
        allowed = max(_GOLDEN_SCORE, low)
        difference = 0.0
        for ours, theirs in zip(found, golden.found, strict=True):
            apart = agreement(ours, theirs, least_score=_GOLDEN_LEAST_SCORE + allowed)
            difference = max(difference, apart.score_difference, apart.alone)
        if not difference <= allowed:
            raise BundleError(
                f"{self.engine.name} scores boxes {difference:.3g} away from the golden samples of "
                f"{self.bundle.name}; expected at most {allowed:.3g}. This engine or machine does "
                "not compute the exported model: see 'ltdeploy doctor'."
            )
        return difference

    def named(self, name: str, found: Detections, min_score: float) -> DetectionResult:
        """Return detections with the names, groups and counts of their classes.

        Parameters
        ----------
        name : what the answer calls the photograph.
        min_score : boxes below it are left out.
        """
        found = found[found.scores >= min_score]
        masks = [None] * len(found) if found.masks is None else found.masks.encoded()
        rows = zip(
            found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), masks, strict=True
        )
        return DetectionResult(
            name,
            tuple(
                FoundBox(
                    label,
                    self.classes.names[label],
                    score,
                    (box[0], box[1], box[2], box[3]),
                    self._groups[label],
                    self.classes.counts[label],
                    mask,
                )
                for label, score, box, mask in rows
            ),
        )


def load_detector(
    path: str | os.PathLike[str],
    *,
    engine: str = "auto",
    threads: int | None = None,
    verify: bool = False,
) -> DetectionPredictor:
    """Open a detector's bundle for prediction; torch is not imported.

    Parameters
    ----------
    path, engine, threads, verify : as for :func:`ltdeploy.load`.

    Raises
    ------
    BundleError, EngineError, MissingExtraError

    Examples
    --------
    ::

        model = ltdeploy.load_detector("cells.ltd")
        for one in model("smear.jpg").found:
            print(one.name, one.score, one.box)
    """
    bundle = open_bundle(path)
    predictor = DetectionPredictor(bundle, open_engine(bundle, engine, threads=threads))
    if verify:
        predictor.replay_golden()
    return predictor
