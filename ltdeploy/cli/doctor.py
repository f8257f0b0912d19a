"""``ltdeploy doctor``: which engines and inputs work here, and why the others do not."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
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
    "safetensors": ("read .safetensors", "torch"),
    "transformers": ("read Hugging Face folders", "hf"),
    "scipy": ("the statistics of verify, optimisers", "verify"),
    "pyarrow": ("read .parquet", "verify"),
    "threadpoolctl": ("calibrate", "verify"),
    "onnxruntime": ("run bundles", "cpu"),
}
# A serialised ONNX model (opset 17) of one node, y = Identity(x), with x and y float32 of length 1.
_IDENTITY_GRAPH = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a080801120"
    "40a020801620f0a0179120a0a08080112040a02080142040a001011"
)


def doctor(
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Exit with 2 unless this engine works.")
    ] = None,
) -> int:
    """Say what works on this machine, and how to get what does not."""
    output = Output(json, quiet)
    found = diagnose()
    output.say(
        f"ltdeploy {found['ltdeploy']}, Python {found['python']}, {found['platform']}, "
        f"{found['cores']} cores"
    )
    output.table(
        ("engine", "works", "detail"),
        [
            (name, "yes" if e["works"] else "no", e["detail"])
            for name, e in found["engines"].items()
        ],
    )
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
    if engine is not None:
        from ..engines import ENGINES
        from ..errors import EngineError, did_you_mean

        if engine not in found["engines"]:
            raise EngineError(
                f"Unknown engine {engine!r}; expected one of {', '.join(ENGINES)}."
                f"{did_you_mean(engine, ENGINES)}"
            )
        if not found["engines"][engine]["works"]:
            raise EngineError(f"{engine} does not work: {found['engines'][engine]['detail']}")
    return 0


def diagnose() -> dict[str, Any]:
    """Return what ``doctor --json`` prints."""
    return {
        "schema": 1,
        "ltdeploy": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "engines": {"onnxruntime": _try(_onnxruntime), "torch": _try(_torch)},
        "packages": {
            name: {"version": installed_version(name), "purpose": purpose, "extra": extra}
            for name, (purpose, extra) in _PACKAGES.items()
        },
    }


def _try(check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"works": True, "detail": check()}
    except Exception as error:  # whatever a broken installation raises is what we are to report
        return {"works": False, "detail": str(error).splitlines()[0] if str(error) else repr(error)}


def _onnxruntime() -> str:
    """Load and run a graph of one node: an import alone proves nothing."""
    import numpy as np

    from ..engines.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime

    runtime = import_onnxruntime()
    engine = OnnxRuntimeEngine(_IDENTITY_GRAPH)
    answer = engine.run({"x": np.array([2.5], dtype=np.float32)})["y"]
    engine.close()
    if answer.tolist() != [2.5]:
        raise RuntimeError(f"a graph that returns its input returned {answer.tolist()} for 2.5")
    providers = ", ".join(runtime.get_available_providers())
    return f"{runtime.__version__}, CPU; providers built in: {providers}"


def _torch() -> str:
    from .._optional import require

    torch: Any = require("torch", extra="torch", purpose="run the reference")
    total = float(torch.ones(2, 2).matmul(torch.ones(2, 2)).sum())
    if total != 8.0:
        raise RuntimeError(f"a 2 × 2 product of ones sums to {total}, expected 8")
    return f"{torch.__version__}, CPU (the reference for verification)"
