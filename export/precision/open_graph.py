"""Load a graph that is in no bundle yet into the engine that is to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltdeploy.engines import Engine, parse_engine
from ltdeploy.engines.choice import candidates, computes, refusal
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.engines.openvino_engine import OpenVinoEngine
from ltdeploy.errors import ExportError
from ltdeploy.manifest import Precision

from .gate_run import OpenGraph

if TYPE_CHECKING:
    import onnx

__all__ = ["computes", "graph_opener"]

_ON_CPU: dict[str, Any] = {"openvino": OpenVinoEngine, "onnxruntime": OnnxRuntimeEngine}


def graph_opener(engine: str, precision: Precision) -> OpenGraph:
    """Return what loads graphs of a precision into an engine on the CPU.

    Parameters
    ----------
    engine : ``NAME`` or ``NAME:key=value,…``; ``auto`` takes the fastest that works here.

    Raises
    ------
    ExportError
        If the engine runs elsewhere, or has no such precision.
    EngineError
        If there is no such engine or option.
    """
    spec = parse_engine(engine)
    name = spec.name
    if name == "auto":
        offered = [one for one in candidates(precision) if one.name in _ON_CPU]
        name = next((one.name for one in offered if one.against is None), "")
        if not name:
            reasons = "; ".join(f"{one.name}: {one.against}" for one in offered)
            raise ExportError(f"No engine here can run {precision} to check it. {reasons}")
    if name not in _ON_CPU:
        raise ExportError(
            f"export checks its graphs on the CPU, and --engine is {engine!r}; expected auto or "
            f"{' or '.join(_ON_CPU)}. What {name} makes of the bundle is shown by 'ltdeploy verify "
            f"NAME.ltd --data DATA --engine {name}' afterwards."
        )
    reason = refusal(name, precision)
    if reason is not None:
        raise ExportError(f"{name} cannot run {precision}: {reason}")

    def opened(model: onnx.ModelProto) -> Engine:
        loaded: Engine = _ON_CPU[name](model.SerializeToString(), **spec.options)
        return loaded

    return opened
