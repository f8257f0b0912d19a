"""Measure bundles on engines, in rounds that go over all of them so that drift hits all alike."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..bundle import Bundle, open_bundle
from ..datasets import Dataset
from ..datasets.boxes import BoxDataset
from ..engines import ENGINES
from ..errors import EngineError, UsageError, numbered
from ..progress import Tracker, silent
from .accuracy import ClassifierTask
from .boxes import DetectorTask
from .machine import Machine, describe_machine
from .result import BenchResult, Contestant, points
from .rounds import ROUNDS, BenchOptions, Entry, open_all, take_turns
from .speed import Series, speed_of

__all__ = ["open_bundles", "run_bench"]

Task: TypeAlias = ClassifierTask | DetectorTask

_MARGIN = 1.0  # points, as the gate of verify has it by default


def open_bundles(bundles: Sequence[str | os.PathLike[str]]) -> dict[str, Bundle]:
    """Open bundles that can be measured together, by their paths.

    Raises
    ------
    BundleError
    UsageError
        If there is none, or there are both classifiers and detectors.
    """
    opened = {os.fspath(path): open_bundle(path) for path in bundles}
    if not opened:
        raise UsageError("There is no bundle to measure; give at least one folder NAME.ltd.")
    detectors = [path for path, bundle in opened.items() if bundle.is_detector]
    if 0 < len(detectors) < len(opened):
        raise UsageError(
            f"{detectors[0]} is a detector and others are classifiers; their figures do not "
            "compare. Measure them apart."
        )
    return opened


def run_bench(
    bundles: Sequence[str | os.PathLike[str]] | Mapping[str, Bundle],
    *,
    engines: Sequence[str] = (),
    dataset: Dataset | BoxDataset | None = None,
    options: BenchOptions | None = None,
    track: Tracker = silent,
) -> BenchResult:
    """Measure latency and throughput of bundles on engines, and accuracy where images are given.

    Every bundle × engine × threads has a process of its own, of which one works at a time. After
    a warm-up they take turns, in ten rounds of another order each. Ctrl-C ends the measurement;
    what there is by then is returned.

    Parameters
    ----------
    bundles : their folders, or what :func:`open_bundles` gave.
    engines : as ``open_engine`` knows them; none takes all that work here. One that was asked for
        and cannot run a bundle is an error, one that was not is told as such.
    dataset : labelled images, of detectors annotated photographs; without them the engines are
        timed on the golden samples.

    Raises
    ------
    EngineError
        If an engine that was asked for cannot run, or none can.
    BundleError, DataError, UsageError
    """
    options = options or BenchOptions()
    opened = bundles if isinstance(bundles, Mapping) else open_bundles(bundles)
    machine = describe_machine()
    entries = [
        Entry(bundle, path, engine)
        for path, bundle in opened.items()
        for engine in dict.fromkeys(engines or (name for name in ENGINES if name != "auto"))
    ]
    task = _task(entries[0].bundle, dataset)
    for entry in entries:  # labels that do not fit are said now, not after the timing
        task.require_fitting(entry.bundle)
    interrupted = False
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ltdeploy-")))
            inputs = _write_inputs(entries, task, max(options.batches), folder)
            running = open_all(entries, inputs, bool(engines), options, stack, track)
            take_turns(running, options, track)
            stack.close()  # their memory and threads are in nobody's way from here on
            if dataset is not None:
                _measure_accuracies(entries, task, track)
        except KeyboardInterrupt:
            interrupted = True
            if not any(entry.is_measured for entry in entries):
                raise
    shown = "golden samples of the bundle" if dataset is None else f"images of {dataset.name}"
    return BenchResult(
        contestants=_contestants(entries),
        measure=task.measure,
        groups=entries[0].bundle.classes.rule.names,
        seconds=options.seconds,
        rounds=ROUNDS,
        inputs=shown,
        machine=machine,
        warnings=tuple(dict.fromkeys(_warnings(entries, options, machine))),  # one for all engines
        provenance=_provenance(entries, dataset, shown, options, machine.facts()),
        interrupted=interrupted,
    )


def _write_inputs(entries: Sequence[Entry], task: Task, most: int, folder: Path) -> dict[str, Path]:
    """Write what each bundle is timed on, uint8 (most, H, W, 3), and return the files."""
    files: dict[str, Path] = {}
    for entry in entries:
        if entry.path in files:
            continue
        images = task.images(entry.bundle, most)
        tiled = images[np.arange(most) % len(images)]
        files[entry.path] = folder / f"{len(files)}.npy"
        np.save(files[entry.path], tiled, allow_pickle=False)
    return files


def _measure_accuracies(entries: Sequence[Entry], task: Task, track: Tracker) -> None:
    compared = _first(entries)
    for entry in entries:
        if not entry.is_measured or entry.failure is not None:
            continue
        try:
            entry.accuracy = task.accuracy(
                entry.bundle,
                entry.engine,
                is_first=entry is compared,
                track=track,
                label=f"{entry.bundle.name} on {entry.runs_on}",
            )
        except EngineError as error:
            entry.fail(error, named=False)


def _task(bundle: Bundle, dataset: Dataset | BoxDataset | None) -> Task:
    """Return what is done with data: what they are decides, and what the model is.

    Raises
    ------
    UsageError
        If a detector gets labelled images, or a classifier photographs with boxes.
    """
    if isinstance(dataset, BoxDataset) != bundle.is_detector and dataset is not None:
        what, needs = (
            ("detector", "a COCO or LVIS json")
            if bundle.is_detector
            else ("classifier", "labelled images")
        )
        raise UsageError(f"{bundle.path} is a {what}; expected {needs}, not {dataset.name}.")
    if bundle.is_detector:
        return DetectorTask(dataset if isinstance(dataset, BoxDataset) else None)
    return ClassifierTask(None if isinstance(dataset, BoxDataset) else dataset)


def _first(entries: Sequence[Entry]) -> Entry:
    """Return what ratios and changes are against, as ``BenchResult.first`` has it, failed or not.

    Where it has no accuracy, there is nothing that the others' changes could be against.
    """
    return next(entry for entry in entries if entry.is_measured)


def _contestants(entries: Sequence[Entry]) -> tuple[Contestant, ...]:
    first = _first(entries)
    names = [entry.bundle.path.name.removesuffix(".ltd") for entry in entries]
    of_path = dict(zip((entry.path for entry in entries), names, strict=True))
    clash = len(set(of_path.values())) < len(of_path)

    def series_of(entry: Entry) -> dict[tuple[int, int], Series]:
        return {
            cell: replace(entry.series[cell], rounds=entry.latencies[cell])
            for cell in sorted(entry.latencies)
        }

    compared = series_of(first)
    found = []
    for entry, name in zip(entries, names, strict=True):
        graph = entry.bundle.manifest.graphs[0]
        found.append(
            Contestant(
                bundle=entry.path,
                model=entry.path if clash else name,
                precision=graph.precision,
                arch=entry.bundle.manifest.arch,
                file_bytes=entry.bundle.manifest.files[graph.file].bytes,
                engine=entry.engine,
                runs_on=entry.runs_on,
                failure=entry.failure,
                speeds=tuple(
                    speed_of(series, None if entry is first else compared.get(cell))
                    for cell, series in series_of(entry).items()
                ),
                accuracy=entry.accuracy,
            )
        )
    return tuple(found)


def _warnings(entries: Sequence[Entry], options: BenchOptions, machine: Machine) -> Iterator[str]:
    if machine.is_busy:
        yield (
            f"The machine was busy: a load average of {machine.load_average:.2f} on "
            f"{machine.cores} cores at the start. Ratios are within a round and hold better than "
            "latencies."
        )
    most = max(threads for entry in entries for _, threads in entry.series)
    if most > machine.cores:
        yield (
            f"{most} threads were asked for and this process may use "
            f"{machine.cores} cores: more threads than cores only wait for each other."
        )
    for entry in entries:
        shaky = [f"batch {b} on {t} threads" for (b, t), s in entry.series.items() if not s.stable]
        if shaky:
            yield (
                f"{entry.path} on {entry.engine} was not stable after its warm-up "
                f"({', '.join(shaky)}): something else uses this machine, or its clock changes."
            )
        if entry.failure is not None and entry.is_measured:
            yield f"{entry.path} on {entry.engine} failed on the way: {entry.failure}"
        change = None if entry.accuracy is None else entry.accuracy.change
        lost = {} if change is None else change.lost(_MARGIN)
        if lost:
            yield (
                f"{entry.path} on {entry.engine} answers worse than the first: "
                f"{'; '.join(f'{name} {points(one)}' for name, one in lost.items())}."
            )
        if entry.accuracy is not None and entry.accuracy.chose_fix:
            yield (
                f"{entry.accuracy.chose_fix} of the {entry.accuracy.images} images chose the fix "
                f"or the precision of {entry.path}; its accuracies are flattered."
            )
        if entry.accuracy is not None and entry.accuracy.unreadable:
            were = "was" if entry.accuracy.unreadable == 1 else "were"
            yield (
                f"{numbered(entry.accuracy.unreadable, 'image')} could not be read and {were} left "
                "out."
            )


def _provenance(
    entries: Sequence[Entry],
    dataset: Dataset | BoxDataset | None,
    inputs: str,
    options: BenchOptions,
    machine: dict[str, str],
) -> dict[str, str]:
    by_path: dict[str, Any] = {entry.path: entry.bundle.manifest for entry in entries}
    sha256 = {path: m.files[m.graphs[0].file].sha256 for path, m in by_path.items()}
    told = {
        **machine,
        "Method": (
            f"each configuration in a process of its own, warmed up until stable, then {ROUNDS} "
            f"rounds of {options.seconds / ROUNDS:g} s in another order each; one caller, copies "
            "to and from the device included; latency is that of the engine alone, without "
            "decoding"
        ),
        "Timed on": inputs,
        "Graphs sha256": "; ".join(f"{path} {digest[:16]}…" for path, digest in sha256.items()),
        "Date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    counted = {entry.accuracy.images for entry in entries if entry.accuracy is not None}
    if dataset is not None and counted:
        told["Accuracy on"] = f"{dataset.name}, {max(counted):,} images"
    return told
