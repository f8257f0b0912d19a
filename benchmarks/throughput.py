"""Measure what surrounds inference: the predictor, reading photographs, and verification.

``photo``: what one photograph costs one core, by step, and whether another JPEG decoder would be
faster and equal (where ``simplejpeg`` is installed).

``predictor``: ready arrays in batches of eight through the predictor against the same engine bare.
``folder``: JPEG photographs in a folder through ``predict``, decoding included, against the same
engine on as many ready images. Both for a ResNet-50 with random weights, in every precision asked
for, on every engine that runs it here; the two sides take turns, and the ratio of each turn is one
value.

``verify``: wall time over the two engines' own time.

    python benchmarks/throughput.py --data ../shared/data [--photos 512] [--repeats 5] [--quick]
        [--precision fp32 …] [--engine onnxruntime …] [--only photo predictor folder verify]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import ltdeploy
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_dataset
from ltdeploy.errors import LtdeployError
from ltdeploy.export import export_bundle
from ltdeploy.export.precision import PrecisionRequest
from ltdeploy.fixes import FixSpec
from ltdeploy.images import Preprocessing, load_image, load_prepared, prepare
from ltdeploy.inference import batch_size_for
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.options import LoadOptions
from ltdeploy.verify import verify_bundle

CLASSES = 1000
BATCH = 8
PARTS = ("photo", "predictor", "folder", "verify")


def figure(name: str, values: list[float], unit: str = "") -> None:
    """Print one line: median, lowest, highest."""
    shown = f"{statistics.median(values):.3g}{unit} ({min(values):.3g} … {max(values):.3g})"
    print(f"{name:<76} {shown}", flush=True)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resnet50(folder: Path) -> Path:
    """Write a checkpoint of a ResNet-50 of 1,000 classes with random weights."""
    torch.manual_seed(0)
    torch.save(build("torchvision:resnet50", CLASSES).state_dict(), folder / "resnet50.pt")
    return folder / "resnet50.pt"


def export(checkpoint: Path, precision: str, photos: Path) -> Path:
    """Export the checkpoint in one precision, without a gate: its weights know nothing."""
    counts = np.geomspace(1000, 5, CLASSES).astype(int).tolist()
    options = LoadOptions(arch="torchvision:resnet50", classes=ClassTable.from_counts(counts))
    model = load_checkpoint(checkpoint, options=options)
    calibration = open_dataset(str(photos)) if precision in ("int8", "fp16") else None
    request = PrecisionRequest(precision, calibration=calibration, calibration_images=32)
    out = checkpoint.with_name(f"resnet50.{precision}.ltd")
    fix = FixSpec("tau_norm", {"tau": 0.7})
    return export_bundle(model, [fix], out, precision=request).bundle.path


def photo_folder(photos: Path, folder: Path, count: int) -> Path:
    """Copy photographs until there are ``count`` of them, in class folders of 50."""
    sources = itertools.cycle(sorted(photos.glob("*.jpg")))
    for number in range(count):
        target = folder / f"{number // 50}" / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(sources), target)
    return folder


def opened(bundle: Path, engines: list[str]) -> Iterator[tuple[str, ltdeploy.Predictor]]:
    """Yield the bundle on each engine, under a name for the figures; say why one does not run."""
    for engine in engines:
        try:
            with ltdeploy.load(bundle, engine=engine) as model:
                yield f"{bundle.name.split('.')[1]} on {model.engine.name}", model
        except LtdeployError as error:
            print(f"{bundle.name} on {engine}: not measured. {error}", flush=True)


def measure_photo(photos: Path, repeats: int) -> None:
    """Print milliseconds of one core per photograph, by step."""
    data = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    images = [load_image(one) for one in data]
    size = sum(image.width * image.height for image in images) / len(images) / 1e6
    print(f"{len(data)} photographs of {size:.2f} megapixels on average")

    def step(name: str, work: Callable[[int], object]) -> None:
        values = [
            1e3 * timed(lambda: [work(place) for place in range(len(data))]) / len(data)
            for _ in range(repeats)
        ]
        figure(f"photo: {name}", values, " ms")

    step("decode to RGB", lambda place: load_image(data[place]))
    for kernel in ("bilinear", "bicubic"):
        told = Preprocessing(224, 224, resize_px=256, interpolation=kernel)
        step(f"resize and crop, {kernel}", lambda place, told=told: prepare(images[place], told))
    scaled = Preprocessing(224, 224, resize_px=256, jpeg_scaling=True)
    step("all of it, bicubic, jpeg_scaling", lambda place: load_prepared(data[place], scaled))
    if importlib.util.find_spec("simplejpeg") is not None:
        import simplejpeg

        def other(place: int) -> np.ndarray:
            return simplejpeg.decode_jpeg(data[place], "RGB", fastdct=False, fastupsample=False)

        equal = sum(np.array_equal(other(n), np.asarray(images[n])) for n in range(len(data)))
        step(f"decode by simplejpeg, {equal} of {len(data)} equal to the pixel", other)


def measure_predictor(name: str, model: ltdeploy.Predictor, repeats: int) -> None:
    """Print how much of the bare engine's speed is left with answers, at a batch of eight."""
    rng = np.random.default_rng(0)
    size = (BATCH, model.preprocessing.height_px, model.preprocessing.width_px, 3)
    ready = rng.integers(0, 256, size, dtype=np.uint8)
    sides: dict[str, Callable[[], object]] = {
        "bare": lambda: model.engine.run({"images": ready}),
        "logits": lambda: model.logits(ready),
        "answers": lambda: model.classify(ready),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(10 * repeats + 1):
        for side, work in sides.items():
            took = timed(work)
            if turn:  # the first warms up
                seconds[side].append(took)
    for side in ("logits", "answers"):
        ratios = [b / s for b, s in zip(seconds["bare"], seconds[side], strict=True)]
        figure(f"predictor: {side} over bare, {name}, batch {BATCH} (wanted: ≥ 0.97)", ratios)


def measure_folder(name: str, model: ltdeploy.Predictor, photos: Path, repeats: int) -> None:
    """Print images per second of folder and bare engine, and their ratio."""
    files = sorted(photos.rglob("*.jpg"))
    size = batch_size_for(model.preprocessing)
    ready = np.stack([load_prepared(f, model.preprocessing) for f in files[:size]])
    batches = len(files) // size

    def bare() -> None:
        for _ in range(batches):
            model.engine.run({"images": ready})

    def folder() -> None:
        for answer in model.predict(iter(files[: batches * size])):
            assert answer.error is None

    model.engine.run({"images": ready})
    bare_s, folder_s = [], []
    for _ in range(repeats):
        bare_s.append(timed(bare))
        folder_s.append(timed(folder))
    images = batches * size
    figure(f"folder: bare engine, {name}", [images / s for s in bare_s], " images/s")
    figure(f"folder: {images} photos, {name}", [images / s for s in folder_s], " images/s")
    ratios = [b / f for b, f in zip(bare_s, folder_s, strict=True)]
    wanted = 0.95 if name.startswith("fp32 on onnx") else 0.90
    figure(f"folder: over bare engine, {name} (wanted: ≥ {wanted:.2f})", ratios)


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
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--engine", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few photos, two turns: a smoke test")
    told = parser.parse_args()
    if told.quick:
        told.photos, told.repeats = 64, 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "photo" in told.only:
            measure_photo(told.data / "photos", told.repeats)
        photos = photo_folder(told.data / "photos", folder / "photos", told.photos)
        if {"predictor", "folder", "verify"} & set(told.only):
            checkpoint = resnet50(folder)
        bundles = {}
        if {"predictor", "folder"} & set(told.only):
            bundles = {p: export(checkpoint, p, photos) for p in told.precision}
        for bundle in bundles.values():
            for shown, model in opened(bundle, told.engine):
                if "predictor" in told.only:
                    measure_predictor(shown, model, told.repeats)
                if "folder" in told.only:
                    measure_folder(shown, model, photos, told.repeats)
        if "verify" in told.only:
            bundle = bundles.get("fp32") or export(checkpoint, "fp32", photos)
            some = photo_folder(told.data / "photos", folder / "some", 64 if told.quick else 320)
            measure_verify("ResNet-50, photos", bundle, str(some), told.repeats)
            cifar = told.data / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar"
            out = folder / "cifar.ltd"
            export_bundle(load_checkpoint(cifar), [FixSpec("tau_norm", {"tau": 0.7})], out)
            images = str(told.data / "cifar100" / "test.parquet")
            measure_verify("CIFAR-100-LT, 10,000 images", out, images, told.repeats)


if __name__ == "__main__":
    main()
