"""Which kept plan is opened, with TensorRT and CUDA taken out; tests/trt_build has their API."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.engines import open_engine, tensorrt_engine
from ltdeploy.engines import tensorrt_library as library
from ltdeploy.engines.tensorrt_engine import TensorRtEngine, _network_of, open_tensorrt
from ltdeploy.engines.tensorrt_files import PlanFiles, PlanRecord
from ltdeploy.errors import EngineError
from ltdeploy.manifest import LoweringEntry

GPU = library.Gpu("NVIDIA L4", "8.9")


class Opened:
    """In the engine's place: keeps what it was opened with."""

    name = "tensorrt"

    def __init__(self, plan: bytes, options: Any, max_batch: int, manifest: Any, **_: Any) -> None:
        graph = manifest.graphs[0]
        self.plan, self.max_batch = plan, max_batch
        self.inputs, self.outputs = (
            tuple(
                SimpleNamespace(
                    name=t.name,
                    dtype=t.dtype,
                    shape=tuple(None if isinstance(axis, str) else axis for axis in t.shape),
                )
                for t in tensors
            )
            for tensors in (graph.inputs, graph.outputs)
        )


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return a bundle on a machine with an L4, as far as can be told."""
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "import_tensorrt", lambda: SimpleNamespace(__version__="11.4.0"))
    monkeypatch.setattr(library, "find_gpu", lambda device: GPU)
    monkeypatch.setattr(tensorrt_engine, "TensorRtEngine", Opened)
    monkeypatch.setattr("ltdeploy.engines.choice.nvidia_devices", lambda: ("NVIDIA L4",))
    monkeypatch.setattr("ltdeploy.engines.choice._missing", lambda module, extra: None)
    shutil.copytree(bundle_path, tmp_path / "model.ltd")
    return open_bundle(tmp_path / "model.ltd")


def keep(bundle: Bundle, plan: bytes, **changed: Any) -> Path:
    """Put a plan into the bundle as a build does."""
    values = {"opt_batch": 64, "max_batch": 64, "refit": False, "gpu": GPU.name} | changed
    record = PlanRecord(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        onnx_sha256=bundle.manifest.files["model.onnx"].sha256,
        precision="fp32",
        compute_capability="8.9",
        tensorrt="11.4.0",
        workspace_bytes=0,
        version_compatible=False,
        hardware_compatible="none",
        **values,
    )
    return PlanFiles(bundle.path / "engines").save(plan, record)


def test_auto_takes_a_plan_of_any_profile(bundle: Bundle) -> None:
    keep(bundle, b"b64", refit=True)
    engine: Any = open_engine(bundle, "auto")
    assert (engine.name, engine.plan, engine.max_batch) == ("tensorrt", b"b64", 64)


def test_what_was_asked_for_must_fit_all_the_same(bundle: Bundle) -> None:
    keep(bundle, b"b64")
    off = {"rebuild": "off"}
    with pytest.raises(EngineError, match="it has max_batch=64, not 8"):
        open_tensorrt(bundle, off | {"max_batch": "8"})
    with pytest.raises(EngineError, match="it has refit=False, not True"):
        open_tensorrt(bundle, off | {"refit": "on"})
    engine: Any = open_tensorrt(bundle, off | {"max_batch": "64"})
    assert engine.plan == b"b64"


def test_the_best_of_several_is_taken(bundle: Bundle) -> None:
    keep(bundle, b"b1", opt_batch=1, max_batch=1)
    keep(bundle, b"b8", opt_batch=8, max_batch=8)
    engine: Any = open_engine(bundle, "auto")
    assert engine.plan == b"b8"
    keep(bundle, b"default", opt_batch=256, max_batch=256)
    keep(bundle, b"larger", opt_batch=512, max_batch=512)
    engine = open_engine(bundle, "auto")
    assert (engine.plan, engine.max_batch) == (b"default", 256)


def test_plans_of_two_gpus_and_two_tunings_stand_side_by_side(bundle: Bundle) -> None:
    paths = {
        keep(bundle, b"a"),
        keep(bundle, b"b", gpu="NVIDIA RTX 4090"),
        keep(bundle, b"c", opt_batch=1),
    }
    assert len(paths) == 3
    assert keep(bundle, b"d") in paths  # the same again takes its place


def test_refitting_is_on_the_engine_s_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(library, "cuda", lambda *told, during: calls.append(told))
    engine = TensorRtEngine.__new__(TensorRtEngine)
    engine._engine, engine._stopped = SimpleNamespace(refittable=True), None
    engine._options = SimpleNamespace(device=3, contexts=0)
    engine._network = _network_of(bundle.manifest)
    with pytest.raises(AttributeError):  # what follows needs TensorRT
        engine.refit_head(bundle)
    assert calls == [("cudaSetDevice", 3)]


def test_restored_layers_make_another_network(bundle: Bundle) -> None:
    def lowered(*restored: str) -> str:
        entry = LoweringEntry(restored=restored, low_share=0.5, calibration=None, gate=None)
        graph = bundle.manifest.graphs[0].model_copy(update={"lowering": entry})
        return _network_of(bundle.manifest.model_copy(update={"graphs": (graph,)}))

    assert len({lowered(), lowered("conv1"), lowered("conv1", "conv2")}) == 3
    assert lowered() == _network_of(bundle.manifest)
