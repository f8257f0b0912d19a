"""Measure int8 on a real long-tailed checkpoint: plain recipe, ours, search, calibration images.

The checkpoint gets τ-normalisation 0.7 first. Every difference is from the float32 graph on the
same images, in points of class-averaged accuracy, with its 95 % interval. Three parts:

* the plain recipe (ONNX Runtime's ``quantize_static`` as it comes, on the first 512 training
  images) and ours without search, on all test images;
* ours after search: half of the test images, by seed, to search on, the other half reported;
* first, random and class-balanced calibration images, over budgets and seeds, all test images.

    python benchmarks/int8_cifar100_lt.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from ltdeploy.arrays import FloatArray
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import Dataset, align_labels, open_dataset
from ltdeploy.engines import Engine
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime
from ltdeploy.engines.openvino_engine import OpenVinoEngine
from ltdeploy.export import export_bundle
from ltdeploy.export.precision import PrecisionRequest, lower
from ltdeploy.export.precision.layers import GraphLayers
from ltdeploy.export.precision.quantise import measure_ranges, quantise
from ltdeploy.export.precision.sampling import class_balanced
from ltdeploy.fixes import FixSpec
from ltdeploy.images import load_prepared
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.verify import VerifyResult
from ltdeploy.verify.assess import Accumulator

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

TAU = 0.7
BUDGET = 512
_BATCH = 250
_GATE_SECONDS = 600.0
ENGINES: dict[str, Callable[[bytes], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "openvino": OpenVinoEngine,
}


def line(name: str, value: str) -> None:
    """Print one figure."""
    print(f"{name:<60} {value}", flush=True)


class Prepared(Dataset):
    """Images that are ready, as a data set."""

    def __init__(self, name: str, images: Images, labels: Labels) -> None:
        super().__init__(name, None, labels)
        self.images = images

    def source(self, index: int) -> Images:
        """Return the image itself."""
        return self.images[index]

    def identifier(self, index: int) -> str:
        """Return its place."""
        return f"{self.name}#{index}"

    def part(self, rows: npt.NDArray[np.int64]) -> Prepared:
        """Return some of the images."""
        return Prepared(self.name, self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Subject:
    """The checkpoint's float32 graph and its data.

    Attributes
    ----------
    graph : cleaned up, τ 0.7 folded in.
    reference : array of shape (N, C): its logits of the test images on ONNX Runtime.
    """

    graph: onnx.ModelProto
    classes: ClassTable
    preprocessing: Preprocessing
    training: Prepared
    test: Prepared
    reference: FloatArray


def read_subject(data: Path) -> Subject:
    """Export the checkpoint and read its images."""
    model = load_checkpoint(data / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar")
    with tempfile.TemporaryDirectory() as folder:
        specs = [FixSpec("tau_norm", {"tau": TAU})]
        bundle = export_bundle(model, specs, Path(folder) / "fp32.ltd").bundle
        graph, classes = onnx.load(bundle.graph_path), bundle.classes

    def prepared(name: str) -> Prepared:
        dataset = open_dataset(str(data / "cifar100" / name))
        every = range(len(dataset))
        images = [load_prepared(dataset.source(i), model.preprocessing) for i in every]
        return Prepared(name, np.stack(images), align_labels(dataset, classes))

    test = prepared("test.parquet")
    return Subject(
        graph,
        classes,
        model.preprocessing,
        prepared("train_lt_if100.parquet"),
        test,
        run(OnnxRuntimeEngine, graph, test.images),
    )


def run(
    open_engine: Callable[[bytes], Engine], graph: onnx.ModelProto, images: Images
) -> FloatArray:
    """Return a graph's logits, array of shape (N, C)."""
    engine = open_engine(graph.SerializeToString())
    try:
        parts = [
            engine.run({"images": images[start : start + _BATCH]})["logits"]
            for start in range(0, len(images), _BATCH)
        ]
    finally:
        engine.close()
    return np.concatenate(parts)


def compare(
    subject: Subject,
    graph: onnx.ModelProto,
    engine: str,
    rows: npt.NDArray[np.int64] | slice = slice(None),
) -> VerifyResult:
    """Return what the gate says of a graph against float32, on some of the test images."""
    logits = run(ENGINES[engine], graph, subject.test.images[rows])
    compared = Accumulator(subject.classes)
    compared.update(subject.test.labels[rows], subject.reference[rows], logits)
    return compared.result(1.0)


def told(result: VerifyResult) -> str:
    """Return differences by group with their intervals, and flips."""
    strata = {**result.groups, "all": result.overall}
    shown = [
        f"{name} {group.difference:+.2f} ({group.ci_low:+.2f} … {group.ci_high:+.2f})"
        for name, group in strata.items()
    ]
    return f"{', '.join(shown)}; {result.flips:,} flips of {result.images:,}"


def plain_recipe(graph: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    """Quantise with ONNX Runtime's defaults: asymmetric, per tensor, stem and head included."""
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its base is untyped
        def __init__(self) -> None:
            self.batches: Iterator[Images] = iter(np.split(images, range(64, len(images), 64)))

        def get_next(self) -> dict[str, Images] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    logging.getLogger().setLevel(logging.ERROR)  # it asks for the clean-up that was done before
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, source)
        quantize_static(source, out, Reader())
        return onnx.load(out)


