"""The house: one direction of imports, wings apart, files short, names and lists in order."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "ltdeploy"
NOT_WINGS = {"ltdeploy", "tests", "benchmarks", "docs"}
WINGS = sorted(
    folder.name
    for folder in ROOT.iterdir()
    if (folder / "__init__.py").is_file() and folder.name not in NOT_WINGS
)
LONGEST_FILE_LINES = 400

# From the ground up: a room may import rooms of earlier rows only, and itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("_optional", "arrays", "files", "progress", "webpage"),
    ("masks", "prediction"),
    ("boxes", "classes", "preprocessing"),
    ("decoding", "detection_rules", "pairing", "suppression"),
    ("canvas", "images"),
    ("postprocess", "vocabulary"),
    ("fusion", "raising"),
    ("datasets", "models"),
    ("fixes",),
    ("manifest",),
    ("bundle",),
    ("engines",),
    ("inference",),
    ("streaming",),
    ("cache", "detector", "predictor"),
    ("ensemble", "loading"),
    ("bulk", "live"),
    ("metrics",),
    ("calibrate", "verify"),
    ("bench", "testing", "training"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One import of something of ours; lazy: not run when the module is imported."""

    room: str
    line: int
    lazy: bool


def modules(*folders: Path) -> list[Path]:
    """Return the Python files under the folders; not the wings' links, nor what protoc made."""
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
        and not path.stem.endswith("_pb2")
    )


def dotted_name(path: Path) -> str:
    """Return the name a file is imported by: export/fold.py is ltdeploy.export.fold."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "ltdeploy" else ("ltdeploy", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """Return the room a dotted name belongs to; empty for the root package itself."""
    return [*module.split("."), ""][1]


def our_imports(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Yield every import of ltdeploy in a source, under TYPE_CHECKING and in functions too."""
    tree = ast.parse(source)
    lazy = {
        id(node)
        for parent in ast.walk(tree)
        if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(parent, ast.If) and ast.unparse(parent.test) == "TYPE_CHECKING")
        for node in ast.walk(parent)
    }
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")
                above = node.level - is_package
                base = ".".join([*package[: len(package) - above], *filter(None, [base])])
            # `from ltdeploy import x` asks for the room x, if there is one
            targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            if target.split(".")[0] == "ltdeploy":
                room = room_of(target)
                known = room in FLOOR_OF or room in WINGS
                yield Import(room if known else "", node.lineno, id(node) in lazy)


