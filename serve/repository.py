"""The models of a server: loaded, looked up, and exchanged when their bundles change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from ltdeploy.errors import BundleError, LtdeployError, UsageError, did_you_mean
from ltdeploy.images import ImageLimits
from ltdeploy.loading import Model, open_proven

from .batching import BatchRules
from .failures import NotFound
from .fairness import Turns
from .metrics import Metrics
from .served import Served
from .settings import ServeSettings

__all__ = ["Place", "Repository", "places"]

_log = logging.getLogger("ltdeploy.serve")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Place:
    """Where one version of a model stands.

    Attributes
    ----------
    name, version : in addresses.
    path : the bundle's folder.
    """

    name: str
    version: str
    path: Path


def places(bundles: Sequence[str]) -> list[Place]:
    """Return where ``PATH`` or ``NAME=PATH`` stand; the same name again is its next version.

    Raises
    ------
    UsageError
        For a name that does not fit into an address.

    Examples
    --------
    >>> [(one.name, one.version) for one in places(["a/moths.ltd", "m=1.ltd", "m=2.ltd"])]
    [('moths', '1'), ('m', '1'), ('m', '2')]
    """
    found: list[Place] = []
    for told in bundles:
        name, equals, path = told.partition("=")
        if not equals:
            name, path = Path(told).name.removesuffix(".ltd"), told
        if not name or len(name) > _LONGEST_NAME or not set(name) <= _LETTERS:
            raise UsageError(
                f"The model name {name!r} does not fit into an address; expected up to "
                f"{_LONGEST_NAME} letters, digits, and _ . -: give NAME={path}"
            )
        version = str(1 + sum(one.name == name for one in found))
        found.append(Place(name, version, Path(path)))
    return found


class Repository:
    """All versions of all models; lookups and exchanges belong to one event loop.

    Parameters
    ----------
    settings : engine, batches, queue and limits.
    metrics : what is told of reloads, and given on to each model.
    decoders : threads in which photographs are decoded.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics, decoders: Executor) -> None:
        self._settings, self._metrics, self._decoders = settings, metrics, decoders
        self._turns = Turns()
        self._served: dict[tuple[str, str], Served] = {}
        self._places: dict[tuple[str, str], Place] = {}
        self._seen: dict[tuple[str, str], object] = {}
        self._changing: dict[tuple[str, str], object] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether every model answers and the server does not drain."""
        return (
            bool(self._places)
            and not self.is_draining
            and all(key in self._served for key in self._places)
        )

    def listed(self) -> list[Served]:
        """Return every version of every model, by name and version."""
        return sorted(self._served.values(), key=lambda one: (one.name, int(one.version)))

    def get(self, name: str, version: str | None = None) -> Served:
        """Return a version of a model; None or an empty text is the newest.

        Raises
        ------
        NotFound
            If there is none.
        """
        found = {one.version: one for one in self.listed() if one.name == name}
        if not found:
            names = sorted({one.name for one in self._served.values()})
            raise NotFound(
                f"There is no model {name[:_LONGEST_NAME]!r}; there are {', '.join(names)}."
                f"{did_you_mean(name[:_LONGEST_NAME], names)}",
                "model",
            )
        if version and version not in found:
            raise NotFound(
                f"The model {name} has no version {version[:20]!r}; it has {', '.join(found)}.",
                "version",
            )
        return found[version] if version else list(found.values())[-1]

    async def load(self, wanted: Sequence[Place]) -> None:
        """Load every bundle, replay its golden samples, and warm it up.

        Raises
        ------
        BundleError, EngineError, MissingExtraError
            If one cannot be served; nothing is served then.
        """
        for place in wanted:
            key = place.name, place.version
            self._places[key], self._seen[key] = place, _signature(place)
            model = await self._in_thread(place)
            self._served[key] = self._behind_a_batcher(place, model)
            self._metrics.ready(place.name, place.version, is_ready=True)

    async def reload_changed(self) -> None:
        """Exchange every model whose bundle changed; one that is refused leaves the old one."""
        for key, place in self._places.items():
            signature = _signature(place)
            if signature is None or signature == self._seen[key]:
                continue
            if signature != self._changing.get(key):
                self._changing[key] = signature  # still being copied, perhaps: wait until it rests
                continue
            self._seen[key] = signature  # a bad bundle is not tried again before it changes
            told = {"model": place.name, "version": place.version}
            model = None
            try:
                model = await self._in_thread(place)
                _require_same(self._served[key].model, model)
            except Exception as error:
                if model is not None:
                    model.close()
                _log.error(
                    "The new bundle was refused, the old one stays: %s",
                    error,
                    exc_info=not isinstance(error, LtdeployError),
                    extra=told,
                )
                self._metrics.reloaded(place.name, "refused")
                continue
            old, new = self._served[key], self._behind_a_batcher(place, model)
            self._served[key] = new
            self._metrics.reloaded(place.name, "taken")
            _log.info("Reloaded.", extra=told)
            task = asyncio.create_task(old.close(new))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def watch(self) -> None:
        """Look for changed bundles until cancelled."""
        while True:
            await asyncio.sleep(self._settings.reload_s)
            try:
                await self.reload_changed()
            except Exception:
                _log.exception("Looking for changed bundles failed; it is tried again.")

    async def refuse_waiting(self) -> None:
        """Refuse what waits in every queue: the time to drain is over."""
        self.is_draining = True
        await asyncio.gather(*(one.refuse_waiting() for one in self._served.values()))

    async def close(self) -> None:
        """Take nothing more, finish what was accepted, and release every engine."""
        self.is_draining = True
        for place in self._places.values():
            self._metrics.ready(place.name, place.version, is_ready=False)
        await asyncio.gather(*(one.close() for one in self._served.values()))
        await asyncio.gather(*self._leaving)

    def _opened(self, place: Place) -> Model:
        settings = self._settings
        sizes = (1, settings.max_batch)
        return open_proven(place.path, settings.engine, threads=settings.threads, batch_sizes=sizes)

    def _behind_a_batcher(self, place: Place, model: Model) -> Served:
        settings = self._settings
        return Served(
            place.name,
            place.version,
            model,
            BatchRules(settings.max_batch, settings.max_delay_ms / 1000, settings.max_queue),
            turns=self._turns,
            decoders=self._decoders,
            limits=ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels),
            metrics=self._metrics,
            timeout_s=settings.timeout_s,
        )

    async def _in_thread(self, place: Place) -> Model:
        return await asyncio.get_running_loop().run_in_executor(None, self._opened, place)


def _require_same(old: Model, new: Model) -> None:
    """Raise where clients of the old one would read the new one's answers wrongly.

    Raises
    ------
    BundleError
        Where task, inputs, outputs or the names of the classes differ.
    """
    for what, before, after in (
        ("task", old.bundle.manifest.task, new.bundle.manifest.task),
        ("inputs", old.engine.inputs, new.engine.inputs),
        ("outputs", old.engine.outputs, new.engine.outputs),
        ("names of the classes", old.classes.names, new.classes.names),
    ):
        if before != after:
            raise BundleError(
                f"Its {what} are others than those of the model that is served; start the server "
                "again with it, under another name or as another version."
            )


def _signature(place: Place) -> object:
    """Return what changes when a bundle is replaced; None where it is away, mid-replacement."""
    try:
        found = []
        for path in sorted(place.path.rglob("*")):
            status = path.stat()
            found.append((path.name, status.st_mtime_ns, status.st_size, status.st_ino))
    except OSError:
        return None
    return found or None
