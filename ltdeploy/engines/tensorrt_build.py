"""An ONNX graph to a TensorRT plan: parse, profile, build.

The graph alone decides the precision of every layer: networks are strongly typed, which TensorRT
10 is told and TensorRT 11 always is, and TF32 is off.

Tested with the ONNX parser and the builder of TensorRT-RTX 1.7 behind the bindings of TensorRT
11.4, on a machine without a GPU (tests/trt_build). The builder of the datacentre's TensorRT is
another one: it times kernels on the GPU, and may refuse or choose otherwise. Untested here: the
timing cache's use, the retries with less workspace, and everything that a GPU does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import EngineError
from . import tensorrt_library as library

__all__ = ["BuildOptions", "Built", "build_plan"]

_LEAST_WORKSPACE_BYTES = 16 << 20
_SHRINK = 4
_MEMORY_WORDS = ("out of memory", "outofmemory", "insufficient memory", "insufficient workspace")
_REFIT_BROKEN = (11, 3)  # NVIDIA's release notes: a Gemm's bias can be lost in a refittable plan


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is built; see :class:`~ltdeploy.engines.tensorrt_options.TensorRtOptions`."""

    opt_batch: int
    max_batch: int
    workspace_bytes: int | None = None
    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: str = "none"


@dataclass(frozen=True)
class Built:
    """A plan and what came with it.

    Attributes
    ----------
    plan : the serialised engine.
    workspace_bytes : the scratch memory it was built with.
    tried_bytes : larger ones that did not suffice, in the order tried.
    timing_cache : the builder's measurements, for the next build.
    layers : of the parsed network, before the builder fuses them.
    """

    plan: bytes
    workspace_bytes: int
    tried_bytes: tuple[int, ...]
    timing_cache: bytes
    layers: int


def build_plan(model: bytes, options: BuildOptions, timing_cache: bytes = b"") -> Built:
    """Return the plan of a serialised ONNX model for any batch from 1 to ``options.max_batch``.

    Parameters
    ----------
    model : a self-contained ONNX file's content.
    timing_cache : what an earlier build gave; one of another GPU or version is ignored.

    Raises
    ------
    EngineError
        If the parser refuses a node (named), the builder fails, or memory does not suffice with
        any workspace (those tried are named).
    """
    trt = library.import_tensorrt()
    version = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if options.refit and version == _REFIT_BROKEN:
        raise EngineError(
            f"TensorRT {trt.__version__} can lose the head's bias in a plan built for refitting "
            "(NVIDIA's release notes, known issues). Use another version, or leave refit off."
        )
    log = library.logger()
    log.take_errors()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, model)
    config = _configured(trt, builder, network, options)
    _give_timing_cache(config, timing_cache)

    pool = trt.MemoryPoolType.WORKSPACE
    workspace = options.workspace_bytes or int(config.get_memory_pool_limit(pool))
    tried: list[int] = []
    log.take_errors()
    while True:
        config.set_memory_pool_limit(pool, workspace)
        plan = builder.build_serialized_network(network, config)
        errors = log.take_errors()
        if plan is not None:
            break
        tried.append(workspace)
        if not _is_memory(errors):
            raise EngineError(
                f"TensorRT {trt.__version__} cannot build an engine of this graph: "
                f"{_last(errors)}. Run the bundle with onnxruntime-cuda instead."
            )
        workspace //= _SHRINK
        if workspace < _LEAST_WORKSPACE_BYTES:
            raise EngineError(
                f"The GPU's memory does not suffice to build this engine; tried workspaces of "
                f"{', '.join(f'{size >> 20} MiB' for size in tried)}: {_last(errors)}. Free GPU "
                f"memory, or build with tensorrt:max_batch below {options.max_batch}."
            )
    measured = config.get_timing_cache()
    timing = b"" if measured is None else bytes(measured.serialize())
    return Built(bytes(plan), workspace, tuple(tried), timing, int(network.num_layers))


def _parse(trt: Any, network: Any, model: bytes) -> None:
    parser = trt.OnnxParser(network, library.logger())
    if parser.parse(model):
        return
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    reasons = [
        f"node {error.node_name() or '(unnamed)'!r} ({error.node_operator() or 'no operator'}): "
        f"{error.desc().strip().splitlines()[0]}"
        for error in errors
    ]
    raise EngineError(
        f"TensorRT {trt.__version__} does not read this graph: "
        f"{'; '.join(reasons) or _last(library.logger().take_errors())}. Run the bundle with "
        "onnxruntime-cuda, or export it with another --precision."
    )


def _configured(trt: Any, builder: Any, network: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    flags = trt.BuilderFlag
    # On by default, and a change of precision that nobody asked for: fp32 means fp32.
    config.clear_flag(flags.TF32)
    if options.refit:
        config.set_flag(flags.REFIT)
    if options.version_compatible:
        # Without its copy of the lean runtime: code inside plans is never run.
        config.set_flag(flags.VERSION_COMPATIBLE)
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    if options.hardware_compatible != "none":
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatible.upper())
        config.hardware_compatibility_level = level
    profile = builder.create_optimization_profile()
    dynamic = False
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        if -1 in shape[1:]:
            raise EngineError(
                f"The input {tensor.name!r} has the shape {shape}; expected all axes but the first "
                "to be fixed. Export the bundle again."
            )
        sizes = (1, options.opt_batch, options.max_batch)
        profile.set_shape(tensor.name, *((size, *shape[1:]) for size in sizes))
        dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)
    return config


def _give_timing_cache(config: Any, content: bytes) -> None:
    for attempt in (content, b""):
        timing = config.create_timing_cache(attempt)
        if timing is not None and config.set_timing_cache(timing, False):
            return


def _is_memory(errors: list[str]) -> bool:
    said = " ".join(errors).lower()
    return any(words in said for words in _MEMORY_WORDS)


def _last(errors: list[str]) -> str:
    return errors[-1].strip() if errors else "it gives no reason"
