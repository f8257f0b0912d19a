"""A model that can be exchanged while it answers: for services that run for months."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .errors import BundleError, UsageError
from .images import ImageSource
from .loading import Answer, Model, open_proven

__all__ = ["LiveModel"]


class LiveModel:
    """Answers with the bundle loaded last; exchanging it drops no call. Thread-safe.

    Every call holds the model it began with. A new one takes over once it has replayed its golden
    samples; the old one is closed when its last call ends. One that fails is refused, and the old
    one stays.

    Parameters
    ----------
    path : the bundle's folder, ``NAME.ltd``.
    engine, threads : as of :func:`ltdeploy.load`.

    Raises
    ------
    BundleError, EngineError, MissingExtraError
        As :func:`ltdeploy.load`; also where the golden samples come out otherwise.

    Examples
    --------
    ::

        model = LiveModel("moths.ltd")
        model("photo.jpg").best
        model.exchange("moths-2.ltd")  # from any thread, at any time
    """

    def __init__(
        self, path: str | os.PathLike[str], *, engine: str = "auto", threads: int | None = None
    ) -> None:
        self._engine, self._threads = engine, threads
        self._lock = threading.Lock()
        self._held: _Held | None = _Held(self._opened(path))

    def __enter__(self) -> LiveModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def leased(self) -> Iterator[Model]:
        """Hold the present model for several calls; it is not closed before the block ends.

        Raises
        ------
        UsageError
            If this was closed.
        """
        with self._lock:
            held = self._held
            if held is None:
                raise UsageError("The live model was closed; make another one.")
            held.leases += 1
        try:
            yield held.model
        finally:
            self._release(held)

    def predict(self, image: ImageSource, **options: Any) -> Answer:
        """Answer for one image, with the options of the model's own ``predict``.

        Raises
        ------
        UsageError
            For an iterator, which would be read after the model was given back: use `leased`.
        """
        if isinstance(image, Iterator):
            raise UsageError("A live model answers for one image; for a stream, use leased().")
        with self.leased() as model:
            return model.predict(image, **options)

    __call__ = predict

    def exchange(self, path: str | os.PathLike[str]) -> None:
        """Load another bundle, check it, and let it take over.

        Raises
        ------
        BundleError, EngineError, MissingExtraError
            As at the beginning; the present model stays.
        UsageError
            If this was closed.
        """
        new = _Held(self._opened(path))
        try:
            with self.leased() as present:
                _require_same_task(present, new.model)
        except BaseException:
            new.model.close()
            raise
        with self._lock:
            old, closed = self._held, self._held is None
            if not closed:
                self._held = new
        if closed:
            new.model.close()
            raise UsageError("The live model was closed; make another one.")
        if old is not None:
            self._release(old)

    def close(self) -> None:
        """Take no more calls; the model is closed when the last one ends. Twice is allowed."""
        with self._lock:
            held, self._held = self._held, None
        if held is not None:
            self._release(held)

    def _opened(self, path: str | os.PathLike[str]) -> Model:
        return open_proven(path, self._engine, threads=self._threads)

    def _release(self, held: _Held) -> None:
        with self._lock:
            held.leases -= 1
            last = held.leases == 0
        if last:
            held.model.close()


def _require_same_task(present: Model, new: Model) -> None:
    """Raise where callers would get answers of another kind."""
    if present.bundle.is_detector != new.bundle.is_detector:
        raise BundleError(
            f"{new.bundle.path} is a {'detector' if new.bundle.is_detector else 'classifier'}, and "
            "the present model is not; make another live model for it."
        )


class _Held:
    """A model and how many hold it; whoever lets it answer is one of them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.leases = 1
