"""The harness itself: what it says where it cannot run, and that a crash is seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trt_harness
from trt_harness import Worker

PROFILE = {"opt_batch": 1, "max_batch": 1}


def test_without_the_libraries_it_says_what_would_bring_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTDEPLOY_TRT", str(tmp_path))
    if shutil.which("gcc") is not None:
        assert "python tests/trt_build/trt_assemble.py" in str(trt_harness.missing())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "gcc is missing" in str(trt_harness.missing())


@pytest.mark.trt_build
def test_a_crash_is_seen_and_shown(builder: Worker, tmp_path: Path) -> None:
    broken = trt_harness.start(11, tmp_path)
    with pytest.raises(AssertionError, match="KeyError: 'nonsense'"):
        broken.ask("nonsense")
    answer = builder.ask("build", model=str(tmp_path / "libnvinfer_plugin.so.11"), options=PROFILE)
    assert "does not read this graph" in answer["error"]
    broken.close()
