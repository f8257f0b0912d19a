"""Precision that is chosen: which images, which layers hurt, how few are restored."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from precision_samples import DrawnDataset, answers, float32_graph, pictures

from ltdeploy.bundle import open_bundle
from ltdeploy.classes import ClassTable
from ltdeploy.engines import open_engine
from ltdeploy.errors import EngineError, ExportError, UsageError
from ltdeploy.export import export_bundle
from ltdeploy.export.precision import PrecisionRequest, graph_opener, lower
from ltdeploy.export.precision.damage import damage_of, margins, tail_images
from ltdeploy.export.precision.layers import GraphLayers
from ltdeploy.export.precision.open_graph import computes
from ltdeploy.export.precision.sampling import class_balanced, read_balanced
from ltdeploy.export.precision.search import Journal, search
from ltdeploy.inference import fingerprints
from ltdeploy.models.architectures import default_preprocessing
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.predictor import load
from ltdeploy.verify.assess import Accumulator

CLASSES = ClassTable.from_counts([500, 200, 90, 40, 10, 5])
SIZE = default_preprocessing("cifar:resnet20")


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 9))
def test_a_balanced_choice(labels: list[int], budget: int, seed: int) -> None:
    given_labels = np.array(labels, dtype=np.int64)
    chosen = class_balanced(given_labels, budget, seed=seed)
    assert len(chosen) == min(budget, len(labels))
    assert len(set(chosen.tolist())) == len(chosen)
    taken = np.bincount(given_labels[chosen], minlength=7)
    there = np.bincount(given_labels, minlength=7)
    most = taken.max()
    # A class has fewer than another by more than one only where it has no more images.
    assert all(t >= most - 1 or t == n for t, n in zip(taken, there, strict=True))
    np.testing.assert_array_equal(chosen, class_balanced(given_labels, budget, seed=seed))


def test_a_choice_that_is_not_balanced_is_told_apart() -> None:
    labels = np.repeat([0, 1], [500, 10])
    taken = np.bincount(labels[class_balanced(labels, 20)])
    assert taken.tolist() == [10, 10]
    assert np.bincount(labels[:20]).tolist() == [20]  # the first N, which is the usual way


def test_an_unreadable_image_is_replaced_by_the_next() -> None:
    class Damaged(DrawnDataset):
        def source(self, index: int) -> Any:
            return b"no image" if index % 2 else super().source(index)

    labels = np.zeros(20, dtype=np.int64)
    read = read_balanced(Damaged(labels), labels, SIZE, 6)
    assert len(read.images) == 6
    assert all(index % 2 == 0 for index in read.indices)
    assert read.unreadable
    assert all(int(name.partition("#")[2]) % 2 for name, _ in read.unreadable)


def test_margins_and_damage() -> None:
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 5.0]], dtype=np.float32)
    labels = np.array([0, 1])
    np.testing.assert_allclose(margins(logits, labels), [1.0, -2.0])
    worse = logits - np.array([[0.5, 0, 0], [0, -1, 0]], dtype=np.float32)
    assert damage_of(logits, worse, labels) == pytest.approx(0.25)  # what is won does not count
    assert damage_of(logits, logits, labels) == 0.0
    assert damage_of(logits + 7, worse + 3, labels) == pytest.approx(0.25)  # shifts do not either
    assert damage_of(logits, np.full_like(logits, np.nan), labels) == np.inf


def test_layers_are_ranked_on_the_rarest_classes() -> None:
    labels = np.repeat(np.arange(6), 10)
    chosen = tail_images(labels, CLASSES, 16)
    assert sorted(np.bincount(labels[chosen], minlength=6).tolist()[4:]) == [8, 8]
    more = tail_images(labels, CLASSES, 30)
    assert np.bincount(labels[more], minlength=6).tolist() == [0, 0, 5, 5, 10, 10]


class Gate:
    """A gate whose verdict follows from which layers are restored, counting what it is asked."""

    margin = 1.0

    def __init__(self, needed: Collection[str], layers: list[str], fail_after: int = 999) -> None:
        self.needed, self.layers = set(needed), layers
        self.asked: list[str] = []
        self.fail_after = fail_after
        self.tail = np.zeros((4, 1)), np.zeros(4, dtype=np.int64)

    def _ask(self, what: str) -> None:
        if len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append(what)

    def judge(self, model: Any, label: str) -> Any:
        self._ask(label)
        counts = np.repeat(np.arange(6), 200)
        right = np.zeros((len(counts), 6), dtype=np.float32)
        right[np.arange(len(counts)), counts] = 1.0
        wrong = np.roll(right, 1, axis=1)
        lost = len(self.needed - set(model.restored))
        answered = right.copy()
        answered[counts >= 4] = wrong[counts >= 4] if lost else right[counts >= 4]
        compared = Accumulator(CLASSES)
        compared.update(counts, right, answered)
        return compared.result(self.margin)

    def tail_logits(self, model: Any) -> Any:
        self._ask("rank")
        (alone,) = set(self.layers) - set(model.restored) or {None}
        hurt = 0.0 if alone is None else self.layers.index(alone) + 100 * (alone in self.needed)
        return np.tile(np.array([[-hurt, 0, 0, 0, 0, 0]], dtype=np.float32), (4, 1))


LAYERS = [f"layer{i}" for i in range(20)]


def recipe(keep: Collection[str]) -> Any:
    """Stand in for a graph by the layers that it has in float32."""
    return SimpleNamespace(restored=frozenset(keep), ByteSize=lambda: 100 + len(keep))


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 11, 18, 19])
def test_the_fewest_layers_are_restored(needed: int) -> None:
    gate = Gate(LAYERS[:needed], LAYERS)
    found = search(recipe, recipe(LAYERS), LAYERS, gate, journal=Journal(None), seconds=60)
    assert set(found.chosen.restored) == set(LAYERS[:needed])
    assert found.fewest
    assert len(gate.asked) <= 1 + 21 + 10
    assert [len(t.restored) for t in found.trials] == sorted(len(t.restored) for t in found.trials)


def test_nothing_is_ranked_where_nothing_has_to_be_restored() -> None:
    gate = Gate((), LAYERS)
    found = search(recipe, recipe(LAYERS), LAYERS, gate, journal=Journal(None), seconds=60)
    assert found.chosen.restored == ()
    assert gate.asked == ["gate"]


def test_float32_is_no_low_precision() -> None:
    gate = Gate(LAYERS, LAYERS)  # every layer hurts
    with pytest.raises(ExportError, match=r"No division .* 19 restored: few -"):
        search(recipe, recipe(LAYERS), LAYERS, gate, journal=Journal(None), seconds=60)
    alone = Gate(LAYERS[:1], LAYERS[:1])
    with pytest.raises(ExportError, match="No division"):
        search(recipe, recipe(LAYERS[:1]), LAYERS[:1], alone, journal=Journal(None), seconds=60)


@pytest.mark.parametrize("killed_after", [0, 1, 2, 7, 22, 24])
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, killed_after: int) -> None:
    whole = Gate(LAYERS[:5], LAYERS)
    expected = search(recipe, recipe(LAYERS), LAYERS, whole, journal=Journal(None), seconds=60)
    path = tmp_path / "journal.json"
    killed = Gate(LAYERS[:5], LAYERS, fail_after=killed_after)
    with pytest.raises(KeyboardInterrupt):
        search(recipe, recipe(LAYERS), LAYERS, killed, journal=Journal(path), seconds=60)
    second = Gate(LAYERS[:5], LAYERS)
    found = search(recipe, recipe(LAYERS), LAYERS, second, journal=Journal(path), seconds=60)
    assert found == expected
    # The reference's margins are asked for again, nothing else is.
    assert len(killed.asked) + len(second.asked) <= len(whole.asked) + 2


def test_a_damaged_journal_costs_its_measurements_only(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_text('{"schema": 1, "damage": {"layer1"')
    found = search(
        recipe, recipe(LAYERS), LAYERS, Gate((), LAYERS), journal=Journal(path), seconds=60
    )
    assert found.chosen.restored == ()


def test_a_journal_that_cannot_be_written_costs_nothing_but_resuming(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    expected = search(
        recipe, recipe(LAYERS), LAYERS, Gate(LAYERS[:3], LAYERS), journal=Journal(None), seconds=60
    )
    journal = Journal(tmp_path / "file" / "journal.json")
    gate = Gate(LAYERS[:3], LAYERS)
    with pytest.warns(RuntimeWarning, match="cannot be resumed") as warned:
        found = search(recipe, recipe(LAYERS), LAYERS, gate, journal=journal, seconds=60)
    assert found == expected
    assert len(warned) == 1
    with pytest.raises(ExportError, match="all is lost"):
        search(recipe, recipe(LAYERS), LAYERS[:9], gate, journal=Journal(None), seconds=0)


def test_time_that_runs_out_says_how_to_go_on(tmp_path: Path) -> None:
    gate = Gate(LAYERS[:5], LAYERS)
    with pytest.raises(ExportError, match="run the same command again"):
        search(
            recipe,
            recipe(LAYERS),
            LAYERS,
            gate,
            journal=Journal(tmp_path / "journal.json"),
            seconds=0,
        )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return float32_graph(tmp_path_factory.mktemp("planted"), outlier=300.0)


@pytest.fixture(scope="module")
def gate_data(planted: onnx.ModelProto) -> DrawnDataset:
    """Images that the float32 model is sure of, with its answers for labels."""
    logits = answers(planted, pictures(800))
    labels = logits.argmax(axis=1).astype(np.int64)
    sure = np.argsort(margins(logits, labels))[-400:]
    return DrawnDataset(labels[sure], sure)


def test_a_layer_that_int8_destroys_is_the_one_restored(
    planted: onnx.ModelProto, gate_data: DrawnDataset, tmp_path: Path
) -> None:
    request = PrecisionRequest(
        "int8",
        calibration=DrawnDataset(np.arange(60, dtype=np.int64) % 6, np.arange(1000, 1060)),
        calibration_images=60,
        gate=gate_data,
        engine="onnxruntime",
        journals=tmp_path,
    )
    opener = graph_opener("onnxruntime", "int8")
    lowered = lower(planted, request, CLASSES, SIZE, opener, pictures(8))
    assert lowered.found is not None
    worst = next(iter(lowered.found.damage))
    body = [layer.name for layer in GraphLayers(planted).body]
    assert worst == body[9]  # the second convolution of layer2.1: it takes in the outlier
    assert worst in lowered.entry.restored
    assert len(lowered.entry.restored) <= 4
    assert lowered.found.trials[0].verdict == "fail"
    assert lowered.entry.gate is not None
    assert len(lowered.seen) == 400
    assert list(tmp_path.glob("precision-*.json"))
    again = lower(planted, request, CLASSES, SIZE, opener, pictures(8))
    assert again.entry == lowered.entry


def test_int8_without_training_images_says_what_to_add() -> None:
    with pytest.raises(UsageError, match="--calibration DATA"):
        PrecisionRequest("int8")


def test_a_network_without_a_body_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((3, 6), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"], name="head")]
    io = (
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("logits", TensorProto.FLOAT, ["n", 6])],
    )
    model = helper.make_model(helper.make_graph(nodes, "g", *io, [weight]))
    request = PrecisionRequest("bf16")
    with pytest.raises(ExportError, match="nothing whose precision"):
        lower(model, request, CLASSES, SIZE, graph_opener("auto", "bf16"), pictures(2))


@pytest.mark.parametrize(
    ("engine", "precision", "words"),
    [
        ("onnxruntime", "bf16", "use --engine openvino"),
        ("tensorrt", "int8", "verify NAME.ltd --data DATA --engine tensorrt"),
    ],
)
def test_an_engine_that_cannot_check_a_graph(engine: str, precision: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        graph_opener(engine, precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_bundle_of_low_precision(checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    labels = np.arange(24, dtype=np.int64) % 6
    request = PrecisionRequest(precision, calibration=DrawnDataset(labels))
    model = load_checkpoint(checkpoint)
    exported = export_bundle(model, [], tmp_path / "low.ltd", precision=request)
    bundle = open_bundle(tmp_path / "low.ltd")
    graph = bundle.manifest.graphs[0]
    assert graph.precision == precision
    assert graph.lowering == exported.lowered.entry if exported.lowered else False
    assert graph.golden_difference == exported.checks.reference_difference > 0
    with load(bundle.path, verify=True) as predictor:
        assert predictor.predict(np.asarray(pictures(1)[0])).best.prob > 0
    if precision == "bf16":
        with pytest.raises(EngineError, match="use --engine openvino"):
            open_engine(bundle, "onnxruntime")


def test_images_that_gated_a_bundle_are_known_again(checkpoint: Path, tmp_path: Path) -> None:
    labels = np.arange(24, dtype=np.int64) % 6
    request = PrecisionRequest("int8", DrawnDataset(labels), gate=DrawnDataset(labels), margin=50.0)
    export_bundle(load_checkpoint(checkpoint), [], tmp_path / "low.ltd", precision=request)
    hashes = open_bundle(tmp_path / "low.ltd").selection_hashes()
    assert set(hashes.tolist()) == set(fingerprints(pictures(24)).tolist())


def test_no_gate_where_the_engine_computes_something_else(checkpoint: Path, tmp_path: Path) -> None:
    labels = np.arange(24, dtype=np.int64) % 6
    request = PrecisionRequest("fp16", gate=DrawnDataset(labels), engine="onnxruntime")
    model = load_checkpoint(checkpoint)
    exported = export_bundle(model, [], tmp_path / "low.ltd", precision=request)
    assert exported.lowered is not None
    assert not exported.lowered.checked
    assert exported.lowered.entry.gate is None
    assert computes("openvino-cpu", "int8")


def test_openvino_is_not_needed_to_say_what_onnx_runtime_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise AssertionError("openvino was asked for")

    monkeypatch.setattr("ltdeploy.engines.choice.import_openvino", missing)
    with pytest.raises(AssertionError, match="asked for"):
        computes("openvino-cpu", "bf16")
    assert not computes("onnxruntime-cpu", "fp16")
