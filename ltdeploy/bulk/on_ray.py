"""The same rows from the actors of a Ray cluster, in the same order."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._optional import require
from ..bundle import Bundle
from ..engines import parse_engine
from ..errors import EngineError, LtdeployError, UsageError, did_you_mean
from ..loading import Model, open_model
from .inputs import Inputs, answers
from .models import batch_size

__all__ = ["RayOptions", "parse_ray", "rows_on_ray"]

# Ray Data starts a dead actor and its task again, for ever: an image that kills whoever decodes it
# would keep a cluster busy until somebody looks.
_MOST_ATTEMPTS = 4
# Batches a task works on: decoding runs ahead inside a task only.
_BATCHES_PER_TASK = 4
_LOCAL_STORE_BYTES = 128 * 2**20
# Read when Ray is imported, or starts a process.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class RayOptions:
    """Where and how widely to run.

    Parameters
    ----------
    workers : actors, each with the bundle loaded; None means one per ``cpus`` of the cluster.
    cpus, gpus : what Ray reserves for each; fractions share a device. The engine gets as many
        threads as it has whole CPUs, and at least one, unless it is asked for with ``threads=N``.
    address : a running cluster, for example ``"auto"``; None takes what ``RAY_ADDRESS`` says, and
        otherwise starts one on this machine for the time of the run, reachable from it alone.
    """

    workers: int | None = None
    cpus: float = 1
    gpus: float = 0
    address: str | None = None

    def __post_init__(self) -> None:
        sound = 0 < self.cpus < math.inf and 0 <= self.gpus < math.inf  # NaN is neither
        if not sound or (self.workers is not None and self.workers < 1):
            raise UsageError(
                f"Got workers={self.workers}, cpus={self.cpus}, gpus={self.gpus} for Ray; expected "
                "at least one worker with more than no CPU."
            )


def parse_ray(text: str) -> RayOptions:
    """Read ``ray`` or ``ray:workers=2,cpus=1,gpus=0.5,address=auto``.

    Raises
    ------
    UsageError
        For another name, an unknown option or a value that is no number.
    """
    kinds = {"workers": int, "cpus": float, "gpus": float, "address": str}
    name, _, rest = text.partition(":")
    if name != "ray":
        raise UsageError(f"--on is {text!r}; expected 'ray', or 'ray:workers=2,cpus=1'.")
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in kinds:
            raise UsageError(
                f"Unknown option {key!r} in --on {text}; known are {', '.join(kinds)}."
                f"{did_you_mean(key, kinds)}"
            )
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise UsageError(
                f"{key} is {value!r} in --on {text}; expected a number, as in ray:workers=2."
            ) from None
    return RayOptions(**values)


def rows_on_ray(
    bundle: Bundle, inputs: Inputs, places: range, top_k: int, engine: str, options: RayOptions
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Yield the engine and the row of each input at ``places``, in order, from actors on Ray.

    Every machine of the cluster must see the bundle and the inputs under the same paths. An actor
    that dies is started again and its task with it, three times at most; no row is lost or given
    twice.

    Raises
    ------
    EngineError
        If an actor's engine fails, or actors keep dying; the text names the images.
    MissingExtraError
        If Ray is not installed.
    """
    if not places:
        return
    task = batch_size(bundle) * _BATCHES_PER_TASK
    threads = parse_engine(engine).threads or max(1, int(options.cpus))
    with _cluster(options) as ray:
        workers = options.workers or max(1, int(ray.cluster_resources()["CPU"] / options.cpus))
        blocks = -(-len(places) // task)
        attempts = ray.remote(num_cpus=0)(_Attempts).remote()
        told = (str(bundle.path.resolve()), inputs, places.start, top_k, engine, threads, attempts)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        with ray.data.DataContext.current(context):
            answered = ray.data.range(len(places), override_num_blocks=blocks).map_batches(
                _Worker,
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=min(workers, blocks)),
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                fn_constructor_args=told,
            )
            yield from _in_order(answered.iter_batches(batch_size=None), inputs, places, ray)


class _Attempts:
    """An actor that outlives the others and counts how often each task was begun."""

    def __init__(self) -> None:
        self._begun: collections.Counter[int] = collections.Counter()

    def begin(self, first: int) -> int:
        """Return how often the task that begins at ``first`` was begun, this time included."""
        self._begun[first] += 1
        return self._begun[first]


