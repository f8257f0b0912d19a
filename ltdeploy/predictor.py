"""A bundle as something that answers: photographs in, classes out. This is the public way in."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from .arrays import FloatArray, softmax
from .arrays import top_k as best_k
from .bundle import Bundle, open_bundle
from .classes import ClassTable
from .engines import Engine, check_finite, open_engine
from .errors import BundleError, EngineError, ImageError, UsageError
from .images import ImageSource
from .streaming import NamedImage, stream_answers

__all__ = ["ClassScore", "Prediction", "Predictor", "load"]

_GOLDEN_TOLERANCE = 1e-3  # of the largest logit: other processors sum in another order
# In low precision another engine rounds elsewhere; what computes another model is further away.
_LOW_PRECISION_FACTOR = 4.0
_LOW_PRECISION_ROOM = 0.1


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
        if _is_one_image(images):
            (answer,) = self.stream(_named([images]), top_k=top_k)  # type: ignore[list-item]
            if answer.error is not None:
                raise ImageError(answer.error)
            return answer
        if isinstance(images, Iterator):
            return self.stream(_named(images), top_k=top_k)
        if isinstance(images, list | tuple | np.ndarray):
            return list(self.stream(_named(images), top_k=top_k))
        raise UsageError(
            f"Cannot classify a {type(images).__name__}; expected a path, bytes, a uint8 array, a "
            "PIL image, or a list or iterator of these."
        )

    __call__ = predict

    def stream(
        self,
        images: Iterable[NamedImage],
        *,
        top_k: int = 5,
    ) -> Iterator[Prediction]:
        """Classify named images as they come, decoding the next while the engine runs.

        Parameters
        ----------
        images : name and image, or name and a function that gets the image; it is called in the
            decoding threads. Taken in the caller's thread, a few batches ahead of the answers.
        top_k : classes per answer.

        Yields
        ------
        Prediction
            One per image, in order; one that cannot be used has its ``error`` set.

        Raises
        ------
        EngineError
            If the engine fails; the text names the images of that batch. Those before it have been
            answered.
        """
        _check_top_k(top_k)
        return stream_answers(
            images,
            self.preprocessing,
            lambda run, names: self.classify(run.images, names=names, top_k=top_k),
            lambda name, reason: Prediction(name, error=reason),
        )

    def classify(
        self,
        images: npt.NDArray[np.uint8],
        *,
        names: Sequence[str] | None = None,
        top_k: int = 5,
    ) -> list[Prediction]:
        """Classify ready inputs in one batch; nothing is decoded, resized or cut.

        Parameters
        ----------
        images : array of shape (N, H, W, 3), uint8, as :func:`ltdeploy.images.load_prepared` gives
            them.
        names : what the answers call them, N texts; by default their places.
        top_k : classes per answer.

        Raises
        ------
        EngineError
            As :meth:`logits`.
        """
        _check_top_k(top_k)
        names = names if names is not None else _places(len(images))
        if not len(images):
            return []
        probabilities = softmax(self.logits(images, names=names))
        best = best_k(probabilities, top_k)
        rows = zip(best.tolist(), np.take_along_axis(probabilities, best, 1).tolist(), strict=True)
        known, counts, groups = self.classes.names, self.classes.counts, self._groups
        return [
            Prediction(
                name,
                tuple(
                    ClassScore(label, known[label], prob, groups[label], counts[label])
                    for label, prob in zip(labels, probs, strict=True)
                ),
            )
            for name, (labels, probs) in zip(names, rows, strict=True)
        ]

    def logits(
        self, images: npt.NDArray[np.uint8], *, names: Sequence[str] | None = None
    ) -> FloatArray:
        """Return logits, float32 (N, C), fix included, of ready inputs uint8 (N, H, W, 3).

        Parameters
        ----------
        names : what errors call the images; by default their places.

        Raises
        ------
        EngineError
            If the engine fails or they are not finite; the text names the images.
        """
        if self._closed.is_set():
            raise UsageError(
                f"The predictor of {self.bundle.name} was closed; load the bundle again."
            )
        names = names if names is not None else _places(len(images))
        try:
            logits = self.engine.run({"images": images})["logits"]
        except EngineError as error:
            raise EngineError(
                f"{error} It was at work on {len(names)} images, from {names[0]} to {names[-1]}."
            ) from error
        check_finite(self.engine.name, logits, list(names))
        return logits

    def replay_golden(self) -> float:
        """Run the bundle's golden samples and return the largest difference of a logit.

        Raises
        ------
        BundleError
            If this machine's answers are not the reference's.
        """
        golden = self.bundle.golden()
        difference = float(np.abs(self.logits(golden.images) - golden.logits).max())
        at_export = self.bundle.manifest.graphs[0].golden_difference
        low = min(_LOW_PRECISION_FACTOR * at_export, at_export + _LOW_PRECISION_ROOM)
        share = max(_GOLDEN_TOLERANCE, low)
        allowed = share * max(1.0, float(np.abs(golden.logits).max()))
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
    engine: str = "auto",
    threads: int | None = None,
    verify: bool = False,
) -> Predictor:
    """Open a bundle for prediction; torch is not imported.

    Parameters
    ----------
    path : the bundle's folder, ``NAME.ltd``.
    engine : what runs it, as ``NAME`` or ``NAME:key=value,…``; never silently another one. Only
        ``auto`` chooses: the fastest that works here, named by ``predictor.engine.name``.
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
    if bundle.is_detector:
        raise BundleError(f"{bundle.path} is a detector: ltdeploy.load_detector() opens it.")
    predictor = Predictor(bundle, open_engine(bundle, engine, threads=threads))
    if verify:
        predictor.replay_golden()
    return predictor


def _is_one_image(images: object) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | bytes | Path | os.PathLike | Image.Image)


def _named(sources: Iterable[ImageSource]) -> Iterator[tuple[str, ImageSource]]:
    for index, source in enumerate(sources):
        yield os.fspath(source) if isinstance(source, str | os.PathLike) else f"#{index}", source


def _places(count: int) -> list[str]:
    return [f"#{place}" for place in range(count)]


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise UsageError(f"top_k is {top_k}; expected 1 or more.")
