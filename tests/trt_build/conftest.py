"""The processes that hold TensorRT's bindings: started once, skipped where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trt_harness
from trt_machine import Machine

from ltdeploy.engines import tensorrt_library as library


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[trt_harness.Worker]:
    """Return the process with NVIDIA's parser and builder, or skip."""
    worker = _start(11, tmp_path_factory)
    yield worker
    worker.close()


@pytest.fixture(scope="session", params=[10, 11])
def described(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return the API of TensorRT's bindings, of each major version."""
    worker = _start(request.param, tmp_path_factory)
    answer = worker.ask("describe")
    worker.close()
    return answer


def _start(major: int, folders: pytest.TempPathFactory) -> trt_harness.Worker:
    reason = trt_harness.missing()
    if reason is not None:
        pytest.skip(reason)
    return trt_harness.start(major, folders.mktemp(f"trt{major}"))


@pytest.fixture
def machine(
    described: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Machine]:
    """Return a machine with a GPU whose calls are checked and written down, not run."""
    real_cuda = pytest.importorskip("cuda.bindings.runtime")
    made = Machine(described, real_cuda)
    monkeypatch.setattr(library, "import_tensorrt", lambda: made.trt)
    monkeypatch.setattr(library, "import_cuda", lambda: made.device)
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "cache"))
    library.logger.cache_clear()
    yield made
    library.logger.cache_clear()
