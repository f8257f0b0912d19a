"""A bundle as something that answers: photographs in, classes out. This is the public way in."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import overload

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
from .prediction import ClassScore, Prediction
from .streaming import NamedImage, stream_answers

__all__ = ["Predictor", "load"]

_GOLDEN_TOLERANCE = 1e-3  # of the largest logit: other processors sum in another order
# In low precision another engine rounds elsewhere; what computes another model is further away.
_LOW_PRECISION_FACTOR = 4.0
_LOW_PRECISION_ROOM = 0.1


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
    def predict(
        self, images: ImageSource, *, top_k: int = 5, log_prior: npt.ArrayLike | None = None
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        images: list[ImageSource] | tuple[ImageSource, ...],
        *,
        top_k: int = 5,
        log_prior: npt.ArrayLike | None = None,
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self,
        images: Iterator[ImageSource],
        *,
        top_k: int = 5,
        log_prior: npt.ArrayLike | None = None,
    ) -> Iterator[Prediction]: ...
    def predict(
        self,
        images: ImageSource | list[ImageSource] | tuple[ImageSource, ...] | Iterator[ImageSource],
        *,
        top_k: int = 5,
        log_prior: npt.ArrayLike | None = None,
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
            one = _named([images])  # type: ignore[list-item]
            (answer,) = self.stream(one, top_k=top_k, log_prior=log_prior)
            if answer.error is not None:
                raise ImageError(answer.error)
            return answer
        if isinstance(images, Iterator):
            return self.stream(_named(images), top_k=top_k, log_prior=log_prior)
        if isinstance(images, list | tuple | np.ndarray):
            return list(self.stream(_named(images), top_k=top_k, log_prior=log_prior))
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
        log_prior: npt.ArrayLike | None = None,
    ) -> Iterator[Prediction]:
        """Classify named images as they come, decoding the next while the engine runs.

        Parameters
        ----------
        images : name and image, or name and a function that gets the image; it is called in the
            decoding threads. Taken in the caller's thread, a few batches ahead of the answers.
        top_k : classes per answer.
        log_prior : as of :meth:`answers`.

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
        prior = self._shift(log_prior)
        return stream_answers(
            images,
            self.preprocessing,
            lambda run, names: self.answers(
                self.logits(run.images, names=names), names, top_k=top_k, log_prior=prior
            ),
            lambda name, reason: Prediction(name, error=reason),
        )

    def classify(
        self,
        images: npt.NDArray[np.uint8],
        *,
        names: Sequence[str] | None = None,
        top_k: int = 5,
        log_prior: npt.ArrayLike | None = None,
    ) -> list[Prediction]:
        """Classify ready inputs in one batch; nothing is decoded, resized or cut.

        Parameters
        ----------
        images : array of shape (N, H, W, 3), uint8, as :func:`ltdeploy.images.load_prepared` gives
            them.
        names : what the answers call them, N texts; by default their places.
        top_k : classes per answer.
        log_prior : as of :meth:`answers`.

        Raises
        ------
        EngineError
            As :meth:`logits`.
        """
        _check_top_k(top_k)
        names = names if names is not None else _places(len(images))
        if not len(images):
            return []
        return self.answers(
            self.logits(images, names=names), names, top_k=top_k, log_prior=log_prior
        )

    def answers(
        self,
        logits: FloatArray,
        names: Sequence[str],
        *,
        top_k: int = 5,
        log_prior: npt.ArrayLike | None = None,
    ) -> list[Prediction]:
        """Return the best classes of logits that were computed already.

        Parameters
        ----------
        logits : array of shape (N, C), float32, as :meth:`logits` gives them.
        names : what the answers call the images, N texts.
        top_k : classes per answer.
        log_prior : array of shape (C,), finite, added to the logits: what is known of one request
            and not of the model, such as a place or a season. For classes that are ``q_c`` there
            and ``p_c`` in what the model assumes it is ``log q_c − log p_c`` (Saerens et al. 2002,
            eq. 2.4); a constant added to all changes nothing.

        Raises
        ------
        UsageError
            If the prior does not fit.
        """
        _check_top_k(top_k)
        prior = self._shift(log_prior)
        probabilities = softmax(logits if prior is None else logits + prior)
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

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Run black images in these batch sizes, so that no request pays for what is lazy."""
        size = (self.preprocessing.height_px, self.preprocessing.width_px, 3)
        for count in batch_sizes:
            self.logits(np.zeros((count, *size), np.uint8))

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
        if not len(images):
            return np.empty((0, len(self.classes)), np.float32)
        try:
            logits = self.engine.run({"images": images})["logits"]
        except EngineError as error:
            raise EngineError(
                f"{error} It was at work on {len(names)} images, from {names[0]} to {names[-1]}."
            ) from error
        check_finite(self.engine.name, logits, list(names))
        return logits

    def _shift(self, log_prior: npt.ArrayLike | None) -> FloatArray | None:
        if log_prior is None:
            return None
        try:
            with np.errstate(over="ignore"):
                prior = np.asarray(log_prior, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"log_prior is {str(log_prior)[:80]!r}; expected {len(self.classes)} numbers."
            ) from None
        if prior.shape != (len(self.classes),) or not np.isfinite(prior).all():
            strange = "" if np.isfinite(prior).all() else " and numbers that no float32 holds"
            raise UsageError(
                f"log_prior has shape {prior.shape}{strange}; expected {len(self.classes)} finite "
                "numbers, one per class."
            )
        return prior

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
