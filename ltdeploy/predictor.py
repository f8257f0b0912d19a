"""A bundle as something that answers: photographs in, classes out. This is the public way in."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from .arrays import FloatArray, softmax, top_k
from .bundle import Bundle, open_bundle
from .classes import ClassTable
from .datasets.loader import decode_ahead
from .engines import Engine, check_finite, open_engine
from .errors import BundleError, ImageError, UsageError
from .images import ImageSource
from .inference import batch_size_for

__all__ = ["ClassScore", "Prediction", "Predictor", "load"]

_GOLDEN_TOLERANCE = 1e-3  # of the largest logit: other processors sum in another order


@dataclass(frozen=True)
class ClassScore:
    """One class of an answer; ``prob`` is in 0..1, ``train_count`` in images."""

    label: int
    name: str
    prob: float
    group: str
    train_count: int


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: the best classes first, or why there is none.

    Attributes
    ----------
    input : what was asked, as a path or a place in the list.
    top : the k most probable classes; empty where the image could not be used.
    error : why the image could not be used, else None.
    """

    input: str
    top: tuple[ClassScore, ...] = ()
    error: str | None = None

    @property
    def best(self) -> ClassScore:
        """The most probable class.

        Raises
        ------
        ImageError
            If the image could not be used.
        """
        if self.error is not None:
            raise ImageError(self.error)
        return self.top[0]

    def to_dict(self) -> dict[str, Any]:
        """Return ``input`` and ``top`` (label, name, prob, group), or ``input`` and ``error``."""
        if self.error is not None:
            return {"input": self.input, "error": self.error}
        top = [asdict(score) for score in self.top]
        for score in top:
            score.pop("train_count")
        return {"input": self.input, "top": top}


