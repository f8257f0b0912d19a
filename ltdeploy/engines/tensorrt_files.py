"""Plans in a bundle's ``engines/`` folder: what each is valid for, and which may be deserialised.

A plan is a file of its own with nothing prepended; beside it stands a sidecar of the same name
that ends in ``.json``. Both are a cache: what does not fit is built again from the ONNX file.

A plan is a program: deserialising one can run what its author put in. A sidecar that came with
the plan proves nothing, so the sha256 of every plan built here is also listed in the user's own
cache, and only plans on that list are deserialised unless the user says ``trust_plans=on``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ..errors import EngineError
from ..files import default_cache, write_whole
from ..fixes.encoding import Strict

__all__ = ["BUILD_OPTIONS", "FOLDER", "PlanFiles", "PlanRecord"]

FOLDER = "engines"
# How a plan is built, beside what it is built from and for.
BUILD_OPTIONS = ("opt_batch", "max_batch", "refit", "version_compatible", "hardware_compatible")
_LIST = "tensorrt-plans.sha256"
_LARGEST_SIDECAR_BYTES = 1 << 16

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PlanRecord(Strict):
    """What a plan is valid for: the sidecar's content."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    plan_sha256: Sha256
    onnx_sha256: Sha256
    precision: str
    gpu: str
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    tensorrt: Annotated[str, Field(pattern=r"^\d+(\.\w+)+$")]
    min_batch: Literal[1] = 1
    opt_batch: Annotated[int, Field(ge=1)]
    max_batch: Annotated[int, Field(ge=1)]
    workspace_bytes: Annotated[int, Field(ge=0)]
    refit: bool
    version_compatible: bool
    hardware_compatible: str

    def misfit(
        self,
        wanted: PlanRecord,
        *,
        lean_runtime: bool,
        asked: Collection[str] = BUILD_OPTIONS,
    ) -> str | None:
        """Return why this plan does not serve where ``wanted`` is asked for; None if it does.

        Parameters
        ----------
        wanted : what a plan built here and now would be; its hash and workspace do not matter.
        lean_runtime : whether the runtime of an older version is at hand.
        asked : which of :data:`BUILD_OPTIONS` must be as wanted.
        """
        if self.onnx_sha256 != wanted.onnx_sha256:
            return (
                f"it was built from another ONNX file (sha256 {self.onnx_sha256[:12]}…, the "
                f"bundle's is {wanted.onnx_sha256[:12]}…)"
            )
        if self.tensorrt != wanted.tensorrt and not (self.version_compatible and lean_runtime):
            return f"it is for TensorRT {self.tensorrt}, and this is {wanted.tensorrt}"
        if not self._runs_on(wanted):
            return (
                f"it is for {self.gpu} (compute capability {self.compute_capability}), and this is "
                f"{wanted.gpu} (compute capability {wanted.compute_capability})"
            )
        for name in asked:
            if getattr(self, name) != getattr(wanted, name):
                return f"it has {name}={getattr(self, name)}, not {getattr(wanted, name)}"
        return None

    def _runs_on(self, wanted: PlanRecord) -> bool:
        if self.hardware_compatible == "ampere_plus":
            return int(wanted.compute_capability.partition(".")[0]) >= 8
        if self.compute_capability != wanted.compute_capability:
            return False
        return self.hardware_compatible == "same_compute_capability" or self.gpu == wanted.gpu

    def to_json(self) -> str:
        """Return the sidecar's text."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


@dataclass(frozen=True)
class PlanFiles:
    """The plans in one bundle's folder.

    Attributes
    ----------
    folder : the bundle's ``engines/``; it need not exist.
    trust : deserialise plans that are not on the user's list, too.
    """

    folder: Path
    trust: bool = False

    def find(
        self,
        wanted: PlanRecord,
        *,
        lean_runtime: bool,
        asked: Collection[str] = BUILD_OPTIONS,
    ) -> tuple[tuple[bytes, PlanRecord] | None, list[str]]:
        """Return the best plan that fits, read and checked; and why each other one does not.

        The best is the one that would be built now, and else that of the largest batches.
        """
        fitting: list[tuple[bool, int, Path, PlanRecord]] = []
        reasons: list[str] = []
        for sidecar in sorted(self.folder.glob("*.json")):
            try:
                record = self._record(sidecar)
                misfit = record.misfit(wanted, lean_runtime=lean_runtime, asked=asked)
                if misfit is not None:
                    raise EngineError(misfit)
                other = record.misfit(wanted, lean_runtime=lean_runtime) is not None
                fitting.append((other, -record.max_batch, sidecar, record))
            except EngineError as error:
                reasons.append(f"{sidecar.with_suffix('.plan').name}: {error}")
        for *_, sidecar, record in sorted(fitting, key=lambda one: one[:3]):
            try:
                return (self._plan(sidecar, record), record), reasons
            except EngineError as error:
                reasons.append(f"{sidecar.with_suffix('.plan').name}: {error}")
        return None, reasons

    def _record(self, sidecar: Path) -> PlanRecord:
        try:
            if sidecar.stat().st_size > _LARGEST_SIDECAR_BYTES:
                raise EngineError("its sidecar is no sidecar")
            return PlanRecord.model_validate(json.loads(sidecar.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError, RecursionError) as error:
            first = str(error).splitlines()[0]
            raise EngineError(f"its sidecar cannot be read ({first})") from error

    def _plan(self, sidecar: Path, record: PlanRecord) -> bytes:
        if not self.trust and record.plan_sha256 not in _listed():
            raise EngineError(
                "it was not built by this user here, and a plan is a program; if you trust whoever "
                "built it, say tensorrt:trust_plans=on"
            )
        try:
            plan = sidecar.with_suffix(".plan").read_bytes()
        except OSError as error:
            raise EngineError(f"it cannot be read ({error.strerror or error})") from error
        # The bytes that were hashed are those that are deserialised: nothing is read twice.
        if hashlib.sha256(plan).hexdigest() != record.plan_sha256:
            raise EngineError("it was changed after it was built: its sha256 is not the sidecar's")
        return plan

    def save(self, plan: bytes, record: PlanRecord) -> Path:
        """Write a plan and its sidecar, put it on the user's list, and return its path.

        Raises
        ------
        OSError
            If the bundle or the user's cache cannot be written to.
        """
        kinds = [
            f"tensorrt-{record.tensorrt}",
            f"sm{record.compute_capability.replace('.', '')}",
            f"b{record.max_batch}",
            *(["refit"] if record.refit else []),
            *(["versions"] if record.version_compatible else []),
            *([record.hardware_compatible] if record.hardware_compatible != "none" else []),
            # Another GPU of the same capability, or another batch tuned for, is another plan.
            hashlib.sha256(f"{record.gpu}\0{record.opt_batch}".encode()).hexdigest()[:8],
        ]
        self.folder.mkdir(exist_ok=True)
        path = self.folder / ("-".join(kinds) + ".plan")
        # The old sidecar goes first: no moment has a sidecar beside another plan.
        path.with_suffix(".json").unlink(missing_ok=True)
        write_whole(path, plan)
        _list_plan(record.plan_sha256)
        write_whole(path.with_suffix(".json"), record.to_json().encode())
        return path


def _listed() -> set[str]:
    try:
        return set((default_cache() / _LIST).read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):
        return set()


def _list_plan(sha256: str) -> None:
    default_cache().mkdir(parents=True, exist_ok=True)
    if sha256 not in _listed():
        with (default_cache() / _LIST).open("a", encoding="ascii") as stream:
            stream.write(sha256 + "\n")
