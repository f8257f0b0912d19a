"""Measure engines and precisions side by side: images per second of four networks on this machine.

ResNet-50, ViT-S and MobileNetV3 at 224 pixels with random weights, and a CIFAR ResNet of a real
long-tailed checkpoint at 32. Every engine runs in turn, so that what else the machine does
hits all alike; ratios are taken within a round and their median is printed with the 5th and 95th
percentile.

    python benchmarks/engines.py --data ../shared/data            # ten minutes
    python benchmarks/engines.py --data ../shared/data --quick    # three
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch

from ltdeploy.bench.machine import describe_machine
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_dataset
from ltdeploy.engines import Engine, open_engine
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.export import PrecisionRequest, export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.options import LoadOptions

NETWORKS = {
    "ResNet-50": "resnet50",
    "ViT-S/16": "vit_small_patch16_224",
    "MobileNetV3-L": "mobilenetv3_large_100",
}
CIFAR = "checkpoints/cifar100_lt_if100_resnet20_ce.pth.tar"


def checkpoint(name: str, folder: Path) -> Path:
    """Write a checkpoint with random weights that knows its architecture."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=28).eval()
    path = folder / f"{name}.pt"
    torch.save(module.state_dict(), path)
    return path


def contestants(
    path: Path, folder: Path, calibration: Any, options: LoadOptions | None, precisions: list[str]
) -> dict[str, Engine]:
    """Export a checkpoint in every precision and open it on every engine that runs it."""
    model = load_checkpoint(path, options=options)
    found: dict[str, Engine] = {"PyTorch eager, fp32": reference_engine(model)}
    for precision in precisions:
        out = folder / f"{path.stem}-{precision}.ltd"
        request = PrecisionRequest(precision, calibration=calibration, calibration_images=64)
        bundle = export_bundle(model, [FixSpec("tau_norm", {"tau": 0.7})], out, precision=request)
        for engine in ("onnxruntime", "openvino"):
            if (engine, precision) != ("onnxruntime", "bf16"):  # it has no such arithmetic
                found[f"{engine}, {precision}"] = open_engine(bundle.bundle, engine)
    return found


def measure(
    engines: dict[str, Engine], images: npt.NDArray[np.uint8], rounds: int
) -> dict[str, list[float]]:
    """Return images per second of every engine, by round."""
    rates: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    rng = np.random.default_rng(0)
    for round_ in range(rounds + 1):
        for name in rng.permutation(order).tolist():
            runs, started = 0, time.perf_counter()
            while runs < 2 or time.perf_counter() - started < 0.3:
                engines[name].run({"images": images})
                runs += 1
            if round_:  # the first warms up
                rates[name].append(runs * len(images) / (time.perf_counter() - started))
    return rates


def show(rates: dict[str, list[float]], ratios: list[tuple[str, str]]) -> None:
    """Print the rates, and named ratios within rounds."""
    for name, values in rates.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        print(f"  {name:<24} {middle:8.1f} images/s ({low:.1f} … {high:.1f})", flush=True)
    for one, other in ratios:
        if one in rates and other in rates:
            within = np.array(rates[one]) / np.array(rates[other])
            low, middle, high = np.percentile(within, [5, 50, 95])
            print(
                f"  {one + ' / ' + other:<44} {middle:5.2f} × ({low:.2f} … {high:.2f})", flush=True
            )


RATIOS = [
    ("openvino, bf16", "onnxruntime, fp32"),
    ("openvino, bf16", "PyTorch eager, fp32"),
    ("openvino, int8", "openvino, bf16"),
    ("openvino, int8", "onnxruntime, fp32"),
    ("openvino, int8", "PyTorch eager, fp32"),
    ("openvino, fp32", "onnxruntime, fp32"),
    ("onnxruntime, int8", "onnxruntime, fp32"),
]


def main() -> None:
    """Print the table of every network and batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=[*NETWORKS, "CIFAR ResNet-20"])
    given = parser.parse_args()
    machine = describe_machine()
    print(
        f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.instruction_sets)}; "
        f"load {os.getloadavg()[0]:.1f}; torch {torch.__version__}",
        flush=True,
    )
    rounds = 5 if given.quick else 15
    precisions = ["fp32", "bf16", "int8"]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs: list[tuple[str, Callable[[], dict[str, Engine]], int, tuple[int, ...]]] = []
        species = open_dataset("species:train")

        table = ClassTable.from_counts(species.counts().tolist(), species.class_names)
        for shown, arch in NETWORKS.items():
            options = LoadOptions(arch=f"timm:{arch}", classes=table)
            runs.append(
                (
                    shown,
                    lambda arch=arch, options=options: contestants(
                        checkpoint(arch, folder), folder, species, options, precisions
                    ),
                    224,
                    (1, 8),
                )
            )
        train = open_dataset(str(given.data / "cifar100" / "train_lt_if100.parquet"))
        runs.append(
            (
                "CIFAR ResNet-20",
                lambda: contestants(given.data / CIFAR, folder, train, None, precisions),
                32,
                (1, 64),
            )
        )
        for shown, opened, side, batches in runs:
            if shown not in given.only:
                continue
            engines = opened()
            for batch in batches:
                images = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
                print(f"{shown}, batch {batch}", flush=True)
                show(measure(engines, images, rounds), RATIOS)
            for engine in engines.values():
                engine.close()


if __name__ == "__main__":
    main()
