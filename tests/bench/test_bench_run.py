"""The measurement itself, with real engines in real processes. Nothing asserts a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import draw_photo, write_checkpoint

from ltdeploy.bench import BenchOptions, BenchResult, run_bench
from ltdeploy.bench import process as processes
from ltdeploy.bench.accuracy import ClassifierTask
from ltdeploy.bench.process import EngineProcess
from ltdeploy.bench.worker import Worker
from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.datasets import Dataset, open_dataset
from ltdeploy.engines import open_engine
from ltdeploy.errors import DataError, EngineError, UsageError
from ltdeploy.progress import silent
from ltdeploy.verify import compare_models

QUICK = BenchOptions(batches=(2, 1), threads=(1,), seconds=0.05)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four pictures of each class of ``checkpoint``."""
    folder = tmp_path_factory.mktemp("bench") / "val"
    for label in range(6):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(4):
            photo = draw_photo(10 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number}.png")
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another checkpoint of the same classes. Read only."""
    from ltdeploy.export import export_bundle
    from ltdeploy.models.classifier import load_checkpoint

    path = write_checkpoint(tmp_path_factory.mktemp("other") / "ckpt.pt", seed=1)
    return export_bundle(load_checkpoint(path), [], path.parent / "other.ltd").bundle.path


@pytest.fixture
def inputs(bundle_path: Path, tmp_path: Path) -> Path:
    """The golden samples as the file that a process is given."""
    np.save(tmp_path / "images.npy", open_bundle(bundle_path).golden().images[:2])
    return tmp_path / "images.npy"


@pytest.fixture(scope="module")
def found(bundle_path: Path, other_bundle: Path, photos: Dataset) -> BenchResult:
    """Two bundles on one engine, measured."""
    bundles = [bundle_path, other_bundle]
    return run_bench(bundles, engines=["onnxruntime"], dataset=photos, options=QUICK)


def test_measures_bundles_on_an_engine(found: BenchResult, bundle_path: Path) -> None:
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["schema"] == 1
    assert told["first"] == {"bundle": str(bundle_path), "engine": "onnxruntime"}
    assert [one["runs_on"] for one in told["contestants"]] == ["onnxruntime-cpu"] * 2
    for one in told["contestants"]:
        assert [(s["batch"], s["threads"]) for s in one["speeds"]] == [(1, 1), (2, 1)]
        for speed in one["speeds"]:
            assert speed["rounds"] == 10
            assert speed["runs"] >= 10
            assert 0 < speed["p50_ms"]["low"] <= speed["p50_ms"]["high"]
            assert speed["images_per_s"]["value"] > 0
            assert speed["peak_bytes"] is None or speed["peak_bytes"] > 10 << 20
    first, other = found.contestants
    assert all(speed.ratio is None for speed in first.speeds)
    assert all(speed.ratio is not None for speed in other.speeds)


def test_accuracies_are_those_of_verify(
    found: BenchResult, bundle_path: Path, other_bundle: Path, photos: Dataset
) -> None:
    compared = compare_models(bundle_path, other_bundle, photos).result
    first, other = (one.accuracy for one in found.contestants)
    assert first is not None
    assert other is not None
    assert first.change is None
    assert other.change is not None
    assert other.change.flips == compared.flips > 0
    assert other.images == compared.images == 24
    assert other.balanced.value == pytest.approx(compared.overall.candidate)
    for name, group in compared.groups.items():
        figure, change = other.groups[name], other.change.groups[name]
        assert figure is not None
        assert change is not None
        assert figure.value == pytest.approx(group.candidate)
        assert (change.value, change.low, change.high) == pytest.approx(
            (group.difference, group.ci_low, group.ci_high)
        )


def test_without_data_golden_samples_are_timed_and_all_engines_tried(bundle_path: Path) -> None:
    options = BenchOptions(batches=(3,), threads=(1,), seconds=0.02)
    found = run_bench([bundle_path], options=options)
    assert found.inputs == "golden samples of the bundle"
    by_engine = {one.engine: one for one in found.contestants}
    assert by_engine["onnxruntime"].speeds
    assert all(bool(one.speeds) != (one.failure is not None) for one in found.contestants)
    assert all(one.accuracy is None for one in found.contestants)


def unrunnable(bundle: Path, folder: Path) -> Path:
    """Return a bundle whose graph no engine loads, sealed as if it did."""
    from ltdeploy.bundle import write_bundle

    sound = open_bundle(bundle)
    files = {name: (sound.path / name).read_bytes() for name in sound.manifest.files}
    files[sound.manifest.graphs[0].file] = b"no graph"
    return write_bundle(folder / "broken.ltd", sound.manifest, files).path


def test_an_engine_that_cannot_is_told_or_refused(bundle_path: Path, tmp_path: Path) -> None:
    broken = unrunnable(bundle_path, tmp_path)
    found = run_bench([bundle_path, broken], options=QUICK)
    failures = {one.engine: one.failure for one in found.contestants if one.bundle == str(broken)}
    assert "cannot load" in (failures["onnxruntime"] or "")
    with pytest.raises(EngineError, match=r"broken\.ltd on onnxruntime: .*cannot load"):
        run_bench([bundle_path, broken], engines=["onnxruntime"], options=QUICK)
    with pytest.raises(EngineError, match=r"No engine here runs .*broken\.ltd.*onnxruntime: "):
        run_bench([broken], options=QUICK)


def test_without_an_accuracy_of_the_first_there_is_no_change(
    bundle_path: Path,
    other_bundle: Path,
    photos: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = ClassifierTask.accuracy

    def failing(task: ClassifierTask, bundle: Bundle, *told: Any, **more: Any) -> Any:
        if bundle.path == open_bundle(bundle_path).path:
            raise EngineError("The device is lost.")
        return sound(task, bundle, *told, **more)

    monkeypatch.setattr(ClassifierTask, "accuracy", failing)
    copy = shutil.copytree(other_bundle, tmp_path / "third.ltd")
    bundles = [bundle_path, other_bundle, copy]
    found = run_bench(bundles, engines=["onnxruntime"], dataset=photos, options=QUICK)
    first, *others = found.contestants
    assert found.first is first
    assert (first.accuracy, first.failure) == (None, "The device is lost.")
    assert all(one.accuracy is not None and one.accuracy.change is None for one in others)
    assert "points" not in found.to_dict()["sentence"]


def test_an_engine_s_own_threads_are_what_it_runs_with(bundle_path: Path) -> None:
    options = BenchOptions(batches=(1,), seconds=0.02)
    found = run_bench([bundle_path], engines=["onnxruntime:threads=3"], options=options)
    assert found.cells == ((1, 3),)
    both = replace(options, threads=(1,))
    with pytest.raises(EngineError, match="threads is 3 and threads is 1; give one of them"):
        run_bench([bundle_path], engines=["onnxruntime:threads=3"], options=both)


def test_an_unknown_engine_is_refused(bundle_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Unknown engine 'onnxruntme'.*Did you mean"):
        run_bench([bundle_path], engines=["onnxruntme"], options=QUICK)


class Interrupting:
    """A tracker that ends like Ctrl-C after some steps of the rounds."""

    def __init__(self, label: str, after: int) -> None:
        self._label, self._after = label, after

    def __call__(self, items: Iterable[Any], *, total: int | None, label: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if label == self._label and number == self._after:
                raise KeyboardInterrupt
            yield item


def test_an_interrupted_run_tells_what_it_has(bundle_path: Path) -> None:
    engines = ["onnxruntime"]
    stop = Interrupting("bench", 5)
    found = run_bench([bundle_path], engines=engines, options=QUICK, track=stop)
    assert found.interrupted
    assert sum(speed.rounds for speed in found.first.speeds) == 5
    with pytest.raises(KeyboardInterrupt):
        run_bench([bundle_path], engines=engines, options=QUICK, track=Interrupting("bench", 0))


def test_images_that_chose_the_fix_are_told(bundle_path: Path, photos: Dataset) -> None:
    from ltdeploy.images import load_prepared
    from ltdeploy.inference import fingerprints

    class Chosen(Bundle):
        def selection_hashes(self) -> Any:
            images = [load_prepared(photos.source(i), self.preprocessing) for i in range(3)]
            return fingerprints(np.stack(images))

    opened = open_bundle(bundle_path)
    chosen = Chosen(opened.path, opened.manifest)

    def chose(bundle: Bundle) -> int:
        told: Any = {"is_first": True, "track": silent, "label": "accuracy"}
        return ClassifierTask(photos).accuracy(bundle, "onnxruntime", **told).chose_fix

    assert (chose(chosen), chose(opened)) == (3, 0)


def test_unreadable_images_are_counted_and_none_readable_refused(
    bundle_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "val" / "species 0").mkdir(parents=True)
    (tmp_path / "val" / "species 0" / "0.png").write_bytes(b"no picture")
    data = open_dataset(str(tmp_path / "val"))
    with pytest.raises(DataError, match="None of the 1 images"):
        run_bench([bundle_path], engines=["onnxruntime"], dataset=data, options=QUICK)
    draw_photo(1, 32, 32).save(tmp_path / "val" / "species 0" / "1.png")
    data = open_dataset(str(tmp_path / "val"))
    found = run_bench([bundle_path], engines=["onnxruntime"], dataset=data, options=QUICK)
    assert found.first.accuracy is not None
    assert (found.first.accuracy.images, found.first.accuracy.unreadable) == (1, 1)
    assert any("could not be read" in text for text in found.warnings)


def test_two_bundles_of_one_name_keep_apart(bundle_path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_path, tmp_path / bundle_path.name)
    found = run_bench([bundle_path, copy], engines=["onnxruntime"], options=QUICK)
    assert found.labels() == [str(bundle_path), str(copy)]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"batches": ()}, "--batch is ''"),
        ({"batches": (1, 0)}, "--batch is '1,0'"),
        ({"threads": (-1,)}, "--threads is '-1'"),
        ({"seconds": 0.0}, "--seconds is 0"),
        ({"seconds": float("nan")}, "--seconds is nan"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        BenchOptions(**values)


def test_more_threads_than_cores_are_doubted(bundle_path: Path) -> None:
    options = BenchOptions(batches=(1,), threads=(200,), seconds=0.02)
    found = run_bench([bundle_path], engines=["onnxruntime"], options=options)
    assert any("200 threads" in text for text in found.warnings)


# The process of an engine


def test_a_process_answers_and_ends(bundle_path: Path, inputs: Path) -> None:
    with EngineProcess(bundle_path, "onnxruntime", 1, inputs) as process:
        assert process.name == "onnxruntime-cpu"
        assert process.ask(do="warm", batch=2)["runs"] > 1
        assert process.ask(do="turn", batch=1, seconds=0.01)["latencies_ms"]
        with pytest.raises(EngineError, match="Cannot 'dance'"):
            process.ask(do="dance")
        handle = process._process
    assert handle.poll() == 0


def test_a_process_that_dies_is_told(bundle_path: Path, inputs: Path) -> None:
    with EngineProcess(bundle_path, "onnxruntime", 1, inputs) as process:
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"ended by SIGKILL.*Memory may have run out"):
            process.ask(do="turn", batch=1, seconds=0.01)


def test_a_process_that_hangs_is_ended(
    bundle_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EngineProcess(bundle_path, "onnxruntime", 1, inputs) as process:
        os.kill(process._process.pid, signal.SIGSTOP)
        monkeypatch.setitem(processes._LIMITS_S, "turn", 0.1)
        with pytest.raises(EngineError, match=r"gave no answer in 0\.1 s and was ended"):
            process.ask(do="turn", batch=1, seconds=0.01)
        assert process._process.wait(10) == -signal.SIGKILL


def test_a_process_does_not_take_modules_from_the_folder_it_is_in(
    bundle_path: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    with EngineProcess(bundle_path, "onnxruntime", 1, inputs) as process:
        assert process.name == "onnxruntime-cpu"


def test_not_finite_logits_are_not_worth_timing(
    bundle_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(open_bundle(bundle_path), "onnxruntime", threads=1)
    sound = engine.run
    monkeypatch.setattr(
        engine, "run", lambda feeds: {k: v * np.nan for k, v in sound(feeds).items()}
    )
    worker = Worker()
    worker._engine, worker._images = engine, np.load(inputs)
    assert "non-finite logits" in worker.answer({"do": "warm", "batch": 2})["error"]
    monkeypatch.undo()
    assert worker.answer({"do": "warm", "batch": 2})["runs"] > 0
    worker.close()


def test_a_worker_asked_too_early_says_so() -> None:
    assert "No engine is open" in Worker().answer({"do": "warm", "batch": 1})["error"]
