"""OpenVINO: the graph's own precision, and nothing sent anywhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ltdeploy.engines.openvino_engine import OpenVinoEngine, import_openvino
from ltdeploy.errors import EngineError

WIDTH, CLASSES = 64, 10


def two_layers(body: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Return a graph whose first layer is of dtype ``body`` and whose head float32, and weights."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8
    head = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32) / 8
    low = body == TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=body),
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Cast", ["r"], ["features"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["features", "head"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "two layers",
        [value("pixels", TensorProto.FLOAT, ["n", WIDTH])],
        [value("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [
            numpy_helper.from_array(first.astype(ml_dtypes.bfloat16) if low else first, "first"),
            numpy_helper.from_array(head, "head"),
        ],
    )
    opset = [helper.make_opsetid("", 22)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(), first, head


def answers(body: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the engine's logits of a graph and float64's."""
    model, first, head = two_layers(body)
    pixels = np.random.default_rng(1).normal(size=(32, WIDTH)).astype(np.float32)
    exact = np.maximum(pixels.astype(np.float64) @ first, 0) @ head
    engine = OpenVinoEngine(model, threads=1)
    logits = engine.run({"pixels": pixels})["logits"]
    engine.close()
    return logits, exact


def has_bfloat16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_a_float32_graph_is_computed_in_float32() -> None:
    logits, exact = answers(TensorProto.FLOAT)
    assert np.abs(logits - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
def test_left_alone_it_would_not_be() -> None:
    openvino = import_openvino()
    model, _, _ = two_layers(TensorProto.FLOAT)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU")
    pixels = np.random.default_rng(1).normal(size=(32, WIDTH)).astype(np.float32)
    _, exact = answers(TensorProto.FLOAT)
    assert np.abs(compiled(pixels)[0] - exact).max() > 1e-4 * np.abs(exact).max()


def test_a_bfloat16_graph_is_computed_in_bfloat16_and_its_head_in_float32() -> None:
    logits, exact = answers(TensorProto.BFLOAT16)
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 2**-11 < error < 2**-6  # bfloat16 has 8 bits
    rounded = logits.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (rounded != logits).mean() > 0.9


def test_the_throughput_hint_answers_the_same() -> None:
    model, _, _ = two_layers(TensorProto.FLOAT)
    pixels = np.random.default_rng(2).normal(size=(9, WIDTH)).astype(np.float32)
    first, second = (
        OpenVinoEngine(model, hint=hint).run({"pixels": pixels})["logits"]
        for hint in ("latency", "throughput")
    )
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_closing_waits_for_nobody_and_breaks_nothing() -> None:
    model, _, _ = two_layers(TensorProto.FLOAT)
    engine = OpenVinoEngine(model, threads=1)
    pixels = np.zeros((64, WIDTH), np.float32)
    ends: list[str] = []

    def work() -> None:
        try:
            for _ in range(10_000):
                engine.run({"pixels": pixels})
        except EngineError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine.close()
    for thread in threads:
        thread.join()
    assert ends == ["openvino-cpu was closed; load the bundle again."] * 3


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"OpenVINO 20.* cannot load .*gone\.onnx"):
        OpenVinoEngine(tmp_path / "gone.onnx")


# Says that a socket was asked for, and stops before it is; also in a process forked to do it.
WATCH = """
import os, sys, time
def watch(event, arguments):
    if event.startswith("socket."):
        os.write(1, b"a socket")
        os._exit(9)
sys.addaudithook(watch)
"""
OURS = "from ltdeploy.engines.openvino_engine import import_openvino; import_openvino()\n"
THEIRS = "import openvino\n"


@pytest.mark.parametrize(
    ("load", "said"), [(OURS, b""), (THEIRS, b"a socket")], ids=["ours", "theirs"]
)
def test_the_import_is_reported_to_nobody(load: str, said: bytes, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + load + "time.sleep(1)"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (said, b"")
    # Their telemetry also leaves an identifier in the user's home.
    assert bool(list(tmp_path.rglob("*"))) == bool(said)
