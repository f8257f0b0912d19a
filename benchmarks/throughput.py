"""Measure what reading photographs costs beside inference: predict and verify.

``predict``: a folder of JPEG photographs through the predictor against the same ONNX Runtime
session on ready-made batches, blocks of both in turn, ResNet-50 with random weights.
``verify``: wall time over the two engines' own time, on CIFAR-100-LT and on the photographs.
Prints one line per figure: median and range over the repeats.

    python benchmarks/throughput.py --data ../shared/data [--photos 2000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ltdeploy
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_dataset
from ltdeploy.export import export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.images import load_prepared
from ltdeploy.inference import batch_size_for
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.options import LoadOptions
from ltdeploy.verify import verify_bundle

CLASSES = 1000


def figure(name: str, values: list[float], unit: str = "") -> None:
    """Print one line: median, lowest, highest."""
    shown = f"{statistics.median(values):.3g}{unit} ({min(values):.3g} … {max(values):.3g})"
    print(f"{name:<68} {shown}", flush=True)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resnet50_bundle(folder: Path) -> Path:
    """Export a ResNet-50 of 1,000 classes with random weights."""
    torch.manual_seed(0)
    torch.save(build("torchvision:resnet50", CLASSES).state_dict(), folder / "resnet50.pt")
    counts = np.geomspace(1000, 5, CLASSES).astype(int).tolist()
    options = LoadOptions(arch="torchvision:resnet50", classes=ClassTable.from_counts(counts))
    model = load_checkpoint(folder / "resnet50.pt", options=options)
    exported = export_bundle(model, [FixSpec("tau_norm", {"tau": 0.7})], folder / "resnet50.ltd")
    return exported.bundle.path


def photo_folder(photos: Path, folder: Path, count: int) -> Path:
    """Copy photographs until there are ``count`` of them, in class folders of 50."""
    sources = itertools.cycle(sorted(photos.glob("*.jpg")))
    for number in range(count):
        target = folder / f"{number // 50}" / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(sources), target)
    return folder


def measure_predict(bundle: Path, photos: Path, repeats: int) -> None:
    """Print images per second of folder and bare session, and their ratio."""
    files = sorted(photos.rglob("*.jpg"))
    with ltdeploy.load(bundle) as model:
        size = batch_size_for(model.preprocessing)
        ready = np.stack([load_prepared(f, model.preprocessing) for f in files[:size]])
        batches = [ready] * (len(files) // size)

        def bare() -> None:
            for batch in batches:
                model.engine.run({"images": batch})

        def folder() -> None:
            for answer in model.predict(iter(files[: len(batches) * size])):
                assert answer.error is None

        model.engine.run({"images": ready})
        bare_s, folder_s = [], []
        for _ in range(repeats):
            bare_s.append(timed(bare))
            folder_s.append(timed(folder))
    images = len(batches) * size
    figure(
        f"predict: bare session, {images} ready images", [images / s for s in bare_s], " images/s"
    )
    figure(f"predict: folder of {images} photos", [images / s for s in folder_s], " images/s")
    ratios = [b / f for b, f in zip(bare_s, folder_s, strict=True)]
    figure("predict: folder over bare session (wanted: 0.95 or more)", ratios)


def measure_verify(name: str, bundle: Path, data: str, repeats: int) -> None:
    """Print the wall time of a verification over its two engines' own time."""
    ratios = []
    for _ in range(repeats):
        seconds = verify_bundle(bundle, open_dataset(data)).seconds
        ratios.append(seconds["total"] / (seconds["reference"] + seconds["candidate"]))
    figure(f"verify: wall over engine time, {name} (wanted: 1.1 or less)", ratios)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = resnet50_bundle(folder)
        photos = photo_folder(told.data / "photos", folder / "photos", told.photos)
        measure_predict(bundle, photos, told.repeats)
        some = photo_folder(told.data / "photos", folder / "some", 320)
        measure_verify("ResNet-50, 320 photos", bundle, str(some), told.repeats)
        checkpoint = told.data / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar"
        out = folder / "cifar.ltd"
        export_bundle(load_checkpoint(checkpoint), [FixSpec("tau_norm", {"tau": 0.7})], out)
        images = str(told.data / "cifar100" / "test.parquet")
        measure_verify("CIFAR-100-LT, 10,000 images", out, images, told.repeats)


if __name__ == "__main__":
    main()