def share_in_int8(quantised: onnx.ModelProto, layers: GraphLayers) -> float:
    """Return the share of the multiply-adds whose two factors come from int8, whoever made it.

    Parameters
    ----------
    layers : of the float32 graph; its nodes' names are looked for in ``quantised``.
    """
    dequantised = {
        name
        for node in quantised.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    low = {n.name for n in quantised.graph.node if dequantised.issuperset(n.input[:2])}
    return layers.low_share([layer.name for layer in layers.weighted if layer.name in low])


def ours(subject: Subject, places: npt.NDArray[np.int64]) -> onnx.ModelProto:
    """Quantise with our recipe, no search, on training images at ``places``."""
    images = subject.training.images[places]
    return quantise(subject.graph, measure_ranges(subject.graph, images))


def measure_recipes(subject: Subject) -> None:
    """Print the plain recipe beside ours, on all test images."""
    layers = GraphLayers(subject.graph)
    made = {
        "plain recipe, first images": plain_recipe(subject.graph, subject.training.images[:BUDGET]),
        "ours, class-balanced images": ours(
            subject, class_balanced(subject.training.labels, BUDGET)
        ),
    }
    for name, graph in made.items():
        line(f"{name}: multiply-adds in int8", f"{100 * share_in_int8(graph, layers):.1f} %")
        for engine in ENGINES:
            line(f"{name}, {engine}", told(compare(subject, graph, engine)))


def measure_search(subject: Subject, seeds: int) -> None:
    """Print what the search comes to on one half, measured on the other."""
    for engine, open_engine in ENGINES.items():
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(subject.test))
            searched, reported = np.split(order, 2)
            lowered = lower(
                subject.graph,
                PrecisionRequest(
                    precision="int8",
                    calibration=subject.training,
                    calibration_images=BUDGET,
                    gate=subject.test.part(searched),
                    engine=engine,
                    search_seconds=_GATE_SECONDS,
                ),
                subject.classes,
                subject.preprocessing,
                lambda graph, made=open_engine: made(graph.SerializeToString()),
                subject.test.images[searched[:8]],
            )
            line(
                f"after search, {engine}, halves {seed}: restored, share, searched half",
                f"{len(lowered.entry.restored)}, {100 * lowered.entry.low_share:.1f} %, "
                f"{lowered.entry.gate.verdict if lowered.entry.gate else 'no gate'}",
            )
            line(
                f"after search, {engine}, halves {seed}: other half (few ≥ −0.5)",
                told(compare(subject, lowered.model, engine, reported)),
            )


def measure_calibration(subject: Subject, seeds: int, budgets: list[int], engine: str) -> None:
    """Print first, random and class-balanced calibration images side by side."""
    labels = subject.training.labels
    for budget in budgets:
        first = np.unique(labels[:budget])
        names = ", ".join(subject.classes.names[c] for c in first[:3])
        groups = sorted({subject.classes.groups[c] for c in first})
        line(
            f"the first {budget} training images are of",
            f"{len(first)} classes ({names}), all of them {' and '.join(groups)}",
        )
        choices: dict[str, Callable[[int], npt.NDArray[np.int64]]] = {
            "first": lambda _seed, n=budget: np.arange(n),
            "random": lambda seed, n=budget: np.random.default_rng(seed).permutation(len(labels))[
                :n
            ],
            "class-balanced": partial(_balanced, labels, budget),
        }
        for name, places in choices.items():
            results = [
                compare(subject, ours(subject, places(seed)), engine)
                for seed in range(1 if name == "first" else seeds)
            ]
            columns: dict[str, list[float]] = {
                **{
                    group: [result.groups[group].difference or 0.0 for result in results]
                    for group in results[0].groups
                },
                "all": [result.overall.difference or 0.0 for result in results],
            }
            shown = [
                f"{group} {np.mean(values):+.2f} ({min(values):+.2f} … {max(values):+.2f})"
                for group, values in columns.items()
            ]
            flips = [result.flips for result in results]
            line(
                f"{budget} {name} images, {len(results)} seeds, {engine}",
                f"{', '.join(shown)}; flips {np.mean(flips):.0f} ({min(flips)} … {max(flips)})",
            )


def _balanced(labels: Labels, budget: int, seed: int) -> npt.NDArray[np.int64]:
    return class_balanced(labels, budget, seed=seed)


def main() -> None:
    """Run every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    parser.add_argument("--halves", type=int, default=3, help="seeds of the search")
    parser.add_argument("--seeds", type=int, default=5, help="of the calibration images")
    parser.add_argument("--budgets", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime", help="for those")
    given = parser.parse_args()
    subject = read_subject(given.data)
    measure_recipes(subject)
    measure_search(subject, given.halves)
    measure_calibration(subject, given.seeds, given.budgets, given.engine)


if __name__ == "__main__":
    main()