class Predictor:
    """Answers for one bundle. Thread-safe; ``close()`` it or use it as a context manager.

    Parameters
    ----------
    bundle : an opened bundle.
    engine : what runs it.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle = bundle
        self.engine = engine
        self.classes: ClassTable = bundle.classes
        self.preprocessing = bundle.preprocessing
        self._groups = self.classes.groups
        self._closed = threading.Event()

    def __enter__(self) -> Predictor:
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

    @overload
    def predict(self, images: ImageSource, *, top_k: int = 5) -> Prediction: ...
    @overload
    def predict(
        self, images: list[ImageSource] | tuple[ImageSource, ...], *, top_k: int = 5
    ) -> list[Prediction]: ...
    @overload
    def predict(self, images: Iterator[ImageSource], *, top_k: int = 5) -> Iterator[Prediction]: ...
    def predict(
        self,
        images: ImageSource | list[ImageSource] | tuple[ImageSource, ...] | Iterator[ImageSource],
        *,
        top_k: int = 5,
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Classify one image, a list of images, or an iterator of them.

        Parameters
        ----------
        images : a path, encoded bytes, a uint8 array (H, W, 3), a PIL image; or a list of
            these, or an array (N, H, W, 3); or an iterator, which is read as it is answered,
            so that it may be endless.
        top_k : classes per answer.

        Returns
        -------
        one prediction, a list, or an iterator, as was asked.

        Raises
        ------
        ImageError
            If the one image cannot be used. In lists and iterators such an image gets a
            prediction with ``error`` set, and the others are answered.
        UsageError
            If ``top_k`` is below 1 or the predictor was closed.
        """
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; expected 1 or more.")
        if _is_one_image(images):
            answer = next(self._answers(iter([images]), top_k))  # type: ignore[list-item]
            if answer.error is not None:
                raise ImageError(answer.error)
            return answer
        if isinstance(images, Iterator):
            return self._answers(images, top_k)
        if isinstance(images, list | tuple | np.ndarray):
            return list(self._answers(iter(images), top_k))
        raise UsageError(
            f"Cannot classify a {type(images).__name__}; expected a path, bytes, a uint8 array, a "
            "PIL image, or a list or iterator of these."
        )

    __call__ = predict

    def logits(self, images: npt.NDArray[np.uint8]) -> FloatArray:
        """Return logits, float32 (N, C), fix included, of ready inputs uint8 (N, H, W, 3).

        Raises
        ------
        EngineError
            If they are not finite.
        """
        if self._closed.is_set():
            raise UsageError(
                f"The predictor of {self.bundle.name} was closed; load the bundle again."
            )
        logits = self.engine.run({"images": images})["logits"]
        check_finite(self.engine.name, logits, [f"{i} of the batch" for i in range(len(images))])
        return logits

    def _answers(self, sources: Iterator[ImageSource], k: int) -> Iterator[Prediction]:
        names: deque[str] = deque()  # of the images under way: decoding runs ahead

        def named() -> Iterator[tuple[str, ImageSource]]:
            for index, source in enumerate(sources):
                names.append(_identifier(source, index))
                yield names[-1], source

        runs = decode_ahead(
            named(),
            lambda pair: pair,
            self.preprocessing,
            batch_size=batch_size_for(self.preprocessing),
        )
        try:
            first = 0
            for run in runs:
                size = len(run.positions) + len(run.failures)
                answers = dict(
                    zip(run.positions.tolist(), self._classify(run.images, k), strict=True)
                )
                errors = {place: str(error) for place, error in run.failures}
                for place in range(first, first + size):
                    name = names.popleft()
                    if place in errors:
                        yield Prediction(name, error=errors[place])
                    else:
                        yield Prediction(name, answers[place])
                first += size
        finally:
            runs.close()

    def _classify(self, images: npt.NDArray[np.uint8], k: int) -> Iterator[tuple[ClassScore, ...]]:
        if not len(images):
            return
        probabilities = softmax(self.logits(images))
        for row, best in zip(probabilities, top_k(probabilities, k), strict=True):
            yield self._scores(row, best)

    def _scores(self, probabilities: FloatArray, best: npt.NDArray[Any]) -> tuple[ClassScore, ...]:
        return tuple(
            ClassScore(
                label=int(label),
                name=self.classes.names[label],
                prob=float(probabilities[label]),
                group=self._groups[label],
                train_count=self.classes.counts[label],
            )
            for label in best
        )

    def replay_golden(self) -> float:
        """Run the bundle's golden samples and return the largest difference of a logit.

        Raises
        ------
        BundleError
            If this machine's answers are not the reference's.
        """
        golden = self.bundle.golden()
        difference = float(np.abs(self.logits(golden.images) - golden.logits).max())
        allowed = _GOLDEN_TOLERANCE * max(1.0, float(np.abs(golden.logits).max()))
        if not difference <= allowed:
            raise BundleError(
                f"{self.engine.name} answers {difference:.3g} away from the golden samples of "
                f"{self.bundle.name}; expected at most {allowed:.3g}. This engine or machine does "
                "not compute the exported model: see 'ltdeploy doctor'."
            )
        return difference


def load(
    path: str | os.PathLike[str],
    *,
    engine: str = "onnxruntime",
    threads: int | None = None,
    verify: bool = False,
) -> Predictor:
    """Open a bundle for prediction; torch is not imported.

    Parameters
    ----------
    path : the bundle's folder, ``NAME.ltd``.
    engine : what runs it; never silently another one.
    threads : threads for one batch; None takes all cores.
    verify : replay the golden samples first.

    Raises
    ------
    BundleError, EngineError, MissingExtraError

    Examples
    --------
    ::

        model = ltdeploy.load("moths.ltd")
        model("photo.jpg").best.name
    """
    bundle = open_bundle(path)
    predictor = Predictor(bundle, open_engine(bundle, engine, threads=threads))
    if verify:
        predictor.replay_golden()
    return predictor


def _is_one_image(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | bytes | Path | os.PathLike | Image.Image)


def _identifier(source: ImageSource, index: int) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"#{index}"