class _Worker:
    """An actor: the bundle loaded once, and the same work of a batch as in one process."""

    def __init__(
        self,
        bundle: str,
        inputs: Inputs,
        first: int,
        top_k: int,
        engine: str,
        threads: int,
        attempts: Any,
    ) -> None:
        self._attempts = attempts
        self._told = (bundle, engine, threads)
        self._inputs = inputs
        self._first = first
        self._top_k = top_k
        self._loaded: Model | None = None

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        import ray

        places = batch["id"] + self._first
        try:
            if ray.get(self._attempts.begin.remote(int(places[0]))) > _MOST_ATTEMPTS:
                raise EngineError(
                    f"{_MOST_ATTEMPTS} actors on Ray died of the {len(places)} images from "
                    f"{self._inputs.identifier(int(places[0]))} to "
                    f"{self._inputs.identifier(int(places[-1]))}. Out of memory? Try fewer workers."
                )
            if self._loaded is None:
                bundle, engine, threads = self._told
                self._loaded = open_model(bundle, engine, threads=threads)
            found = list(answers(self._loaded, self._inputs, places.tolist(), self._top_k))
        except LtdeployError as error:  # Ray would wrap it in its own, with a traceback as its text
            return _batch(places[:1], [""], str(error), "")
        lines = [json.dumps(answer.to_dict()) for answer in found]
        return _batch(places, lines, "", self._loaded.engine.name)


def _batch(
    places: npt.NDArray[Any], rows: list[str], failure: str, engine: str
) -> dict[str, npt.NDArray[Any]]:
    columns = {"row": rows, "failure": [failure] * len(rows), "engine": [engine] * len(rows)}
    return {"place": places} | {
        name: np.array(texts, dtype=object) for name, texts in columns.items()
    }


def _in_order(
    batches: Iterator[dict[str, npt.NDArray[Any]]], inputs: Inputs, places: range, ray: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield engine and row from the batches, each exactly once, in order; else it is an error."""
    expected = places.start
    try:
        for batch in batches:
            columns = (batch[name] for name in ("place", "row", "failure", "engine"))
            for place, row, failure, engine in zip(*columns, strict=True):
                if failure:
                    raise EngineError(str(failure))
                if place != expected:
                    raise EngineError(
                        f"Ray gave row {place} where row {expected} was due; nothing behind it is "
                        "written. Run the same command again."
                    )
                yield str(engine), json.loads(row)
                expected += 1
    except ray.exceptions.RayError as error:
        told = str(error).strip().splitlines()[0].rstrip(".")
        raise EngineError(
            f"Ray failed on the images from {inputs.identifier(expected)} on: "
            f"{type(error).__name__}: {told}."
        ) from error
    if expected != places.stop:
        raise EngineError(
            f"Ray ended after row {expected} of {places.stop}. Run the same command again."
        )


@contextlib.contextmanager
def _cluster(options: RayOptions) -> Iterator[Any]:
    """Give Ray connected: to what is there, or to a cluster of this machine's own, ended here."""
    address = options.address or os.environ.get("RAY_ADDRESS")
    for name, value in {**_QUIET, **({} if address else _private())}.items():
        os.environ.setdefault(name, value)
    ray = require("ray", extra="ray", purpose="predict on a Ray cluster")
    require("ray.data", extra="ray", purpose="predict on a Ray cluster")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield ray
        return
    told: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        told["address"] = address
    else:
        cores = len(os.sched_getaffinity(0))
        workers = options.workers or max(1, int(cores / options.cpus))
        # One more than the actors take, for the tasks that number the rows.
        told |= {
            "num_cpus": int(np.ceil(workers * options.cpus)) + 1,
            "include_dashboard": False,
            "object_store_memory": _LOCAL_STORE_BYTES,
        }
    try:
        ray.init(**told)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"Ray cannot start, or {address or 'this machine'} cannot be reached: {error}. Leave "
            "--on ray out to run in this process."
        ) from error
    try:
        if not address and ray.util.get_node_ip_address() != _LOOPBACK:
            raise EngineError(
                "Ray was imported before, without RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, and would "
                "listen on the network. Import it later, or connect it first with ray.init()."
            )
        yield ray
    finally:
        ray.shutdown()


def _private() -> dict[str, str]:
    """Return what keeps a cluster of our own to this machine and this process.

    Whoever reaches Ray's ports runs code. On Linux it listens on every interface, unless it is told
    to do as on other systems; and with a token no other user of the machine gets in.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **token}
