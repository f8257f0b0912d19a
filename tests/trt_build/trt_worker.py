"""The process of trt_harness.py: a JSON line in, a JSON line out.

``build``: build a plan of an ONNX file; ``doctor``: what the doctor says; ``load``: try to
deserialise a plan; ``describe``: every class, enumeration and signature of the bindings.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ltdeploy.engines.tensorrt_build import BuildOptions, build_plan
from ltdeploy.engines.tensorrt_doctor import diagnose_tensorrt
from ltdeploy.engines.tensorrt_library import import_tensorrt
from ltdeploy.engines.tensorrt_run import deserialise
from ltdeploy.errors import LtdeployError


def build(model: str, options: dict[str, Any], timing: str = "", out: str = "") -> dict[str, Any]:
    """Build, and write the plan to ``out`` if that is given."""
    start = time.perf_counter()
    before = Path(timing).read_bytes() if timing and Path(timing).is_file() else b""
    built = build_plan(Path(model).read_bytes(), BuildOptions(**options), before)
    if timing:
        Path(timing).write_bytes(built.timing_cache)
    if out:
        Path(out).write_bytes(built.plan)
    return {
        "layers": built.layers,
        "bytes": len(built.plan),
        "workspace_bytes": built.workspace_bytes,
        "seconds": round(time.perf_counter() - start, 2),
    }


def doctor() -> dict[str, Any]:
    """Say what is missing."""
    return {"text": diagnose_tensorrt()}


def load(plan: str) -> dict[str, Any]:
    """Try to deserialise, which needs a GPU."""
    engine = deserialise(Path(plan).read_bytes())
    return {"tensors": engine.num_io_tensors}


def describe() -> dict[str, Any]:
    """Return enumerations with their values, and classes with the texts of their methods."""
    trt = import_tensorrt()
    enums, classes = {}, {}
    for holder in (trt, trt.ILogger):
        for name, thing in vars(holder).items():
            if not isinstance(thing, type) or name.startswith("_"):
                continue
            if hasattr(thing, "__members__"):
                enums[name] = {key: int(value) for key, value in thing.__members__.items()}
            elif holder is trt:
                classes[name] = members(thing)
    return {"version": trt.__version__, "enums": enums, "classes": classes}


def members(kind: type) -> dict[str, Any]:
    """Return the methods' texts and whether each property can be set."""
    found: dict[str, Any] = {}
    for name in dir(kind):
        if name.startswith("_") and name != "__init__":
            continue
        thing = getattr(kind, name)
        if isinstance(thing, property):
            found[name] = {"settable": thing.fset is not None}
        elif callable(thing):
            found[name] = {"text": thing.__doc__ or ""}
    return found


def main() -> None:
    """Answer until the input ends."""
    # The libraries print to stdout themselves: the answers go where they cannot.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs = {"build": build, "doctor": doctor, "load": load, "describe": describe}
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = jobs[job.pop("do")](**job)
        except LtdeployError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
