"""What every engine must hold, run over each of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ltdeploy.bundle import open_bundle, write_bundle
from ltdeploy.classes import ClassTable
from ltdeploy.engines import Engine, open_engine
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.engines.openvino_engine import OpenVinoEngine
from ltdeploy.engines.torch_reference import OnnxReference, TorchReference, reference_engine
from ltdeploy.errors import EngineError
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.options import LoadOptions

SIZE_PX = 32


def foreign(folder: Path) -> Path:
    """Write a small ONNX classifier of six classes and return its path."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 3)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w"], ["z"], name="head", transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "foreign",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, SIZE_PX, SIZE_PX])],
        [value("z", onnx.TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "foreign.onnx")
    return folder / "foreign.onnx"


def open_torch(bundle: Path, folder: Path) -> Engine:
    return reference_engine(load_checkpoint(bundle.parent / "ckpt.pt"))


def open_onnx(bundle: Path, folder: Path) -> Engine:
    options = LoadOptions(
        classes=ClassTable.from_counts([9, 8, 7, 6, 5, 4]),
        resize="none",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )
    return reference_engine(load_checkpoint(foreign(folder), options=options))


def open_runtime(bundle: Path, folder: Path) -> Engine:
    return open_engine(open_bundle(bundle), "onnxruntime")


def open_openvino(bundle: Path, folder: Path) -> Engine:
    return open_engine(open_bundle(bundle), "openvino")


OPENERS = {
    "torch": open_torch,
    "onnx": open_onnx,
    "onnxruntime": open_runtime,
    "openvino": open_openvino,
}


@pytest.fixture(params=OPENERS.values(), ids=OPENERS)
def engine(request: pytest.FixtureRequest, bundle_path: Path, tmp_path: Path) -> Engine:
    opener: Callable[[Path, Path], Engine] = request.param
    return opener(bundle_path, tmp_path)


def images(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, size=(count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def test_is_an_engine_and_says_what_it_takes(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    (entry,), (answer,) = engine.inputs, engine.outputs
    assert (entry.name, entry.dtype, entry.shape) == ("images", "uint8", (None, 32, 32, 3))
    assert (answer.name, answer.dtype, answer.shape) == ("logits", "float32", (None, 6))


def test_gives_float32_logits_for_any_batch(engine: Engine) -> None:
    for count in (1, 2, 7):
        logits = engine.run({"images": images(count)})["logits"]
        assert logits.shape == (count, 6)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()


def test_leaves_its_input_alone_and_repeats_itself(engine: Engine) -> None:
    batch = images(4)
    kept = batch.copy()
    first = engine.run({"images": batch})["logits"].copy()
    np.testing.assert_array_equal(batch, kept)
    np.testing.assert_array_equal(engine.run({"images": batch})["logits"], first)


def test_an_answer_is_the_caller_s(engine: Engine) -> None:
    first = engine.run({"images": images(4)})["logits"]
    kept = first.copy()
    for seed in (5, 6):
        engine.run({"images": images(4 + seed)[:4]})
    np.testing.assert_array_equal(first, kept)


def test_reads_pixels_however_they_lie(engine: Engine) -> None:
    mirrored = images(3)[:, :, ::-1]
    expected = engine.run({"images": mirrored.copy()})["logits"]
    frozen = mirrored.copy()
    frozen.flags.writeable = False
    for same in (mirrored, frozen):
        np.testing.assert_array_equal(engine.run({"images": same})["logits"], expected)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"images": np.zeros((1, 8, 8, 3), np.uint8)}, r"uint8 \(1, 8, 8, 3\)"),
        ({"images": np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)}, r"uint8 \(32, 32, 3\)"),
        ({"images": np.zeros((1, SIZE_PX, SIZE_PX, 3), np.float32)}, "images as float32"),
        ({}, r"given the inputs \[\]"),
        ({"pictures": np.zeros((1, SIZE_PX, SIZE_PX, 3), np.uint8)}, r"expected \['images'\]"),
    ],
    ids=["size", "rank", "dtype", "nothing", "name"],
)
def test_inputs_that_do_not_fit_are_refused(
    engine: Engine, feeds: dict[str, np.ndarray], said: str
) -> None:
    engine.run({"images": images(2)})  # what a runtime could run again where an input is missing
    with pytest.raises(EngineError, match=said):
        engine.run(feeds)


def test_threads_share_it(engine: Engine) -> None:
    batches = [images(count) for count in (1, 2, 3, 4)]
    expected = [engine.run({"images": batch})["logits"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda b: engine.run({"images": b})["logits"], batches * 5))
    for place, logits in enumerate(found):
        np.testing.assert_allclose(logits, expected[place % 4], rtol=1e-5, atol=1e-5)


def test_a_closed_engine_says_so(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"images": images(1)})


@pytest.mark.parametrize("opened", [OnnxRuntimeEngine, OpenVinoEngine])
def test_a_graph_that_is_no_graph(opened: type[OnnxRuntimeEngine | OpenVinoEngine]) -> None:
    with pytest.raises(EngineError, match="cannot load the exported graph"):
        opened(b"no graph")


def pairs_only() -> bytes:
    """Return a graph that loads, and then fails on batches longer than two; OpenVINO cuts them."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", "one", "end"], ["rest"]),
            helper.make_node("Add", ["x", "rest"], ["y"]),
        ],
        "pairs",
        [value("x", onnx.TensorProto.FLOAT, ["n"])],
        [value("y", onnx.TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.array([1]), "one"),
            numpy_helper.from_array(np.array([1 << 30]), "end"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.mark.parametrize("opened", [OnnxRuntimeEngine, OpenVinoEngine])
def test_a_batch_that_fails_is_named_and_the_next_one_runs(
    opened: type[OnnxRuntimeEngine | OpenVinoEngine],
) -> None:
    engine = opened(pairs_only(), threads=1)
    with pytest.raises(EngineError, match=rf"{engine.name} failed on the batch x \(3,\): "):
        engine.run({"x": np.ones(3, np.float32)})
    assert engine.run({"x": np.ones(2, np.float32)})["y"].tolist() == [2, 2]


@pytest.mark.parametrize("opened", [OnnxRuntimeEngine, OpenVinoEngine])
@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_that_are_none(
    opened: type[OnnxRuntimeEngine | OpenVinoEngine], threads: int
) -> None:
    with pytest.raises(EngineError, match=f"threads is {threads}; expected 1 to"):
        opened(b"", threads=threads)


def test_a_graph_that_is_not_what_the_manifest_says(bundle_path: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle_path)
    files = {name: (bundle_path / name).read_bytes() for name in opened.manifest.files}
    files["model.onnx"] = foreign(tmp_path).read_bytes()
    other = write_bundle(tmp_path / "other.ltd", opened.manifest, files)
    for engine in ("onnxruntime", "openvino", "auto"):
        with pytest.raises(EngineError, match="its manifest says"):
            open_engine(other, engine)


def test_references_are_what_they_are_called(bundle_path: Path, tmp_path: Path) -> None:
    assert isinstance(open_torch(bundle_path, tmp_path), TorchReference)
    assert isinstance(open_onnx(bundle_path, tmp_path), OnnxReference)


def test_telemetry_is_off_before_the_import(bundle_path: Path) -> None:
    script = (
        "import os, ltdeploy, sys; ltdeploy.load(sys.argv[1], engine='onnxruntime'); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", script, str(bundle_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "1"
