"""What ``auto`` takes, and that it says why it took nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.engines import ENGINES, open_engine
from ltdeploy.engines.choice import AUTO_ORDER, candidates
from ltdeploy.engines.diagnosis import diagnose_engines
from ltdeploy.errors import EngineError, MissingExtraError


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return open_bundle(bundle_path)


def as_bfloat16(bundle: Bundle) -> Bundle:
    """Return the bundle as if its graph were in bfloat16."""
    graph = bundle.manifest.graphs[0].model_copy(update={"precision": "bf16"})
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"graphs": (graph,)}))


def against(precision: str, plans: Path | None = None) -> dict[str, str | None]:
    return {c.name: c.against for c in candidates(precision, plans)}


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_only_engines_are_tried() -> None:
    assert set(AUTO_ORDER) < set(ENGINES)


def test_auto_says_what_it_took(bundle: Bundle) -> None:
    with pytest.MonkeyPatch.context() as patch:
        hide(patch, "tensorrt")
        engine = open_engine(bundle, "auto:threads=1")
    assert engine.name in ("onnxruntime-cuda", "openvino-cpu")
    engine.run({"images": np.zeros((1, 32, 32, 3), np.uint8)})
    engine.close()


def test_without_openvino_it_is_onnx_runtime(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "openvino", "tensorrt")
    monkeypatch.setattr("ltdeploy.engines.choice.nvidia_devices", _no_device)
    assert open_engine(bundle).name == "onnxruntime-cpu"
    reasons = against("fp32")
    assert reasons["onnxruntime"] is None
    assert reasons["openvino"] == "openvino is not installed: pip install 'ltdeploy[openvino]'"
    assert reasons["onnxruntime-cuda"] == "No NVIDIA driver."


def _no_device() -> tuple[str, ...]:
    raise EngineError("No NVIDIA driver.")


def test_bfloat16_is_not_for_onnx_runtime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    low = as_bfloat16(bundle)
    for precision in ("fp32", "fp16", "int8"):
        assert against(precision)["onnxruntime"] is None
    with pytest.raises(EngineError, match="no bfloat16 arithmetic: use --engine openvino"):
        open_engine(low, "onnxruntime")
    hide(monkeypatch, "openvino", "tensorrt")
    monkeypatch.setattr("ltdeploy.engines.choice.nvidia_devices", _no_device)
    with pytest.raises(
        EngineError, match=r"(?s)No engine .* \(bf16\).*openvino is not .*no bfloat"
    ):
        open_engine(low)


def test_nothing_installed_names_every_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "openvino", "onnxruntime", "tensorrt")
    with pytest.raises(MissingExtraError) as caught:
        open_engine(bundle)
    for extra in ("openvino", "cpu"):
        assert f"pip install 'ltdeploy[{extra}]'" in str(caught.value)


def test_an_engine_asked_for_is_never_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "openvino")
    with pytest.raises(MissingExtraError, match=r"ltdeploy\[openvino\]"):
        open_engine(bundle, "openvino")


def test_a_plan_is_taken_and_never_built_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltdeploy.engines.choice.nvidia_devices", lambda: ("a GPU",))
    monkeypatch.setattr("ltdeploy.engines.choice._missing", lambda module, extra: None)
    assert "holds no TensorRT plan" in str(against("fp32", tmp_path)["tensorrt"])
    (tmp_path / "a.plan").write_bytes(b"")
    assert against("fp32", tmp_path)["tensorrt"] is None


@pytest.mark.parametrize("engine", ["tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_without_a_driver_that_is_said_before_the_package(
    bundle: Bundle, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_bindings", "onnxruntime")
    monkeypatch.setattr("ltdeploy.engines.diagnosis.nvidia_devices", _no_device)
    monkeypatch.setattr("ltdeploy.engines.tensorrt_doctor._driver", _no_device)
    with pytest.raises(MissingExtraError) as caught:
        open_engine(bundle, engine)
    extra = "tensorrt" if engine == "tensorrt" else "gpu"
    assert str(caught.value).startswith("No NVIDIA driver. ")
    assert f"pip install 'ltdeploy[{extra}]'" in str(caught.value)
    assert diagnose_engines()[engine]["detail"] == str(caught.value)


def test_a_wrong_option_is_said_and_no_driver(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltdeploy.engines.tensorrt_doctor._driver", _no_device)
    with pytest.raises(EngineError, match=r"max_batc") as caught:
        open_engine(bundle, "tensorrt:max_batc=3")
    assert "driver" not in str(caught.value)
