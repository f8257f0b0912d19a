"""ONNX Runtime's GPU providers, as far as a machine without a GPU tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.engines import TensorSpec, onnxruntime_gpu, open_engine
from ltdeploy.engines.cuda_graphs import GraphReplay
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime, open_session
from ltdeploy.engines.onnxruntime_gpu import CUDA, TENSORRT, misplaced_nodes, split
from ltdeploy.errors import EngineError

CPU = "CPUExecutionProvider"


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return open_bundle(bundle_path)


def cpu_session(bundle: Bundle) -> Any:
    """Return a session that records where its nodes are."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.intra_op_num_threads = 1
    return open_session(runtime, bundle.graph_path, options, CPU)


def without_cuda() -> bool:
    return CUDA not in import_onnxruntime().get_available_providers()


@pytest.mark.skipif(not without_cuda(), reason="this onnxruntime has a CUDA provider")
@pytest.mark.parametrize(
    ("engine", "provider"), [("onnxruntime-cuda", CUDA), ("onnxruntime-tensorrt", TENSORRT)]
)
def test_the_cpu_package_is_never_a_gpu_engine(
    bundle: Bundle, engine: str, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match=rf"has no {provider}.*pip install 'ltdeploy\[gpu\]'"):
        open_engine(bundle, engine)


def test_both_packages_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.31.0.dist-info"
        folder.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.0\n"
        (folder / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match="pip uninstall -y onnxruntime onnxruntime-gpu &&"):
        onnxruntime_gpu.require_provider(CUDA)


def test_a_library_that_does_not_load_says_so_in_the_loader_s_words(tmp_path: Path) -> None:
    said = onnxruntime_gpu._load_error(tmp_path, CUDA)
    assert said is not None
    assert "libonnxruntime_providers_shared.so: cannot open shared object file" in said


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("libcuda.so.1: cannot open shared object file", "NVIDIA driver"),
        ("libnvinfer.so.10: cannot open shared object file", "TensorRT 10, not 11"),
        ("libcublasLt.so.13: cannot open shared object file", r"ltdeploy\[gpu\]"),
    ],
)
def test_what_to_do_about_it(reason: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_gpu, "_load_error", lambda folder, provider: reason)
    with pytest.raises(EngineError, match=advice):
        onnxruntime_gpu.require_provider(CPU)


def test_nodes_elsewhere_are_named(bundle: Bundle) -> None:
    session = cpu_session(bundle)
    assert misplaced_nodes(session, CPU, bundle.graph_path) == []
    elsewhere = misplaced_nodes(session, CUDA, bundle.graph_path)
    assert any("(Conv) on CPUExecutionProvider" in node for node in elsewhere)


def test_only_shapes_may_be_computed_elsewhere() -> None:
    """The same operators, once on the sizes of the input and once on what is in it."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        shapes (float[N, 4] x) => (float[M] y) {
            [size] s = Shape(x)
            [first] zero = Constant<value = int64[1] {0}>()
            [rows] n = Gather(s, zero)
            [all] m = Mul(n, n)
            [flat] flat = Reshape(x, m)
            [square] y = Mul(flat, flat)
        }
    """
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(text).SerializeToString()
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = open_session(runtime, model, options, CPU)
    assert sorted(misplaced_nodes(session, CUDA, model)) == [
        f"flat (Reshape) on {CPU}",
        f"square (Mul) on {CPU}",
    ]


def test_a_cache_that_cannot_be_written_is_said_and_done_without(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "file"))
    calls = recorded(monkeypatch)
    with pytest.warns(RuntimeWarning, match="cannot be kept in .*Set LTDEPLOY_CACHE"):
        onnxruntime_gpu.open_tensorrt_provider(bundle)
    ((_, _, settings, _),) = calls
    assert not any("cache" in name for name in settings)


def test_another_provider_than_asked_for_is_an_error(bundle: Bundle) -> None:
    runtime = import_onnxruntime()
    # ONNX Runtime leaves out a provider that it was not built with, and says so in a warning.
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(EngineError, match=f"was asked for {CUDA} and took {CPU}"),
    ):
        open_session(runtime, bundle.graph_path, runtime.SessionOptions(), CUDA)


def recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[Path, str, Mapping[str, str], dict[str, Any]]]:
    calls = []

    def record(model: Path, provider: str, settings: Mapping[str, str], **more: Any) -> None:
        calls.append((model, provider, settings, more))

    monkeypatch.setattr(onnxruntime_gpu, "OnnxRuntimeGpuEngine", record)
    return calls


def test_options_reach_the_cuda_provider(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    onnxruntime_gpu.open_cuda(bundle)
    onnxruntime_gpu.open_cuda(bundle, device=1, graphs=True)
    (_, provider, plain, _), (_, _, chosen, more) = calls
    assert provider == CUDA
    assert plain == {"device_id": "0", "use_tf32": "0"}
    assert chosen == {"device_id": "1", "use_tf32": "0", "enable_cuda_graph": "1"}
    assert more == {"graphs": True}


def test_options_reach_the_tensorrt_provider(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path))
    calls = recorded(monkeypatch)
    onnxruntime_gpu.open_tensorrt_provider(bundle, cache=False)
    assert not list(tmp_path.iterdir())
    onnxruntime_gpu.open_tensorrt_provider(bundle, device=2)
    (_, provider, plain, more), (_, _, cached, _) = calls
    assert provider == TENSORRT
    assert plain == {
        "device_id": "0",
        "trt_profile_min_shapes": "images:1x32x32x3",
        "trt_profile_opt_shapes": "images:16x32x32x3",
        "trt_profile_max_shapes": "images:64x32x32x3",
    }
    assert more == {"most": 64}
    folder = Path(cached["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path)
    assert not folder.is_relative_to(bundle.path)
    assert cached["device_id"] == "2"


def test_large_batches_are_split_and_none_is_lost() -> None:
    inputs = (TensorSpec("images", "uint8", (None, 2)), TensorSpec("log_prior", "float32", (3,)))
    feeds = {"images": np.arange(14).reshape(7, 2), "log_prior": np.zeros(3)}
    parts = list(split(feeds, inputs, 3))
    assert [len(part["images"]) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([p["images"] for p in parts]), feeds["images"])
    assert all(len(part["log_prior"]) == 3 for part in parts)
    assert len(list(split(feeds, inputs, None))) == 1
    assert len(list(split({**feeds, "images": feeds["images"][:0]}, inputs, 3))) == 1


def test_bound_buffers_answer_as_an_ordinary_run(bundle: Bundle) -> None:
    """The binding itself, on the CPU; capturing needs a GPU."""
    engine = OnnxRuntimeEngine(bundle.graph_path, threads=1)
    session = cpu_session(bundle)
    replay = GraphReplay(import_onnxruntime(), session, engine.inputs, engine.outputs, ("cpu", 0))
    rng = np.random.default_rng(0)
    kept = []
    for count in (1, 3, 1, *range(2, 12)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        expected = engine.run({"images": images})["logits"]
        kept.append((replay.run({"images": images})["logits"], expected))
    for logits, expected in kept:  # compared last: no run may write into an earlier answer
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
