"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from report_pages import browser, open_report  # noqa: F401  (fixtures)
from samples import draw_photo, write_checkpoint

from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run

# As the command line does: tests share the machine, and waiting threads should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the real data, so that none forgets."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


@pytest.fixture(scope="session", autouse=True)
def _graphs_are_shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Name the folder in which the processes of a run share what ``detector_samples`` traces."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    os.environ.setdefault("LTDEPLOY_TEST_GRAPHS", str(base / "detector-graphs"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of the real data sets, or skip."""
    folder = Path(os.environ.get("LTDEPLOY_DATA") or _ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("real data absent: set LTDEPLOY_DATA")
    return folder


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three class folders with 3, 2 and 1 small JPEG files. Read only."""
    folder = tmp_path_factory.mktemp("photos") / "val"
    for label, (name, count) in enumerate((("cat", 3), ("dog", 2), ("lynx", 1))):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            photo = draw_photo(10 * label + number)
            photo.save(folder / name / f"{number:03d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of six classes. Read only."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "ckpt.pt")


@pytest.fixture(scope="session")
def bundle_path(checkpoint: Path) -> Path:
    """Return a bundle exported from ``checkpoint`` with τ = 0.7. Read only."""
    from ltdeploy.export import export_bundle
    from ltdeploy.fixes import FixSpec
    from ltdeploy.models.classifier import load_checkpoint

    model = load_checkpoint(checkpoint)
    out = checkpoint.parent / "ckpt.ltd"
    return export_bundle(model, [FixSpec("tau_norm", {"tau": 0.7})], out).bundle.path


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder that goes with the last test of the file: a detector has 75 MB."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder)


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
