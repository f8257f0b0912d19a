"""Compare quantisers on a real long-tailed checkpoint: ours, ONNX Runtime's, NNCF, ModelOpt.

All get the same float32 graph (τ-normalisation 0.7 folded in) and the same 512 class-balanced
training images. Printed are the share of the multiply-adds in int8, differences from the float32
graph by group on all test images with their 95 % intervals, and the speed relative to float32 on
the same engine; and where a graph does not load, why.

NNCF and ModelOpt may live in environments of their own (the latter must: it pins older versions of
onnx and onnxruntime). Without one of them its lines say so.

    python -m venv /tmp/nncf && /tmp/nncf/bin/pip install nncf==3.4.0 onnx onnxruntime
    python -m venv /tmp/modelopt && /tmp/modelopt/bin/pip install 'nvidia-modelopt[onnx]==0.47.0'
    python benchmarks/quantisers.py --data ../shared/data --nncf /tmp/nncf/bin/python \\
        --modelopt /tmp/modelopt/bin/python
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from int8_cifar100_lt import (
    BUDGET,
    ENGINES,
    Images,
    Subject,
    compare,
    line,
    ours,
    plain_recipe,
    read_subject,
    share_in_int8,
    told,
)

from ltdeploy.errors import EngineError
from ltdeploy.export.precision.layers import GraphLayers
from ltdeploy.export.precision.sampling import class_balanced
from ltdeploy.export.precision.trade import speed_ratio

_WORKER = Path(__file__).with_name("quantise_with.py")
_SPEED_BATCH = 64
_SECONDS = 600.0


def elsewhere(
    name: str, python: Path, graph: onnx.ModelProto, images: Images
) -> onnx.ModelProto | None:
    """Quantise in another environment; None where that fails, having printed why."""
    with tempfile.TemporaryDirectory() as folder:
        source, calibration = Path(folder) / "fp32.onnx", Path(folder) / "images.npy"
        out = Path(folder) / "int8.onnx"
        onnx.save(graph, source)
        np.save(calibration, images)
        command = [python, _WORKER, name, source, calibration, out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode or not out.exists():
            reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
            line(name, f"not measured: {reason[0]} (in {python})")
            return None
        line(name, done.stdout.strip().splitlines()[-1])
        return onnx.load(out)


def measure(name: str, graph: onnx.ModelProto, subject: Subject, layers: GraphLayers) -> None:
    """Print everything about one quantised graph."""
    line(f"{name}: multiply-adds in int8", f"{100 * share_in_int8(graph, layers):.1f} %")
    batch = subject.test.images[:_SPEED_BATCH]
    for engine, open_engine in ENGINES.items():
        try:
            result = compare(subject, graph, engine)
        except EngineError as error:
            line(f"{name}, {engine}", f"does not run: {' '.join(str(error).split())[:300]}")
            continue
        line(f"{name}, {engine}", told(result))
        whole = open_engine(subject.graph.SerializeToString())
        low = open_engine(graph.SerializeToString())
        ratio = speed_ratio(whole, low, batch)
        line(f"{name}, {engine}, speed against float32, batch {_SPEED_BATCH}", f"{ratio:.2f} ×")
        whole.close()
        low.close()


def main() -> None:
    """Run every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    here = Path(sys.executable)
    parser.add_argument("--nncf", type=Path, default=here, help="a python that has nncf")
    parser.add_argument("--modelopt", type=Path, default=here, help="a python that has modelopt")
    given = parser.parse_args()
    subject = read_subject(given.data)
    layers = GraphLayers(subject.graph)
    places = class_balanced(subject.training.labels, BUDGET)
    images = subject.training.images[places]
    measure("ours", ours(subject, places), subject, layers)
    measure("ONNX Runtime's defaults", plain_recipe(subject.graph, images), subject, layers)
    for name, python in {
        "nncf": given.nncf,
        "modelopt-max": given.modelopt,
        "modelopt-entropy": given.modelopt,
    }.items():
        made = elsewhere(name, python, subject.graph, images)
        if made is not None:
            measure(name, made, subject, layers)


if __name__ == "__main__":
    main()
