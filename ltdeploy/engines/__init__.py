"""Engines: what executes a graph, behind one protocol."""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import EngineError, did_you_mean
from .base import Engine, TensorSpec, check_finite

__all__ = ["ENGINES", "Engine", "TensorSpec", "check_finite", "open_engine"]

ENGINES = ("onnxruntime",)


def open_engine(
    bundle: Bundle, engine: str = "onnxruntime", *, threads: int | None = None
) -> Engine:
    """Return the engine asked for, loaded with the bundle's graph; never another one.

    Raises
    ------
    EngineError
        If the name is unknown, or the graph's inputs and outputs are not what the manifest says.
    MissingExtraError
        If its package is not installed.
    """
    if engine not in ENGINES:
        raise EngineError(
            f"Unknown engine {engine!r}; expected one of {', '.join(ENGINES)}."
            f"{did_you_mean(engine, ENGINES)} 'ltdeploy doctor' lists what works here."
        )
    from .onnxruntime_engine import OnnxRuntimeEngine

    opened = OnnxRuntimeEngine(bundle.graph_path, threads=threads)
    graph = bundle.manifest.graphs[0]
    found = [(s.name, s.dtype, s.shape) for s in (*opened.inputs, *opened.outputs)]
    stated = [
        (t.name, t.dtype, tuple(None if isinstance(a, str) else a for a in t.shape))
        for t in (*graph.inputs, *graph.outputs)
    ]
    if found != stated:
        raise EngineError(
            f"The graph {graph.file} has the tensors {found} and its manifest says {stated}; "
            "export the bundle again."
        )
    return opened
