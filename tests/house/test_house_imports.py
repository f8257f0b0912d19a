"""What is imported when: a fast root, no torch in serving, nothing optional at import time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAVY = {"PIL", "numpy", "onnxruntime", "openvino", "pydantic", "rich", "torch", "typer"}

# Rooms that are only entered with a checkpoint in hand. Some of their modules define layers, which
# takes torch in the first lines; they may need torch at import time, and nothing else.
TORCH_ROOMS = ("ltdeploy.export", "ltdeploy.models", "ltdeploy.training")
# What the extras `serve` and `client` bring stands in the first lines of the serving wing, and
# there alone; the command line asks for it by name before it goes there.
SERVE_PACKAGES = ("google", "grpc", "httpx", "prometheus_client", "starlette", "uvicorn")

# Hide every installed package that `pip install ltdeploy` alone would not have brought.
BARE_INSTALL = """
import importlib.metadata as metadata, json, re, sys

def closure(name, seen):
    if name not in seen:
        seen.add(name)
        for line in metadata.requires(name) or []:
            if "extra ==" not in line:
                needed = re.match(r"[\\w.-]+", line).group().lower().replace("_", "-")
                try:
                    metadata.distribution(needed)
                except metadata.PackageNotFoundError:
                    continue  # for another platform or Python
                closure(needed, seen)
    return seen

brought = closure("ltdeploy", set())
hidden = {
    top
    for top, owners in metadata.packages_distributions().items()
    if not brought & {owner.lower().replace("_", "-") for owner in owners}
}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path if hasattr(finder, "find_spec")]
"""

IMPORT_ALL = """
import importlib, json, sys
failures = {}
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
    except ImportError as error:
        failures[module] = str(error)
print(json.dumps(failures))
"""

PREDICT = """
import ltdeploy, numpy as np
with ltdeploy.load(sys.argv[1], threads=1, verify=True) as model:
    model(np.zeros((40, 50, 3), dtype=np.uint8))
"""

LOADED = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"


def run(code: str, *arguments: str) -> Any:
    """Run code in a fresh process and return what it printed last, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def tops(modules: list[str]) -> set[str]:
    """Return the top-level packages among module names."""
    return {name.partition(".")[0] for name in modules}


def every_module() -> list[str]:
    """Return the dotted names of all modules, the wings' through their links."""
    folders = [ROOT / "ltdeploy", *(p for p in (ROOT / "ltdeploy").iterdir() if p.is_symlink())]
    files = {
        folder / path.relative_to(folder.resolve())
        for folder in folders
        for path in folder.resolve().rglob("*.py")
    }
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return sorted(name.removesuffix(".__init__") for name in dotted)


def test_importing_ltdeploy_brings_nothing_heavy() -> None:
    assert not tops(run("import ltdeploy" + LOADED)) & HEAVY


def test_a_heavy_import_is_seen() -> None:
    assert {"PIL", "numpy", "pydantic"} <= tops(run("import ltdeploy; ltdeploy.load" + LOADED))


def test_the_commands_are_listed_without_an_engine() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\nfrom ltdeploy.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass" + LOADED
    assert not tops(run(code)) & {"torch", "onnxruntime", "pydantic", "PIL", "numpy"}


def test_every_module_imports_after_a_bare_install() -> None:
    failures = run(BARE_INSTALL + IMPORT_ALL, json.dumps(every_module()))
    excused = {m for m, e in failures.items() if m.startswith(TORCH_ROOMS) and "'torch'" in e}
    excused |= {
        module
        for module, error in failures.items()
        if module.startswith("ltdeploy.serve.")
        and any(f"'{package}" in error for package in SERVE_PACKAGES)
    }
    assert {m: e for m, e in failures.items() if m not in excused} == {}
    assert excused, "nothing needs torch: is the bare install still hiding it?"


@pytest.mark.parametrize(
    "package", ["torch", "onnxruntime", "onnx", "scipy", "pyarrow", "timm", "starlette"]
)
def test_the_bare_install_hides(package: str) -> None:
    assert package not in run(IMPORT_ALL, json.dumps([package]))
    assert package in run(BARE_INSTALL + IMPORT_ALL, json.dumps([package]))


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["predict", "BUNDLE", "photo.jpg"], "cpu"),
        (["export", "moths.pt", "--arch", "cifar:resnet20"], "torch"),
        (["inspect", "moths.pt"], "torch"),
        (["verify", "BUNDLE", "--data", "species"], "torch"),
        (["compare", "BUNDLE", "BUNDLE", "--data", "species"], "cpu"),
        (["serve", "BUNDLE"], "serve"),
        (["quickstart"], "torch"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_a_command_names_the_missing_extra(
    bundle_path: Path, tmp_path: Path, arguments: list[str], extra: str
) -> None:
    for name in ("moths.pt", "photo.jpg"):
        (tmp_path / name).write_bytes(b"")
    named = [str(bundle_path) if a == "BUNDLE" else a for a in arguments]
    code = f"""
import contextlib, io, os
os.chdir({str(tmp_path)!r})
sys.argv[1:] = {named}
from ltdeploy.cli.main import main
said = io.StringIO()
with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
    try:
        main()
    except SystemExit as end:
        code = end.code
print(json.dumps([code, said.getvalue()]))
"""
    exit_code, said = run(BARE_INSTALL + code)
    assert exit_code == 2, said
    assert f"pip install 'ltdeploy[{extra}]'" in said


def test_prediction_imports_no_torch(bundle_path: Path) -> None:
    loaded = tops(run("import sys" + PREDICT + LOADED, str(bundle_path)))
    assert "openvino" in loaded  # what auto takes here
    assert not loaded & {"torch", "torchvision", "timm", "onnx", "scipy", "pyarrow", "rich"}


def test_an_import_of_torch_would_be_seen(bundle_path: Path) -> None:
    assert "torch" in tops(run("import sys, torch" + PREDICT + LOADED, str(bundle_path)))
