"""One version of a bundle that answers: photographs or tensors in, run together, answers out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray
from ltdeploy.canvas import load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.detector import DetectionPredictor
from ltdeploy.engines import TensorSpec
from ltdeploy.errors import ImageError, ImageTooLargeError, UnknownFormatError, UsageError
from ltdeploy.images import ImageLimits, load_prepared
from ltdeploy.loading import Model
from ltdeploy.postprocess import postprocess_batch
from ltdeploy.predictor import Predictor

from .batching import Batcher, BatchRules
from .contracts import Arrays, BatchReport
from .failures import BadRequest, TooLarge, TooMany, Unavailable, Unprocessable, UnsupportedMedia
from .fairness import Turns
from .metrics import Metrics

__all__ = ["Asked", "Served"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """What a request for one photograph asks for; None is the default.

    Parameters
    ----------
    top_k : classes, or boxes, at most: 5, or 100.
    min_score : boxes below it are left out: 0.05.
    deadline_s : seconds from now after which the answer is of no use.
    log_prior : of a classifier, array of shape (C,), added to the logits.
    """

    top_k: int | None = None
    min_score: float | None = None
    deadline_s: float | None = None
    log_prior: npt.NDArray[np.float32] | None = None


class Served:
    """A loaded bundle behind a batcher. It owns the model and closes it.

    Parameters
    ----------
    name, version : in addresses; the version is a whole number as text.
    model : opened, and replayed where it must be.
    rules : of its batches and its queue.
    turns : which model runs next on this machine.
    decoders : threads in which photographs are decoded.
    limits : of a photograph.
    metrics : what is told of every run and answer.
    timeout_s : the longest deadline, and that of requests that name none.
    """

    def __init__(
        self,
        name: str,
        version: str,
        model: Model,
        rules: BatchRules,
        *,
        turns: Turns,
        decoders: Executor,
        limits: ImageLimits,
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        self.name, self.version, self.model = name, version, model
        self.is_ready = True
        self._successor: Served | None = None
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._rules, self._decoders, self._limits, self._metrics = rules, decoders, limits, metrics
        self._timeout_s, self._decoding = timeout_s, 0
        self._batcher = Batcher(self._run, rules, turns=turns, name=name, observe=self._observe)

    @property
    def platform(self) -> str:
        """What runs it."""
        return self.model.engine.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """``images``, uint8 [N, H, W, 3]."""
        return self.model.engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Of a classifier ``logits``, of a detector as its manifest says."""
        return self.model.engine.outputs

    @property
    def classes(self) -> ClassTable:
        """Names, training counts and groups."""
        return self.model.classes

    async def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], *, deadline_s: float | None = None
    ) -> Arrays:
        """Return the graph's outputs; see :class:`ServedModel`."""
        if self._successor is not None:
            return await self._successor.infer(feeds, deadline_s=deadline_s)
        began = time.perf_counter()
        images = self._checked(feeds)
        with self._accepted():
            left = self._deadline(deadline_s)
            outputs = await self._batcher.submit({"images": images}, deadline_s=left)
        self._metrics.request(self.name, self.version, {"total": time.perf_counter() - began})
        if isinstance(self.model, Predictor):
            self._answered(outputs["logits"].argmax(axis=1))
        return outputs

    async def answer(self, body: bytes, asked: Asked) -> dict[str, Any]:
        """Return what is in one encoded photograph, as JSON values.

        Raises
        ------
        RequestError
            UnsupportedMedia, TooLarge and Unprocessable for what is no usable photograph,
            BadRequest for what cannot be asked, else as :meth:`infer`.
        """
        if self._successor is not None:
            return await self._successor.answer(body, asked)
        began = time.perf_counter()
        self._check(asked)
        # Before decoding, which costs the cores that the engine needs.
        if self._batcher.pending_images + self._decoding >= self._rules.max_queue:
            raise TooMany(
                f"{self._rules.max_queue} images wait already; expected fewer. Try again later.",
                "queue_full",
                retry_after_s=1.0,
            )
        with self._accepted():
            ends = began + self._deadline(asked.deadline_s)
            self._decoding += 1
            try:
                async with asyncio.timeout(ends - began):
                    pixels, place = await self._in_thread(lambda: self._decode(body, ends))
            except TimeoutError:
                raise _late() from None
            finally:
                self._decoding -= 1
            decoded = time.perf_counter()
            left = ends - decoded
            outputs = await self._batcher.submit({"images": pixels[None]}, deadline_s=left)
            if isinstance(self.model, DetectionPredictor):
                told = await self._in_thread(lambda: self._boxes(outputs, place, asked))
            else:
                told = self._classes(outputs["logits"], asked)
        stages = {"decode": decoded - began, "total": time.perf_counter() - began}
        self._metrics.request(self.name, self.version, stages)
        return {"model": self.name, "version": self.version, **told}

    async def close(self, successor: Served | None = None) -> None:
        """Finish what was accepted, and release the engine.

        Parameters
        ----------
        successor : answers what still comes here, as a client may have looked this version up just
            before; None refuses that.
        """
        self.is_ready, self._successor = False, successor
        await self._idle.wait()
        await self._batcher.close()
        await asyncio.get_running_loop().run_in_executor(None, self.model.close)

    @contextmanager
    def _accepted(self) -> Iterator[None]:
        """Count a request that close() waits for."""
        if not self.is_ready:
            raise Unavailable("The server is shutting down.", "draining", retry_after_s=5.0)
        self._under_way += 1
        self._idle.clear()
        self._tell_pending()
        try:
            yield
        finally:
            self._under_way -= 1
            self._tell_pending()
            if not self._under_way:
                self._idle.set()

    def _tell_pending(self) -> None:
        images = self._batcher.pending_images
        self._metrics.pending(self.name, self.version, images, self._under_way)

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> Arrays:
        images = feeds["images"]
        if isinstance(self.model, Predictor):
            return {"logits": self.model.logits(images)}
        return dict(self.model.raw(images, [f"#{place}" for place in range(len(images))]))

    def _observe(self, report: BatchReport) -> None:
        self._metrics.batch(self.name, self.version, report)
        self._tell_pending()

    def _answered(self, labels: npt.NDArray[np.int64]) -> None:
        self._metrics.answered(self.name, self.version, self.classes, labels)

    def _checked(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.uint8]:
        (spec,) = self.inputs
        images: Any = feeds.get(spec.name)
        if images is None or len(feeds) != 1:
            raise BadRequest(
                f"The inputs are {', '.join(feeds) or 'none'}; expected {spec.name!r} alone.",
                "inputs",
            )
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != spec.shape[1:]:
            raise BadRequest(
                f"The input {spec.name!r} is {images.dtype} {list(images.shape)}; expected uint8 "
                f"[N, {', '.join(map(str, spec.shape[1:]))}]: RGB, already resized. For encoded "
                "photographs there is /v1/predict.",
                "input_shape",
            )
        if not 1 <= len(images) <= self._rules.max_batch:
            raise TooLarge(
                f"The batch has {len(images)} images; expected 1 to {self._rules.max_batch}.",
                "batch_too_large",
            )
        checked: npt.NDArray[np.uint8] = images
        return checked

    def _check(self, asked: Asked) -> None:
        if asked.top_k is not None and asked.top_k < 1:
            raise BadRequest(f"top_k is {asked.top_k}; expected 1 or more.", "top_k")
        if asked.min_score is not None and not 0 <= asked.min_score <= 1:
            raise BadRequest(f"min_score is {asked.min_score}; expected 0 to 1.", "min_score")
        if asked.log_prior is not None and isinstance(self.model, DetectionPredictor):
            raise BadRequest("A detector takes no log_prior.", "log_prior")

    def _deadline(self, asked_s: float | None) -> float:
        return self._timeout_s if asked_s is None else min(asked_s, self._timeout_s)

    def _decode(self, body: bytes, ends: float) -> tuple[npt.NDArray[np.uint8], Any]:
        if time.perf_counter() >= ends:
            raise _late()  # it waited for a thread until then; others need the thread
        try:
            if isinstance(self.model, DetectionPredictor):
                return load_on_canvas(body, self.model.canvas, self._limits, name="The image")
            prepared = self.model.preprocessing
            return load_prepared(body, prepared, self._limits, name="The image"), None
        except UnknownFormatError as error:
            raise UnsupportedMedia(str(error), "image_format") from error
        except ImageTooLargeError as error:
            raise TooLarge(str(error), "image_size") from error
        except ImageError as error:
            raise Unprocessable(str(error), "image") from error

    def _classes(self, logits: FloatArray, asked: Asked) -> dict[str, Any]:
        assert isinstance(self.model, Predictor)
        try:
            (answer,) = self.model.answers(
                logits, ["#0"], top_k=asked.top_k or 5, log_prior=asked.log_prior
            )
        except UsageError as error:
            raise BadRequest(str(error), "log_prior") from error
        self._answered(np.array([answer.best.label]))
        return {"top": [asdict(one) for one in answer.top]}

    def _boxes(self, outputs: Arrays, place: Any, asked: Asked) -> dict[str, Any]:
        model = self.model
        assert isinstance(model, DetectionPredictor)
        (found,) = postprocess_batch(outputs, model.score_rule, model.keep_rule, [place], ["#0"])
        least = 0.05 if asked.min_score is None else asked.min_score
        answer = model.named("#0", found[: asked.top_k or 100], least)
        self._answered(np.array([one.label for one in answer.found], np.int64))
        boxes = [asdict(one) for one in answer.found]
        for one in boxes:
            if one["mask"] is None:
                del one["mask"]
        return {"boxes": boxes}

    async def refuse_waiting(self) -> None:
        """Refuse what waits, with 503; what runs ends."""
        self.is_ready = False
        await self._batcher.close(drain=False)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)


def _late() -> Unavailable:
    return Unavailable(
        "The photograph waited for its decoding until its deadline.", "deadline", retry_after_s=1.0
    )
