"""What is built is what was written: site-packages gets `ltdeploy` alone, with everything in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and wheel, the wheel from the sdist, from a clean copy of the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = ["ltdeploy", "export", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"]
    wings = [p.name for p in (ROOT / "ltdeploy").iterdir() if p.is_symlink()]
    for name in {*tracked, *wings}:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                source / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "log.txt").write_text(done.stdout + done.stderr)
    return out


@pytest.fixture(scope="module")
def installed(built: Path) -> set[str]:
    """Return the files that the wheel puts into site-packages."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_of_the_package() -> set[str]:
    """Return what a wheel must hold: sources and data, wings under ltdeploy."""
    found = set()
    for folder in [
        ROOT / "ltdeploy",
        *(p for p in (ROOT / "ltdeploy").iterdir() if p.is_symlink()),
    ]:
        for path in folder.resolve().rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(str((folder / path.relative_to(folder.resolve())).relative_to(ROOT)))
    return found


def test_the_wheel_holds_every_file_of_the_package(installed: set[str]) -> None:
    assert {name for name in installed if ".dist-info/" not in name} == files_of_the_package()


def test_what_is_easily_forgotten_is_in(installed: set[str]) -> None:
    assert {
        "ltdeploy/export/__init__.py",
        "ltdeploy/py.typed",
        "ltdeploy/bench/assets/bench.js",
        "ltdeploy/calibrate/assets/calibrate.js",
        "ltdeploy/export/precision/assets/precision.js",
        "ltdeploy/verify/assets/verify.js",
        "ltdeploy/webpage/assets/page.html",
        "ltdeploy/webpage/assets/LICENSES.txt",
    } <= installed


def test_site_packages_gets_one_name(installed: set[str]) -> None:
    tops = {name.partition("/")[0] for name in installed}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ltdeploy"}


def test_the_licences_are_in(installed: set[str]) -> None:
    licences = {n.partition("licenses/")[2] for n in installed if "/licenses/" in n}
    assert licences == {"LICENSE", "ltdeploy/webpage/assets/LICENSES.txt"}


def test_the_sdist_builds_the_wheel_and_holds_no_links(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [m.name for m in members if m.issym() or m.islnk()]
    inside = {m.name.partition("/")[2] for m in members}
    assert {"export/__init__.py", "ltdeploy/__init__.py", "pyproject.toml"} <= inside


def test_the_build_has_nothing_to_say(built: Path) -> None:
    log = (built / "log.txt").read_text()
    assert "Deprecat" not in log
    assert "absent from the `packages`" not in log
