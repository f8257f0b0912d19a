"""Quantise an ONNX file with NNCF or ModelOpt, as they come: the part of quantisers.py that runs
in their own environment, without ltdeploy.

    python benchmarks/quantise_with.py nncf fp32.onnx images.npy int8.onnx
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def with_nncf(source: Path, images: Any, out: Path) -> str:
    """Quantise by ``nncf.quantize`` with its default options; return its version."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it reports every call
    import nncf
    import onnx

    one_by_one = [{"images": images[i : i + 1]} for i in range(len(images))]
    made = nncf.quantize(onnx.load(source), nncf.Dataset(one_by_one), subset_size=len(images))
    onnx.save(made, out)
    return str(nncf.__version__)


def with_modelopt(source: Path, images: Any, out: Path, method: str) -> str:
    """Quantise by ``modelopt.onnx.quantization`` on the CPU; return its version.

    What it does not quantise would become fp16 by default; here it stays float32.
    """
    import modelopt
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={"images": images},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
        log_level="ERROR",
    )
    return str(modelopt.__version__)


def main(arguments: list[str]) -> None:
    """Run one of them."""
    name, source, images, out = arguments
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    calibration = np.load(images)
    if name == "nncf":
        version = with_nncf(Path(source), calibration, Path(out))
    else:
        version = with_modelopt(Path(source), calibration, Path(out), name.partition("-")[2])
    print(f"version {version}")


if __name__ == "__main__":
    main(sys.argv[1:])