def breaches(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what a module imports against the one direction, as lines for people."""
    own = room_of(module)
    if own and own not in FLOOR_OF and own not in WINGS:
        return [f"{module}: the room {own!r} has no floor; give it one in FLOORS"]
    found = []
    for used in our_imports(source, module, is_package=is_package):
        where = f"{module}:{used.line} imports {used.room}"
        if not used.room or used.room == own or not own:
            continue  # the root's version, a neighbour; the root package itself knows all rooms
        if used.room in WINGS:
            if own in WINGS:
                found.append(f"{where}: wings do not know each other")
            elif own != "cli":
                found.append(f"{where}: the core does not know the wings")
            elif not used.lazy:
                found.append(f"{where}: the command line imports wings inside functions only")
        elif own in WINGS:
            if used.room == "cli":
                found.append(f"{where}: nothing imports the command line")
        elif FLOOR_OF[used.room] >= FLOOR_OF[own]:
            found.append(f"{where}: a room imports only rooms to its left")
    return found


@pytest.mark.parametrize("path", modules(CORE, *(ROOT / w for w in WINGS)), ids=dotted_name)
def test_imports_go_one_way(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not breaches(source, dotted_name(path), is_package=path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("ltdeploy.images", "from .bundle import open_bundle", "rooms to its left"),
        ("ltdeploy.images", "def f():\n    from . import bundle", "rooms to its left"),
        ("ltdeploy.datasets.folder", "from ..models import head", "rooms to its left"),
        ("ltdeploy.datasets.folder", "import ltdeploy.cli.main", "rooms to its left"),
        ("ltdeploy.verify.run", "from ltdeploy.export import export_bundle", "the wings"),
        ("ltdeploy.verify.run", "from ..export.fold import folded", "the wings"),
        ("ltdeploy.cli.main", "from ltdeploy.export import export_bundle", "inside functions"),
        ("ltdeploy.export.fold", "from ltdeploy.cli import main", "the command line"),
        ("ltdeploy.attic", "import ltdeploy", "no floor"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str, complaint: str) -> None:
    (only,) = breaches(source, module)
    assert complaint in only


def test_wings_that_know_each_other_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "WINGS", ["export", "serve"])
    (only,) = breaches("from ltdeploy.export import fold", "ltdeploy.serve.app")
    assert "do not know each other" in only


def test_what_is_allowed_passes() -> None:
    assert not breaches("from . import folder\nfrom ..images import prepare", "ltdeploy.datasets.x")
    assert not breaches("from .base import Engine", "ltdeploy.engines", is_package=True)
    assert not breaches("def f():\n    from ltdeploy.export import fold", "ltdeploy.cli.main")
    for_types = "if TYPE_CHECKING:\n    from ltdeploy.export import Exported"
    assert not breaches(for_types, "ltdeploy.cli.main")
    assert not breaches("from ltdeploy import __version__", "ltdeploy.export.fold")


def test_no_file_runs_away() -> None:
    folders = (CORE, *(ROOT / wing for wing in WINGS), ROOT / "benchmarks")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules(*folders)
    }
    longer = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE_LINES}
    assert not longer, f"over {LONGEST_FILE_LINES} lines is a design question: {longer}"


def third_party_names() -> set[str]:
    """Return the import names of what we depend on, now or in a later wing."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    named_otherwise = {"pillow": "PIL", "pyyaml": "yaml", "protobuf": "google"}
    later = {"fastapi", "gradio", "grpc", "openvino", "ray", "starlette", "tensorrt", "uvicorn"}
    return {named_otherwise.get(p, p.lower().replace("-", "_")) for p in pinned} | later


def test_no_module_is_called_like_a_third_party_package() -> None:
    taken = third_party_names()
    assert {"onnx", "torch", "PIL"} <= taken
    names = {
        part
        for path in modules(CORE, *(ROOT / w for w in WINGS))
        for part in dotted_name(path).split(".")
    }
    assert not names & taken


def gaps(source: str, name: str) -> list[str]:
    """Return what a module lacks of: a docstring, `__all__`, docstrings of what `__all__` lists."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["a docstring"]
    listed: set[str] | None = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = set(ast.literal_eval(node.value))
    only_docstring = len(tree.body) <= 1
    if listed is None and not name.startswith("_") and not only_docstring:
        missing.append("__all__")
    missing += [
        f"a docstring of {node.name}"
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.name in (listed or ())
        and not ast.get_docstring(node)
    ]
    return missing


@pytest.mark.parametrize("path", modules(CORE, *(ROOT / w for w in WINGS)), ids=dotted_name)
def test_modules_say_what_they_are_and_offer(path: Path) -> None:
    name = path.parent.name if path.name == "__init__.py" else path.stem
    assert not gaps(path.read_text(encoding="utf-8"), name)


def test_a_silent_module_is_seen() -> None:
    assert gaps("x = 1\ny = 2", "rooms") == ["a docstring", "__all__"]
    assert gaps('"""Doc."""\n__all__ = ["f"]\ndef f(): ...', "rooms") == ["a docstring of f"]
    assert not gaps('"""Doc."""\nx = 1', "_private")


@pytest.mark.parametrize("wing", WINGS)
def test_wing_is_linked_into_the_core(wing: str) -> None:
    link = CORE / wing
    assert link.is_symlink(), f"make it: ln -s ../{wing} ltdeploy/{wing}"
    assert os.readlink(link) == f"../{wing}"


def test_there_are_no_other_links() -> None:
    links = {path.name for path in CORE.rglob("*") if path.is_symlink()}
    assert links == set(WINGS)
    assert "export" in WINGS


def test_the_package_list_is_the_folders() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {dotted_name(path.parent / "__init__.py") for path in modules(CORE)} | {
        dotted_name(path.parent / "__init__.py") for wing in WINGS for path in modules(ROOT / wing)
    }
    assert sorted(config["packages"]) == sorted(folders)
    expected = {"ltdeploy": "ltdeploy"} | {f"ltdeploy.{wing}": wing for wing in WINGS}
    assert config["package-dir"] == expected
