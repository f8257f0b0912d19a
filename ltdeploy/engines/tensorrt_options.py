"""What can be asked of the TensorRT engine: ``tensorrt:max_batch=64,refit=on``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import EngineError, did_you_mean

__all__ = ["HARDWARE_LEVELS", "TensorRtOptions"]

HARDWARE_LEVELS = ("none", "ampere_plus", "same_compute_capability")
_SWITCHES = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
# 32 images of 224 pixels: the GPU is busy, and the buffers of a context stay small.
_BATCH_PIXELS = 32 * 224 * 224
_LARGEST_BATCH = 256


@dataclass(frozen=True)
class TensorRtOptions:
    """Options of the TensorRT engine, each with its default.

    Attributes
    ----------
    max_batch : largest batch of the optimisation profile; larger ones are split. None: 32 at 224
        pixels, more of smaller images, at most 256.
    opt_batch : batch that the builder tunes for; None is ``max_batch``. 1 is for latency.
    contexts : execution contexts, each with a stream and buffers: as many threads run at once.
    device : number of the CUDA device.
    cuda_graph : capture one CUDA graph per batch size and replay it: fewer launches, more memory.
    workspace_mib : scratch memory that the builder may use; None leaves it to TensorRT. Where it
        does not suffice, less is tried.
    rebuild : build the plan from the ONNX file where none fits; off makes that an error.
    trust_plans : deserialise plans that were not built by this user. A plan is a program: only for
        bundles whose author you trust.
    refit : build so that the weights can be exchanged; see
        :meth:`~ltdeploy.engines.tensorrt_engine.TensorRtEngine.refit_head`.
    version_compatible : build a plan that later TensorRT versions run, with ``lean_runtime``.
    lean_runtime : path of the ``libnvinfer_lean.so`` of the version that built such a plan. The
        plan itself carries none: code inside plans is never run.
    hardware_compatible : none, ampere_plus or same_compute_capability: on which other GPUs the
        plan runs, at some cost of speed.
    timing_cache : keep the builder's measurements in the user's cache; the next build is shorter.
    """

    max_batch: int | None = None
    opt_batch: int | None = None
    contexts: int = 2
    device: int = 0
    cuda_graph: bool = False
    workspace_mib: int | None = None
    rebuild: bool = True
    trust_plans: bool = False
    refit: bool = False
    version_compatible: bool = False
    lean_runtime: str | None = None
    hardware_compatible: str = "none"
    timing_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "opt_batch", "contexts", "workspace_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineError(f"tensorrt:{name}={value} is too small; expected 1 or more.")
        if self.device < 0:
            raise EngineError(f"tensorrt:device={self.device}; expected 0 or more.")
        if self.max_batch is not None and (self.opt_batch or 1) > self.max_batch:
            raise EngineError(
                f"tensorrt:opt_batch={self.opt_batch} is above max_batch={self.max_batch}; the "
                "builder tunes for a batch of its profile."
            )
        if self.hardware_compatible not in HARDWARE_LEVELS:
            raise EngineError(
                f"tensorrt:hardware_compatible={self.hardware_compatible!r}; expected one of "
                f"{', '.join(HARDWARE_LEVELS)}."
                f"{did_you_mean(self.hardware_compatible, HARDWARE_LEVELS)}"
            )
        if self.refit and self.version_compatible:
            raise EngineError(
                "tensorrt:refit and version_compatible exclude each other: the lean runtime that "
                "runs older plans cannot refit. Leave one of them off."
            )

    @classmethod
    def from_text(cls, options: Mapping[str, str]) -> TensorRtOptions:
        """Return the options that ``key=value`` texts say.

        Raises
        ------
        EngineError
            If a key is unknown or a value is not of its kind.
        """
        kinds = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, text in options.items():
            if key not in kinds:
                raise EngineError(
                    f"The engine tensorrt has no option {key!r}; expected one of "
                    f"{', '.join(kinds)}.{did_you_mean(key, kinds)}"
                )
            values[key] = _value(key, text, kinds[key])
        return cls(**values)

    def batches(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return the batch to tune for and the largest one, for images of a size."""
        largest = self.max_batch
        if largest is None:
            fitting = min(_LARGEST_BATCH, _BATCH_PIXELS // (height_px * width_px))
            largest = max(1, fitting, self.opt_batch or 1)
        return self.opt_batch or largest, largest


def _value(key: str, text: str, kind: str) -> bool | int | str:
    if kind == "bool":
        if text.lower() not in _SWITCHES:
            raise EngineError(f"tensorrt:{key}={text!r}; expected on or off.")
        return _SWITCHES[text.lower()]
    if kind.startswith("int"):
        try:
            return int(text)
        except ValueError:
            raise EngineError(f"tensorrt:{key}={text!r}; expected a whole number.") from None
    return text
