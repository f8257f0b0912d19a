"""``ltdeploy doctor``: which engines and inputs work here, and why the others do not."""

from __future__ import annotations

import os
import platform
from typing import Annotated, Any

import typer

from .. import __version__
from .._optional import installed_version
from . import options as opt
from .output import Output

__all__ = ["diagnose", "doctor"]

# What each package is for, and the extra that brings it.
_PACKAGES = {
    "torch": ("load and export checkpoints", "torch"),
    "torchvision": ("torchvision architectures", "torch"),
    "timm": ("timm architectures", "torch"),
    "onnx": ("write and fold ONNX files", "torch"),
    "onnxscript": ("export from torch", "torch"),
    "onnxslim": ("clean up exported graphs", "torch"),
    "ml_dtypes": ("write bf16 graphs", "torch"),
    "safetensors": ("read .safetensors", "torch"),
    "transformers": ("read Hugging Face folders", "hf"),
    "scipy": ("the statistics of verify, optimisers", "verify"),
    "pyarrow": ("read .parquet", "verify"),
    "threadpoolctl": ("calibrate", "verify"),
    "onnxruntime": ("run bundles on ONNX Runtime", "cpu"),
    "openvino": ("run bundles on OpenVINO", "openvino"),
    "tensorrt": ("build and run TensorRT engines", "tensorrt"),
    "cuda.bindings": ("move images to the GPU for TensorRT", "tensorrt"),
    "ray": ("predict on a Ray cluster", "ray"),
}
_REFERENCE = "torch"


def doctor(
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME[:K=V,…]", help="Exit with 2 unless this engine works."),
    ] = None,
) -> int:
    """Say what works on this machine, and how to get what does not."""
    output = Output(json, quiet)
    asked = None if engine is None else _named(engine)
    found = diagnose()
    output.say(
        f"ltdeploy {found['ltdeploy']}, Python {found['python']}, {found['platform']}, "
        f"{found['cores']} cores"
        + (f" with {', '.join(found['cpu_features'])}" if found["cpu_features"] else "")
    )
    output.table(
        ("engine", "works", "detail"),
        [
            (name, "yes" if e["works"] else "no", e["detail"])
            for name, e in found["engines"].items()
        ],
        figures=False,
    )
    output.say(_auto_in_words(found["auto"]))
    output.table(
        ("package", "version", "needed to", "if missing"),
        [
            (
                name,
                p["version"] or "missing",
                p["purpose"],
                "" if p["version"] else f"pip install 'ltdeploy[{p['extra']}]'",
            )
            for name, p in found["packages"].items()
        ],
        figures=False,
    )
    output.json(found)
    if asked is not None:
        _require(asked, found)
    return 0


def diagnose() -> dict[str, Any]:
    """Return what ``doctor --json`` prints."""
    from ..engines.diagnosis import diagnose_choice, diagnose_engines
    from ..engines.hardware import cpu_features

    engines = diagnose_engines()
    return {
        "schema": 1,
        "ltdeploy": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cpu_features": list(cpu_features()),
        "engines": engines,
        "auto": diagnose_choice(engines),
        "packages": {
            name: {"version": _version(name), "purpose": purpose, "extra": extra}
            for name, (purpose, extra) in _PACKAGES.items()
        },
    }


def _version(module: str) -> str | None:
    try:
        return installed_version(module)
    except ModuleNotFoundError:  # what it would be a part of is not there
        return None


def _auto_in_words(choice: dict[str, Any]) -> str:
    """Return ``auto takes openvino (fp32, fp16, bf16, int8)``, or what it cannot run."""
    taken: dict[str, list[str]] = {}
    for precision, chosen in choice.items():
        taken.setdefault(chosen["takes"] or "nothing", []).append(precision)
    return "auto takes " + ", ".join(f"{name} ({', '.join(of)})" for name, of in taken.items())


def _named(engine: str) -> str:
    """Return the name in ``NAME[:k=v,…]``; raise :class:`EngineError` for what there is not.

    ``torch`` is the reference, which is no engine of a bundle.
    """
    from ..engines import parse_engine

    return engine if engine == _REFERENCE else parse_engine(engine).name


def _require(engine: str, found: dict[str, Any]) -> None:
    """Raise :class:`EngineError` unless the engine works; ``auto`` needs any."""
    from ..errors import EngineError

    engines = found["engines"]
    if engine == "auto":
        if found["auto"]["fp32"]["takes"] is None:
            reasons = (f"{name}: {why}" for name, why in found["auto"]["fp32"]["against"].items())
            raise EngineError(f"No engine works here. {' '.join(reasons)}")
    elif not engines[engine]["works"]:
        raise EngineError(f"{engine} does not work: {engines[engine]['detail']}")
