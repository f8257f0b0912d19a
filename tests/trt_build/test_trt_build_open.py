"""Opening a bundle with TensorRT: which plan is taken, when one is built, what is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trt_machine import Machine

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.engines.tensorrt_engine import TensorRtEngine, open_tensorrt
from ltdeploy.errors import EngineError

pytestmark = pytest.mark.trt_build

IMAGES = np.random.default_rng(0).integers(0, 256, size=(3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(bundle_path, tmp_path / "model.ltd")
    return open_bundle(tmp_path / "model.ltd")


def builds(machine: Machine) -> int:
    return machine.recorder.names().count("Builder.build_serialized_network")


def check(engine: TensorRtEngine, machine: Machine) -> None:
    np.testing.assert_array_equal(
        engine.run({"images": IMAGES})["logits"], machine.expected(IMAGES)
    )
    engine.close()


def test_a_plan_is_built_once_and_kept(machine: Machine, bundle: Bundle, tmp_path: Path) -> None:
    check(open_tensorrt(bundle), machine)
    (plan,) = (bundle.path / "engines").glob("*.plan")
    assert plan.read_bytes() == b"a plan"
    assert plan.name.startswith(f"tensorrt-{machine.trt.__version__}-sm90-b256-")
    assert list((tmp_path / "cache").glob("*.timing"))
    check(open_tensorrt(bundle, {"rebuild": "off"}), machine)
    assert builds(machine) == 1
    check(open_tensorrt(bundle, {"max_batch": "4"}), machine)
    assert builds(machine) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("gpu", r"is for NVIDIA Test 1 \(.* 9\.0\), and this is NVIDIA Test 2 \(.* 8\.6\)"),
        ("version", r"is for TensorRT \S+, and this is 11\.9\.0\.1"),
        ("onnx", "was built from another ONNX file"),
        ("plan", "was changed after it was built"),
        ("sidecar", "its sidecar cannot be read"),
        ("list", "was not built by this user here"),
    ],
)
def test_a_plan_that_does_not_fit_is_built_again_or_named(
    machine: Machine,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    text: str,
) -> None:
    check(open_tensorrt(bundle), machine)
    (plan,) = (bundle.path / "engines").glob("*.plan")
    if change == "gpu":
        machine.device.gpu = ("NVIDIA Test 2", 8, 6)
    elif change == "version":
        machine.trt.__version__ = "11.9.0.1"
    elif change == "onnx":
        files = bundle.manifest.files
        other = files["model.onnx"].model_copy(update={"sha256": "f" * 64})
        changed = bundle.manifest.model_copy(update={"files": files | {"model.onnx": other}})
        bundle = replace(bundle, manifest=changed)
    elif change == "plan":
        plan.write_bytes(b"another")
    elif change == "sidecar":
        plan.with_suffix(".json").write_text('{"schema": 1}')
    else:
        monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "another user's"))
    with pytest.raises(EngineError, match=text) as caught:
        open_tensorrt(bundle, {"rebuild": "off"})
    assert plan.name in str(caught.value)
    assert "rebuild on" in str(caught.value)
    if change == "list":
        check(open_tensorrt(bundle, {"rebuild": "off", "trust_plans": "on"}), machine)
    assert builds(machine) == 1
    check(open_tensorrt(bundle), machine)
    check(open_tensorrt(bundle, {"rebuild": "off"}), machine)
    assert builds(machine) == 2


def test_hardware_compatible_plans_run_on_other_gpus(machine: Machine, bundle: Bundle) -> None:
    for level, gpus in (
        ("ampere_plus", [("NVIDIA Test 2", 8, 6), ("NVIDIA Test 3", 12, 0)]),
        ("same_compute_capability", [("NVIDIA Test 2", 9, 0)]),
    ):
        machine.device.gpu = ("NVIDIA Test 1", 9, 0)
        options = {"hardware_compatible": level}
        check(open_tensorrt(bundle, options), machine)
        before = builds(machine)
        for gpu in gpus:
            machine.device.gpu = gpu
            check(open_tensorrt(bundle, options | {"rebuild": "off"}), machine)
        assert builds(machine) == before
        machine.device.gpu = ("NVIDIA Test 4", 7, 5)
        with pytest.raises(EngineError, match="NVIDIA Test 4"):
            open_tensorrt(bundle, options | {"rebuild": "off"})


def test_a_version_compatible_plan_needs_the_older_runtime(
    machine: Machine, bundle: Bundle, tmp_path: Path
) -> None:
    options = {"version_compatible": "on"}
    check(open_tensorrt(bundle, options), machine)
    machine.trt.__version__ = "11.9.0.1"
    with pytest.raises(EngineError, match=r"and this is 11\.9\.0\.1"):
        open_tensorrt(bundle, options | {"rebuild": "off"})
    lean = tmp_path / "libnvinfer_lean.so"
    with pytest.raises(EngineError, match="no lean runtime"):
        open_tensorrt(bundle, options | {"rebuild": "off", "lean_runtime": str(lean)})
    lean.touch()
    check(open_tensorrt(bundle, options | {"lean_runtime": str(lean)}), machine)
    assert builds(machine) == 1
    assert dict(machine.recorder.calls)["Runtime.load_runtime"] == {"path": str(lean)}


def test_a_plan_that_tensorrt_refuses_is_built_again(machine: Machine, bundle: Bundle) -> None:
    check(open_tensorrt(bundle), machine)
    answers = iter([None, machine.recorder.make("ICudaEngine")])
    machine.recorder.answers["Runtime.deserialize_cuda_engine"] = lambda *_: next(answers)
    check(open_tensorrt(bundle), machine)
    assert builds(machine) == 2
    machine.recorder.answers["Runtime.deserialize_cuda_engine"] = lambda *_: machine.say(
        "wrong magic"
    )
    with pytest.raises(EngineError, match="cannot load this plan: wrong magic"):
        open_tensorrt(bundle, {"rebuild": "off"})


def test_a_bundle_that_cannot_be_written_to_still_runs(machine: Machine, bundle: Bundle) -> None:
    (bundle.path / "engines").write_text("a file in its place")
    with pytest.warns(RuntimeWarning, match="could not be kept in .*engines"):
        engine = open_tensorrt(bundle)
    check(engine, machine)


def test_less_workspace_is_said(machine: Machine, bundle: Bundle) -> None:
    machine.out_of_memory_from = 1 << 30
    with pytest.warns(RuntimeWarning, match="workspace of 1024 MiB.*tensorrt:workspace_mib=256"):
        check(open_tensorrt(bundle), machine)


def test_another_fix_takes_the_place_of_a_build(machine: Machine, bundle: Bundle) -> None:
    engine = open_tensorrt(bundle, {"refit": "on", "cuda_graph": "on"})
    engine.run({"images": IMAGES})

    def refit(parser: object, model: bytes) -> bool:
        assert model == bundle.graph_path.read_bytes()
        machine.gain = 2.0
        return True

    machine.recorder.answers["OnnxParserRefitter.refit_from_bytes"] = refit
    engine.refit_head(bundle)
    order = machine.recorder.names()
    steps = ["Refitter", "OnnxParserRefitter", "OnnxParserRefitter.refit_from_bytes"]
    steps += ["Refitter.get_missing_weights", "Refitter.refit_cuda_engine"]
    assert [name for name in order if "efitter" in name] == steps
    assert machine.gain == 2.0
    check(engine, machine)
    assert machine.device.held == 0


def test_what_cannot_be_refitted_says_why(machine: Machine, bundle: Bundle) -> None:
    engine = open_tensorrt(bundle, {"refit": "on"})
    graph = bundle.manifest.graphs[0].model_copy(update={"nodes": 7})
    other = replace(bundle, manifest=bundle.manifest.model_copy(update={"graphs": (graph,)}))
    with pytest.raises(EngineError, match=r"another network .*7 nodes"):
        engine.refit_head(other)
    check_again = engine.run({"images": IMAGES})["logits"]
    np.testing.assert_array_equal(check_again, machine.expected(IMAGES))
    machine.recorder.answers["Refitter.get_missing_weights"] = ["head.weight"]
    with pytest.raises(EngineError, match=r"cannot refit.*no new weights for head\.weight"):
        engine.refit_head(bundle)
    with pytest.raises(EngineError, match=r"stopped at an error.*half-way"):
        engine.run({"images": IMAGES})
    machine.recorder.answers["ICudaEngine.refittable"] = False
    with pytest.raises(EngineError, match="open the bundle with tensorrt:refit=on"):
        open_tensorrt(bundle).refit_head(bundle)


def test_no_driver_or_no_such_device_is_said(machine: Machine, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="no CUDA device 3; expected 0 to 0"):
        open_tensorrt(bundle, {"device": "3"})
    machine.device.fails["cudaGetDeviceCount"] = (0, "cudaErrorInsufficientDriver")
    with pytest.raises(
        EngineError, match="CUDA finds none here: CUDA driver version is insufficient"
    ):
        open_tensorrt(bundle)
