"""How TensorRT is called to build and to run, against the signatures of both majors' bindings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from trt_machine import Machine

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.engines import Engine
from ltdeploy.engines.tensorrt_build import BuildOptions, build_plan
from ltdeploy.engines.tensorrt_engine import TensorRtEngine
from ltdeploy.engines.tensorrt_options import TensorRtOptions
from ltdeploy.errors import EngineError

pytestmark = pytest.mark.trt_build

OPTIONS = BuildOptions(opt_batch=4, max_batch=8)


def images(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def bundle(bundle_path: object) -> Bundle:
    return open_bundle(str(bundle_path))


def opened(bundle: Bundle, **options: object) -> TensorRtEngine:
    told = TensorRtOptions(**options)  # type: ignore[arg-type]
    return TensorRtEngine(b"a plan", told, told.max_batch or 8, bundle.manifest)


def test_a_build_is_strongly_typed_without_tf32_and_profiled(machine: Machine) -> None:
    trt = machine.trt
    built = build_plan(b"model", OPTIONS)
    assert (built.plan, built.timing_cache, built.workspace_bytes) == (
        b"a plan",
        b"timings",
        1 << 30,
    )
    told = dict(machine.recorder.calls)
    assert told["Builder.create_network"] == {
        "flags": 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    }
    assert told["IBuilderConfig.clear_flag"] == {"flag": trt.BuilderFlag.TF32}
    assert "IBuilderConfig.set_flag" not in told
    sizes = [(1, 32, 32, 3), (4, 32, 32, 3), (8, 32, 32, 3)]
    assert list(told["IOptimizationProfile.set_shape"].values()) == ["images", *sizes]
    order = machine.recorder.names()
    steps = [
        "OnnxParser.parse",
        "IBuilderConfig.add_optimization_profile",
        "IBuilderConfig.set_timing_cache",
        "Builder.build_serialized_network",
        "IBuilderConfig.get_timing_cache",
    ]
    assert sorted(steps, key=order.index) == steps


def test_options_become_flags(machine: Machine) -> None:
    flags = machine.trt.BuilderFlag
    build_plan(
        b"model",
        BuildOptions(4, 8, version_compatible=True, hardware_compatible="same_compute_capability"),
    )
    build_plan(b"model", BuildOptions(4, 8, refit=True))
    calls = machine.recorder.calls
    set_flags = [told["flag"] for name, told in calls if name == "IBuilderConfig.set_flag"]
    assert set_flags == [flags.VERSION_COMPATIBLE, flags.EXCLUDE_LEAN_RUNTIME, flags.REFIT]
    levels = machine.trt.HardwareCompatibilityLevel
    assert (
        "IBuilderConfig.hardware_compatibility_level=",
        {"value": levels.SAME_COMPUTE_CAPABILITY},
    ) in calls


def test_less_workspace_is_tried_and_named(machine: Machine) -> None:
    machine.out_of_memory_from = 100 << 20
    built = build_plan(b"model", OPTIONS)
    assert built.tried_bytes == (1 << 30, 1 << 28)
    assert built.workspace_bytes == 1 << 26
    machine.out_of_memory_from = 0
    with pytest.raises(EngineError, match=r"tried workspaces of 1024 MiB, 256 MiB, 64 MiB, 16 MiB"):
        build_plan(b"model", OPTIONS)


def test_what_is_no_lack_of_memory_is_not_tried_again(machine: Machine) -> None:
    machine.recorder.answers["Builder.build_serialized_network"] = lambda *_: machine.say(
        "no tactic"
    )
    with pytest.raises(EngineError, match="cannot build an engine of this graph: no tactic"):
        build_plan(b"model", OPTIONS)
    assert machine.recorder.names().count("Builder.build_serialized_network") == 1


def test_a_version_that_loses_biases_builds_no_refittable_plan(machine: Machine) -> None:
    machine.trt.__version__ = "11.3.0.99"
    with pytest.raises(EngineError, match=r"11\.3\.0\.99 can lose the head's bias"):
        build_plan(b"model", BuildOptions(4, 8, refit=True))


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_batches_of_any_size_are_answered_in_order(
    machine: Machine, bundle: Bundle, cuda_graph: bool
) -> None:
    engine = opened(bundle, max_batch=8, cuda_graph=cuda_graph)
    assert isinstance(engine, Engine)
    assert [(s.name, s.dtype, s.shape) for s in (*engine.inputs, *engine.outputs)] == [
        ("images", "uint8", (None, 32, 32, 3)),
        ("logits", "float32", (None, 6)),
    ]
    for count in (3, 8, 3, 0, 1, 20, 3, 7, 6, 5, 4, 2, 8, 16, 8):
        batch = images(count)
        logits = engine.run({"images": batch})["logits"]
        np.testing.assert_array_equal(logits, machine.expected(batch))
        assert logits.dtype == np.float32
    captured = machine.device.calls.count("cudaGraphInstantiate")
    assert captured == (8 if cuda_graph else 0)
    executed = machine.recorder.names().count("IExecutionContext.execute_async_v3")
    assert executed == (16 if cuda_graph else 17)
    engine.close()
    assert machine.device.held == 0


def test_more_sizes_than_graphs_are_kept_run_without(machine: Machine, bundle: Bundle) -> None:
    engine = opened(bundle, max_batch=12, cuda_graph=True)
    for count in (*range(1, 13), 12, 12):
        batch = images(count)
        np.testing.assert_array_equal(
            engine.run({"images": batch})["logits"], machine.expected(batch)
        )
    assert machine.device.calls.count("cudaGraphInstantiate") == 8


def test_the_order_of_one_run(machine: Machine, bundle: Bundle) -> None:
    engine = opened(bundle)
    names = machine.recorder.names()
    allowed = names.index("Runtime.engine_host_code_allowed=")
    assert machine.recorder.calls[allowed][1] == {"value": False}
    assert allowed < names.index("Runtime.deserialize_cuda_engine")
    made = names[names.index("ICudaEngine.create_execution_context") :]
    assert made == [
        "ICudaEngine.create_execution_context",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.set_tensor_address",
    ]
    machine.recorder.calls.clear()
    machine.device.calls.clear()
    engine.run({"images": images(2)})
    assert machine.recorder.calls[0] == (
        "IExecutionContext.set_input_shape",
        {"name": "images", "shape": (2, 32, 32, 3)},
    )
    assert machine.recorder.names()[1:] == ["IExecutionContext.execute_async_v3"]
    copies = ["cudaMemcpyAsync", "cudaMemcpyAsync"]
    assert machine.device.calls == ["cudaSetDevice", *copies, "cudaStreamSynchronize"]


def test_threads_share_the_contexts(machine: Machine, bundle: Bundle) -> None:
    engine = opened(bundle, contexts=3)
    batches = [images(1 + place % 9) for place in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: engine.run({"images": batch})["logits"], batches))
    for batch, logits in zip(batches, found, strict=True):
        np.testing.assert_array_equal(logits, machine.expected(batch))
    assert 1 <= machine.device.calls.count("cudaStreamCreate") <= 3
    engine.close()
    engine.close()
    assert machine.device.held == 0
    with pytest.raises(EngineError, match="closed"):
        engine.run({"images": images(1)})


def test_cuda_lost_in_the_middle_names_call_and_batch(machine: Machine, bundle: Bundle) -> None:
    engine = opened(bundle, max_batch=8)
    machine.device.fails["cudaStreamSynchronize"] = (1, "cudaErrorIllegalAddress")
    with pytest.raises(
        EngineError,
        match=r"cudaStreamSynchronize while running a batch of 4: cudaErrorIllegalAddress .*"
        r"answered before it is right.*\(rows 8 to 11 of 12\)",
    ):
        engine.run({"images": images(12)})
    with pytest.raises(EngineError, match=r"stopped at an error.*cudaErrorIllegalAddress"):
        engine.run({"images": images(1)})
    engine.close()


def test_a_refused_call_is_named_with_tensorrts_reason(machine: Machine, bundle: Bundle) -> None:
    engine = opened(bundle)
    machine.recorder.answers["IExecutionContext.execute_async_v3"] = lambda *_: bool(
        machine.say("myelin: no")
    )
    with pytest.raises(
        EngineError, match="refused execute_async_v3 while running a batch of 2: myelin: no"
    ):
        engine.run({"images": images(2)})


def test_too_little_memory_leaves_nothing_behind(machine: Machine, bundle: Bundle) -> None:
    machine.device.fails["cudaMallocHost"] = (1, "cudaErrorMemoryAllocation")
    with pytest.raises(EngineError, match=r"cudaMallocHost .*batches of 8.*max_batch or contexts"):
        opened(bundle)
    assert machine.device.held == 0


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, r"\(2, 8, 8, 3\); expected uint8"),
        ({"images": np.zeros((2, 32, 32, 3), np.float32)}, "images as float32"),
        (
            {"pictures": np.zeros((2, 32, 32, 3), np.uint8)},
            "the inputs .'pictures'.; expected .'images'.",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_and_the_engine_goes_on(
    machine: Machine, bundle: Bundle, feeds: dict[str, np.ndarray], text: str
) -> None:
    engine = opened(bundle)
    with pytest.raises(EngineError, match=text):
        engine.run(feeds)
    assert engine.run({"images": images(1)})["logits"].shape == (1, 6)


def test_the_recorder_refuses_what_the_bindings_have_not(machine: Machine) -> None:
    trt = machine.trt
    builder = trt.Builder(trt.ILogger())
    config = builder.create_builder_config()
    with pytest.raises(TypeError, match="create_network"):
        builder.create_network(flag=1)
    with pytest.raises(TypeError, match="set_flag"):
        config.set_flag(1)
    with pytest.raises(TypeError, match="parse"):
        trt.OnnxParser(builder.create_network(), trt.ILogger()).parse("model.onnx")
    with pytest.raises(AttributeError, match="build_cuda_engine"):
        builder.build_cuda_engine  # noqa: B018
    with pytest.raises(AttributeError, match="max_workspace_size cannot be set"):
        config.max_workspace_size = 1
    assert hasattr(trt.BuilderFlag, "FP16") == trt.__version__.startswith("10.")
    with pytest.raises(TypeError, match="missing a required argument"):
        machine.device.cudaMemcpyAsync(1, 2, 3)


def test_who_does_not_wait_reads_nothing_new(machine: Machine, bundle: Bundle) -> None:
    engine = opened(bundle)
    machine.device._cudaStreamSynchronize = lambda stream: None
    batch = images(2)
    assert not np.array_equal(engine.run({"images": batch})["logits"], machine.expected(batch))
