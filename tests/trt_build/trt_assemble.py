"""Fetch what the ``trt_build`` tests run: NVIDIA's parser and builder, and bindings of two majors.

Run it once, by hand or by CI; the tests find the folder by themselves and skip without it::

    python tests/trt_build/trt_assemble.py [FOLDER]

FOLDER is ``trt`` in this Python's environment unless given; with another one, set
``$LTDEPLOY_TRT``. 150 MB are downloaded, 330 MB stay on disk. Nothing goes into the environment's
own packages: the wheel of TensorRT's bindings alone would look like an installed TensorRT.

The libraries are those of TensorRT-RTX, the consumer cards' edition; they build plans on a machine
without a GPU. The datacentre's TensorRT has another builder and needs a GPU to build.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["PACKAGES", "folder"]

# By TensorRT's major version. The provider's wheel is there for the libraries inside it.
PACKAGES = {
    11: ("tensorrt-cu13-bindings==11.4.0.106", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"),
    10: ("tensorrt-cu13-bindings==10.16.1.11",),
}


def folder() -> Path:
    """Return where the packages are, or would be."""
    return Path(os.environ.get("LTDEPLOY_TRT") or Path(sys.prefix) / "trt")


def assemble(target: Path) -> None:
    """Install the packages, each version into a folder of its own; what is there stays."""
    for major, packages in PACKAGES.items():
        done = target / f"{major}" / ".installed"
        wanted = "\n".join(packages)
        if done.is_file() and done.read_text() == wanted:
            continue
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Without dependencies: none of them is needed, and numpy must stay the environment's.
        command = [*pip, "--no-deps", "--upgrade", "--target", str(target / f"{major}"), *packages]
        subprocess.run(command, check=True)
        done.write_text(wanted)


if __name__ == "__main__":
    assemble(Path(sys.argv[1]) if len(sys.argv) > 1 else folder())
