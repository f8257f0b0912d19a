"""NVIDIA's TensorRT, natively: plans built from the bundle's graph, kept in its ``engines/``.

Deserialising and running are untested: no GPU was at hand. Parsing and building were run with
NVIDIA's TensorRT-RTX builder, which is not the datacentre's; see docs/engines.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..bundle import Bundle
from ..errors import EngineError
from ..files import default_cache, write_whole
from ..manifest import Manifest
from . import tensorrt_library as library
from .base import TensorSpec, check_feeds
from .tensorrt_build import BuildOptions, Built, build_plan
from .tensorrt_files import BUILD_OPTIONS, FOLDER, PlanFiles, PlanRecord
from .tensorrt_options import TensorRtOptions
from .tensorrt_run import Lane, deserialise, tensors_of

__all__ = ["TensorRtEngine", "open_tensorrt"]


def open_tensorrt(bundle: Bundle, options: Mapping[str, str] | None = None) -> TensorRtEngine:
    """Return a bundle's graph as a TensorRT engine, built first where no plan of it fits.

    Building takes from seconds to minutes; the plan is kept in the bundle.

    Parameters
    ----------
    options : texts by name, as in ``tensorrt:max_batch=64,refit=on``; see
        :class:`~ltdeploy.engines.tensorrt_options.TensorRtOptions`.

    Raises
    ------
    EngineError
        If an option is wrong, TensorRT's library, a driver or a GPU is missing, the graph cannot
        be built, or no plan fits and ``rebuild=off``. With that, of how a plan was built only what
        the options say must fit.
    MissingExtraError
        If the Python bindings of TensorRT or CUDA are missing.
    """
    told = TensorRtOptions.from_text(options or {})
    trt = library.import_tensorrt()
    gpu = library.find_gpu(told.device)
    size = bundle.canvas if bundle.is_detector else bundle.preprocessing
    opt_batch, max_batch = told.batches(size.height_px, size.width_px)
    graph = bundle.manifest.graphs[0]
    wanted = PlanRecord(
        plan_sha256="0" * 64,
        onnx_sha256=bundle.manifest.files[graph.file].sha256,
        precision=graph.precision,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        tensorrt=str(trt.__version__),
        opt_batch=opt_batch,
        max_batch=max_batch,
        workspace_bytes=0,
        refit=told.refit,
        version_compatible=told.version_compatible,
        hardware_compatible=told.hardware_compatible,
    )
    files = PlanFiles(bundle.path / FOLDER, trust=told.trust_plans)
    asked = [name for name in BUILD_OPTIONS if told.rebuild or name in (options or {})]
    found, reasons = files.find(wanted, lean_runtime=told.lean_runtime is not None, asked=asked)
    if found is not None:
        plan, record = found
        # A plan of this very version needs no other runtime.
        lean = told.lean_runtime if record.tensorrt != wanted.tensorrt else None
        try:
            return TensorRtEngine(plan, told, record.max_batch, bundle.manifest, lean_runtime=lean)
        except EngineError as error:
            if not told.rebuild:
                raise
            reasons.append(str(error))
    if not told.rebuild:
        raise EngineError(
            f"No plan in {files.folder} fits {gpu} with TensorRT {trt.__version__}: "
            f"{'; '.join(reasons) or 'there is none'}. Leave tensorrt:rebuild on to build one from "
            "the ONNX file."
        )
    built = _build(bundle.graph_path, wanted, told)
    record = wanted.model_copy(
        update={
            "plan_sha256": hashlib.sha256(built.plan).hexdigest(),
            "workspace_bytes": built.workspace_bytes,
        }
    )
    try:
        files.save(built.plan, record)
    except OSError as error:
        _warn(
            f"The TensorRT plan could not be kept in {files.folder} ({error.strerror or error}); "
            "it will be built again the next time."
        )
    return TensorRtEngine(built.plan, told, max_batch, bundle.manifest)


def _build(model: Path, wanted: PlanRecord, told: TensorRtOptions) -> Built:
    options = BuildOptions(
        opt_batch=wanted.opt_batch,
        max_batch=wanted.max_batch,
        workspace_bytes=None if told.workspace_mib is None else told.workspace_mib << 20,
        refit=wanted.refit,
        version_compatible=wanted.version_compatible,
        hardware_compatible=wanted.hardware_compatible,
    )
    # In the user's cache, not in the bundle: it serves every model, and is our own.
    device = hashlib.sha256(wanted.gpu.encode()).hexdigest()[:12]
    kept = default_cache() / f"tensorrt-{wanted.tensorrt}-{device}.timing"
    before = kept.read_bytes() if told.timing_cache and kept.is_file() else b""
    built = build_plan(model.read_bytes(), options, before)
    if built.tried_bytes:
        tried = ", ".join(f"{size >> 20} MiB" for size in built.tried_bytes)
        _warn(
            f"The GPU's memory did not suffice to build with a workspace of {tried}; the engine "
            f"was built with {built.workspace_bytes >> 20} MiB and may be slower. Say "
            f"tensorrt:workspace_mib={built.workspace_bytes >> 20} to start there."
        )
    if told.timing_cache and built.timing_cache != before:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, built.timing_cache)
        except OSError as error:
            _warn(f"{kept} cannot be written ({error.strerror or error}); builds will take longer.")
    return built


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


class TensorRtEngine:
    """A deserialised plan. Thread-safe; as many threads run at once as it has contexts.

    Parameters
    ----------
    plan : a serialised engine that may be deserialised; see
        :mod:`~ltdeploy.engines.tensorrt_files`.
    options : how to run it.
    max_batch : its profile's largest batch; larger ones are split.
    manifest : of the bundle that it was built from.
    lean_runtime : library of the older version that built the plan, or None.

    Raises
    ------
    EngineError
        If TensorRT refuses the plan or the GPU's memory does not suffice.
    """

    name = "tensorrt"

    def __init__(
        self,
        plan: bytes,
        options: TensorRtOptions,
        max_batch: int,
        manifest: Manifest,
        *,
        lean_runtime: str | None = None,
    ) -> None:
        self._options = options
        self._network = _network_of(manifest)
        self._max_batch = max_batch
        self._engine: Any = deserialise(plan, lean_runtime)
        self._tensors = tensors_of(self._engine)
        self.inputs = tuple(t.spec for t in self._tensors if t.is_input)
        self.outputs = tuple(t.spec for t in self._tensors if not t.is_input)
        self._stopped: str | None = None
        self._slots = threading.Semaphore(options.contexts)
        self._alone = threading.Lock()  # for who takes every slot
        self._idle = [self._new_lane()]  # what memory does not suffice for fails now

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`.

        Raises
        ------
        EngineError
            If the inputs do not fit, or TensorRT or CUDA fails: the text names the call and the
            batch, and the engine does not go on.
        """
        self._require_open()
        check_feeds(self.name, self.inputs, feeds)
        lengths = [len(feeds[spec.name]) for spec in self.inputs if _batched(spec)]
        batch = lengths[0] if lengths else self._max_batch
        library.cuda("cudaSetDevice", self._options.device, during="selecting the device")
        parts = []
        with self._lane() as lane:
            for start in range(0, batch, self._max_batch):  # an empty batch runs nothing
                rows = slice(start, min(batch, start + self._max_batch))
                part = {
                    spec.name: feeds[spec.name][rows] if _batched(spec) else feeds[spec.name]
                    for spec in self.inputs
                }
                try:
                    parts.append(lane.run(part, rows.stop - start))
                except EngineError as error:
                    self._stopped = str(error)
                    where = f"(rows {start} to {rows.stop - 1} of {batch})"
                    raise EngineError(f"{error} {where}") from error
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts])
            if parts
            else np.empty(tuple(axis or 0 for axis in spec.shape), spec.dtype)
            for spec in self.outputs
        }

    def refit_head(self, other: Bundle) -> None:
        """Exchange the weights for those of another bundle of the same network.

        For a new fix (another τ) of a model whose plan was built with ``refit=on``: it takes the
        place of a build. The kept plan stays as it was. Check the result as after any change:
        ``Predictor(other, engine).replay_golden()``.

        Parameters
        ----------
        other : the same architecture, precision and nodes; its fix is in the weights.

        Raises
        ------
        EngineError
            If the plan is not refittable, the bundle's network is another one, or TensorRT
            refuses; in the last case the engine does not go on.
        """
        self._require_open()
        trt = library.import_tensorrt()
        if not self._engine.refittable:
            raise EngineError(
                "This TensorRT plan cannot be refitted; open the bundle with tensorrt:refit=on."
            )
        theirs = _network_of(other.manifest)
        if theirs != self._network:
            raise EngineError(
                f"The bundle {other.name} has another network ({theirs}) than this engine "
                f"({self._network}); only another fix of the same one can be refitted. Open that "
                "bundle by itself."
            )
        library.cuda("cudaSetDevice", self._options.device, during="selecting the device")
        with self._every_slot():
            self._release_lanes()  # captured CUDA graphs could hold the old weights
            log = library.logger()
            log.take_errors()
            refitter = trt.Refitter(self._engine, log)
            parser = trt.OnnxParserRefitter(refitter, log)
            if not parser.refit_from_bytes(other.graph_path.read_bytes()):
                reasons = [parser.get_error(place).desc() for place in range(parser.num_errors)]
                raise self._refit_failed(reasons or log.take_errors())
            missing = refitter.get_missing_weights()
            if missing:
                raise self._refit_failed([f"no new weights for {', '.join(missing[:5])}"])
            if not refitter.refit_cuda_engine():
                raise self._refit_failed(log.take_errors())

    def _refit_failed(self, reasons: list[str]) -> EngineError:
        self._stopped = "refitting failed half-way"
        reason = reasons[-1].strip().splitlines()[0] if reasons else "it gives no reason"
        return EngineError(
            f"TensorRT cannot refit this engine: {reason}. The bundle must be another fix of the "
            "same network; otherwise open it by itself."
        )

    def close(self) -> None:
        """Release contexts, buffers and the engine. Waits for the batches under way."""
        with self._every_slot():
            self._release_lanes()
            self._engine = None

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Lane]:
        """Give an idle lane, or a new one; wait while all contexts are busy."""
        with self._slots:
            self._require_open()
            try:
                lane = self._idle.pop()
            except IndexError:
                lane = self._new_lane()
            try:
                yield lane
            finally:
                self._idle.append(lane)

    @contextlib.contextmanager
    def _every_slot(self) -> Iterator[None]:
        """Wait until no batch is under way, and let none begin."""
        with self._alone, contextlib.ExitStack() as held:
            for _ in range(self._options.contexts):
                held.enter_context(self._slots)
            yield

    def _new_lane(self) -> Lane:
        options = self._options
        return Lane(self._engine, self._tensors, self._max_batch, cuda_graph=options.cuda_graph)

    def _release_lanes(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _require_open(self) -> None:
        if self._engine is None:
            raise EngineError(f"{self.name} was closed; load the bundle again.")
        if self._stopped is not None:
            raise EngineError(
                f"{self.name} stopped at an error and does not go on; load the bundle again. It "
                f"was: {self._stopped}"
            )


def _network_of(manifest: Manifest) -> str:
    """Return what two bundles share whose graphs differ in the fix alone."""
    graph = manifest.graphs[0]
    tensors = ", ".join(f"{t.name} {t.dtype} {t.shape}" for t in (*graph.inputs, *graph.outputs))
    source = f"checkpoint {manifest.source.sha256[:12]}"
    restored = ", ".join(graph.lowering.restored) if graph.lowering else ""
    precision = graph.precision + (f" but {restored} in fp32" if restored else "")
    return f"{manifest.arch} in {precision}, {graph.nodes} nodes, {tensors}, {source}"


def _batched(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] is None
