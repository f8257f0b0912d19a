"""The machine that figures were measured on, as far as it can be asked without a dependency."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .._optional import installed_version
from ..engines.hardware import cpu_features

__all__ = ["Machine", "describe_machine", "usable_cores"]

_PACKAGES = ("numpy", "onnxruntime", "openvino", "tensorrt")
_BUSY_SHARE = 0.25
_ASK_GPU = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


@dataclass(frozen=True)
class Machine:
    """Where something was measured.

    Parameters
    ----------
    cpu : the model's name.
    cores : cores that this process may use.
    cpu_quota : cores' worth of time that a container may use; None where nothing limits it.
    instruction_sets : those of the CPU that matter for speed at low precision.
    memory_bytes : main memory; None where the system does not tell.
    gpus : name, memory and driver of each NVIDIA GPU.
    platform, python : system and Python version.
    versions : by package; what is not installed is left out.
    load_average : processes that ran or waited over the last minute; None where not told.
    """

    cpu: str
    cores: int
    cpu_quota: float | None
    instruction_sets: tuple[str, ...]
    memory_bytes: int | None
    gpus: tuple[str, ...]
    platform: str
    python: str
    versions: dict[str, str]
    load_average: float | None

    @property
    def is_busy(self) -> bool:
        """Whether other programs took so much time that figures are doubtful."""
        return self.load_average is not None and self.load_average > _BUSY_SHARE * self.cores

    def facts(self) -> dict[str, str]:
        """Return the machine as texts by label, for people."""
        cores = f"{self.cores} usable cores"
        if self.cpu_quota is not None:
            cores += f", of which a quota allows {self.cpu_quota:g} at a time"
        memory = "" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.1f} GiB"
        load = "" if self.load_average is None else f"{self.load_average:.2f}"
        found = {
            "CPU": f"{self.cpu}, {cores}",
            "Instruction sets": ", ".join(self.instruction_sets),
            "Memory": memory,
            "GPU": "; ".join(self.gpus) or "none found",
            "System": f"{self.platform}, Python {self.python}",
            "Versions": ", ".join(f"{name} {v}" for name, v in self.versions.items()),
            "Load average at the start": load,
        }
        return {label: text for label, text in found.items() if text}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def describe_machine() -> Machine:
    """Return this machine, with its load at this moment."""
    versions = {name: installed_version(name) for name in _PACKAGES}
    return Machine(
        cpu=_cpu(_read("/proc/cpuinfo")),
        cores=usable_cores(),
        cpu_quota=_quota(_read("/sys/fs/cgroup/cpu.max")),
        instruction_sets=cpu_features(),
        memory_bytes=_memory(_read("/proc/meminfo")),
        gpus=_gpus(),
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={"ltdeploy": __version__} | {n: v for n, v in versions.items() if v is not None},
        load_average=_load_average(_read("/proc/loadavg")),
    )


def usable_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu(cpuinfo: str) -> str:
    """Return the name of the first core in ``/proc/cpuinfo``.

    >>> _cpu("processor : 0\\nmodel name : Some CPU")
    'Some CPU'
    """
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _quota(cpu_max: str) -> float | None:
    """Return the cores' worth of time that ``cpu.max`` allows.

    >>> _quota("150000 100000"), _quota("max 100000"), _quota("")
    (1.5, None, None)
    """
    allowed, _, period = cpu_max.partition(" ")
    if not allowed.isdecimal() or not period.strip().isdecimal():
        return None
    return int(allowed) / int(period)


def _memory(meminfo: str) -> int | None:
    """Return the main memory that ``/proc/meminfo`` tells.

    >>> _memory("MemTotal:       2048 kB")
    2097152
    """
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _load_average(loadavg: str) -> float | None:
    """Return the load over the last minute.

    >>> _load_average("0.42 0.30 0.20 1/99 123")
    0.42
    """
    # Some sandboxes answer the system call in other units than the file.
    if loadavg:
        return float(loadavg.split()[0])
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _gpus() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        told = subprocess.run(
            [program, *_ASK_GPU], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver that does not answer runs no engine either, and its row says why
    return tuple(line.strip() for line in told.stdout.splitlines() if line.strip())
