"""The command line as tests of several commands call it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "kept"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = run(app, [str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return call
