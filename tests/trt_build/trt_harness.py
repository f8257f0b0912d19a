"""Run ltdeploy's TensorRT code against NVIDIA's libraries in a process of its own.

The bindings ask for libraries under TensorRT's names; here those are links to TensorRT-RTX's. One
library that it has not (the plugins) is a C function that says yes. The bindings of version 10 get
nothing but such functions: they can be imported and asked for their signatures, not run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import trt_assemble

__all__ = ["Worker", "missing", "start"]

_HERE = Path(__file__).resolve().parent
_PLUGINS = "_Bool initLibNvInferPlugins(void *logger, const char *space) { return 1; }"
# What the bindings of version 10 look up when they are imported.
_SYMBOLS_10 = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
)


def missing() -> str | None:
    """Return what keeps the harness from running here and what would change that, or None."""
    if not sys.platform.startswith("linux"):
        return "NVIDIA's libraries for these tests are Linux ones"
    if shutil.which("gcc") is None:
        return "gcc is missing: apt-get install gcc"
    target = trt_assemble.folder()
    if not all((target / f"{major}" / ".installed").is_file() for major in trt_assemble.PACKAGES):
        return f"NVIDIA's builder is not in {target}: python tests/trt_build/trt_assemble.py"
    return None


def start(major: int, links: Path) -> Worker:
    """Return a process with TensorRT's bindings of a version and libraries linked in a folder.

    Parameters
    ----------
    major : 11 parses and builds, 10 can only be looked at.
    links : an empty folder.
    """
    packages = trt_assemble.folder() / f"{major}"
    if major == 10:
        stubs = "\n".join(f"void *{name}(void) {{ return 0; }}" for name in _SYMBOLS_10)
        _compile(f"{stubs}\n{_PLUGINS}", links / "libnvinfer.so.10")
        for name in ("libnvonnxparser.so.10", "libnvinfer_plugin.so.10"):
            (links / name).symlink_to("libnvinfer.so.10")
    else:
        rtx = packages / "onnxruntime_ep_nv_tensorrt_rtx"
        (core,) = rtx.glob("libtensorrt_rtx.so.1.*")
        (parser,) = rtx.glob("libtensorrt_onnxparser_rtx.so.1.*")
        for name in ("libnvinfer.so.11", "libtensorrt_rtx.so.1"):
            (links / name).symlink_to(core)
        (links / "libnvonnxparser.so.11").symlink_to(parser)
        _compile(_PLUGINS, links / "libnvinfer_plugin.so.11")
    return Worker(packages, links)


def _compile(code: str, library: Path) -> None:
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=code, text=True, check=True)


class Worker:
    """A process that answers one job after the other; when it crashes, the test on it fails."""

    def __init__(self, packages: Path, links: Path) -> None:
        paths = (str(packages), os.environ.get("PYTHONPATH"))
        told = {
            "LD_LIBRARY_PATH": str(links),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        self._said = links / "stderr.txt"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, str(_HERE / "trt_worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=os.environ | told,
            )

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        """Return the answer to a job; see trt_worker.py."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **job}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            said = self._said.read_text(errors="replace")[-2000:]
            raise AssertionError(f"the process ended with {self._process.wait()}: {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
