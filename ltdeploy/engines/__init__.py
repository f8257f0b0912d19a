"""Engines: what executes a graph, behind one protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..bundle import Bundle
from ..errors import EngineError, LtdeployError, MissingExtraError
from .base import Engine, TensorSpec, check_feeds, check_finite, check_threads
from .one_by_one import any_batch
from .spec import ENGINES, EngineSpec, parse_engine

__all__ = [
    "ENGINES",
    "Engine",
    "EngineSpec",
    "TensorSpec",
    "check_feeds",
    "check_finite",
    "open_engine",
    "parse_engine",
]


def open_engine(bundle: Bundle, engine: str = "auto", *, threads: int | None = None) -> Engine:
    """Return the engine asked for, loaded with the bundle's graph; never another one.

    Parameters
    ----------
    engine : ``NAME`` or ``NAME:key=value,…``, see :data:`ENGINES`. ``auto`` takes the fastest that
        works here, and its :attr:`~Engine.name` says which that is.
    threads : CPU threads of engines that run on the CPU; None takes all cores.

    Raises
    ------
    EngineError
        If the name or an option is wrong, the package, driver or device is missing, the engine
        cannot run the bundle's precision, or the graph's inputs and outputs are not what the
        manifest says.
    MissingExtraError
        If its package is not installed.
    """
    spec = _with_threads(parse_engine(engine), threads)
    opened = _first_that_works(bundle, spec) if spec.name == "auto" else _asked_for(bundle, spec)
    graph = bundle.manifest.graphs[0]
    found = [(s.name, s.dtype, s.shape) for s in (*opened.inputs, *opened.outputs)]
    stated = [
        (t.name, t.dtype, tuple(None if isinstance(a, str) else a for a in t.shape))
        for t in (*graph.inputs, *graph.outputs)
    ]
    if found != stated:
        opened.close()
        raise EngineError(
            f"The graph {graph.file} has the tensors {found} and its manifest says {stated}; "
            "export the bundle again."
        )
    return any_batch(opened)


def _with_threads(spec: EngineSpec, threads: int | None) -> EngineSpec:
    """Add ``threads`` to the options; a GPU engine has no use for it and does without."""
    check_threads(threads)
    if threads is None or "threads" not in (ENGINES[spec.name] or {}):
        return spec
    told = spec.options.get("threads", threads)
    if told != threads:
        raise EngineError(
            f"{spec.name}:threads is {told} and threads is {threads}; give one of them."
        )
    return replace(spec, options={**spec.options, "threads": threads})


def _asked_for(bundle: Bundle, spec: EngineSpec) -> Engine:
    """Open an engine, or name all that is missing and not what is met first alone."""
    try:
        return _open(bundle, spec)
    except LtdeployError as error:
        from .diagnosis import missing_for

        missing = missing_for(spec.name)
        if str(error) not in missing or len(missing) == 1:
            raise
        kind = MissingExtraError if isinstance(error, MissingExtraError) else EngineError
        raise kind(" ".join(missing)) from error


def _open(bundle: Bundle, spec: EngineSpec) -> Engine:
    from .choice import refusal

    reason = refusal(spec.name, bundle.manifest.graphs[0].precision)
    if reason is not None:
        raise EngineError(f"{spec.name} cannot run {bundle.path}: {reason}")
    options: dict[str, Any] = dict(spec.options)
    if spec.name == "tensorrt":
        from .tensorrt_engine import open_tensorrt

        return open_tensorrt(bundle, options)
    if spec.name == "onnxruntime-cuda":
        from .onnxruntime_gpu import open_cuda

        return open_cuda(bundle, **options)
    if spec.name == "onnxruntime-tensorrt":
        from .onnxruntime_gpu import open_tensorrt_provider

        return open_tensorrt_provider(bundle, **options)
    if spec.name == "openvino":
        from .openvino_engine import OpenVinoEngine

        return OpenVinoEngine(bundle.graph_path, **options)
    from .onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle.graph_path, **options)


def _first_that_works(bundle: Bundle, auto: EngineSpec) -> Engine:
    from .choice import AUTO_OPTIONS, candidates

    precision = bundle.manifest.graphs[0].precision
    against = []
    for candidate in candidates(precision, bundle.path / "engines"):
        reason = candidate.against
        if reason is None:
            spec = EngineSpec(candidate.name, AUTO_OPTIONS.get(candidate.name, {}))
            try:
                return _open(bundle, _with_threads(spec, auto.options.get("threads")))
            except LtdeployError as error:
                reason = str(error)
        against.append(f"{candidate.name}: {reason}")
    text = (
        f"No engine that works here can run {bundle.path} ({precision}).\n  "
        + "\n  ".join(against)
        + "\nFor this machine's processor: pip install 'ltdeploy[openvino]', or for all but bf16 "
        "pip install 'ltdeploy[cpu]'"
    )
    on_cpu = (line for line in against if line.startswith(("openvino:", "onnxruntime:")))
    raise (MissingExtraError if all("not installed" in line for line in on_cpu) else EngineError)(
        text
    )
