"""What the pages say is true: examples run, links lead somewhere, options exist, nothing leaks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_detector_samples as detectors
import pytest
from PIL import Image
from serve_running import running

from ltdeploy.datasets.labels import read_class_csv
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.manifest import Manifest
from ltdeploy.models.detectors.onnx_detector import OnnxDetector
from ltdeploy.models.detectors.onnx_mapping import read_mapping
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def page_name(page: Path) -> str:
    """Return a page's path from the root."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    return [code for kind, code in FENCE.findall(page.read_text("utf-8")) if kind == language]


def dead_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    targets = [target.partition("#")[0] for target in LINK.findall(page.read_text("utf-8"))]
    inside = [t for t in targets if t and not re.match(r"[a-z]+:", t)]
    return [target for target in inside if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not dead_links(page)


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[here](page.md) [web](https://example.org) ![gone](gone.png) [up](../no.md#x)")
    assert dead_links(page) == ["gone.png", "../no.md"]


def detector_bundle(folder: Path) -> Path:
    """Return a detector's bundle, with annotated photographs `boxes.json` beside it."""
    data = detectors.write_all(folder, batch="n")
    data.rename(folder / "boxes.json")
    classes = LoadOptions(classes=read_class_csv(folder / "classes.csv"))
    told = read_mapping(folder / "outputs.json")
    model = load_model(folder / "y.onnx", options=classes, outputs=told)
    assert isinstance(model, OnnxDetector)
    return export_detector(model, [], folder / "made.ltd").bundle.path


def python_examples() -> list[tuple[str, str]]:
    """Return every Python block of README and docs with a name."""
    return [
        (f"{page_name(page)}:{number}", code)
        for page in PAGES
        for number, code in enumerate(blocks(page, "python"))
    ]


@pytest.mark.parametrize(("name", "code"), python_examples(), ids=lambda value: value[:30])
def test_python_examples_run(
    name: str, code: str, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_detectors = name.startswith("docs/detection.md")
    bundled = detector_bundle(tmp_path) if of_detectors else bundle_path
    for bundle in re.findall(r'"([\w/]+\.ltd)"', code):
        shutil.copytree(bundled, tmp_path / bundle, dirs_exist_ok=True)
    rng = np.random.default_rng(0)
    for photo in re.findall(r'"([\w/]+\.jpg)"', code):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / photo)
    for folder in re.findall(r'"(photos/\w+)"', code):
        for label in range(10):
            into = tmp_path / folder / f"moth {label}"
            into.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(into / "0.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with contextlib.ExitStack() as stack:
        if "127.0.0.1:8000" in code:
            served = stack.enter_context(running([f"moths={bundle_path}"]))
            code = code.replace("127.0.0.1:8000", served.http.removeprefix("http://"))
            code = code.replace("224", "32")  # the bundle's size
        exec(compile(code, name, "exec"), names)  # the pages are ours
    for name, test in list(names.items()):
        if name.startswith("test_") and callable(test):
            test()


def test_there_are_python_examples() -> None:
    assert any(name.startswith("README.md") for name, _ in python_examples())


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_json_examples_are_json(page: Path) -> None:
    for text in blocks(page, "json"):
        try:
            json.loads(text)
        except ValueError:
            assert [json.loads(line) for line in text.splitlines()]  # one object per line


def test_the_manifest_of_the_specification_is_a_manifest() -> None:
    (example,) = blocks(ROOT / "docs" / "bundle.md", "json")
    manifest = Manifest.model_validate(json.loads(example))
    assert json.loads(manifest.to_json()).keys() == json.loads(example).keys()
    with pytest.raises(ValueError, match="extra"):
        Manifest.model_validate(json.loads(example) | {"extra": 1})


def test_the_specification_names_every_key() -> None:
    page = (ROOT / "docs" / "bundle.md").read_text("utf-8")
    missing = [
        key for key in Manifest.model_json_schema(by_alias=True)["properties"] if key not in page
    ]
    assert not missing


def documented(page: str) -> set[str]:
    """Return every word that a page shows as code."""
    text = re.sub(FENCE, "", (ROOT / "docs" / page).read_text("utf-8"))
    inline = re.findall(r"`([^`]+)`", text)
    return {word for text in inline for word in re.findall(r"\w+", text)}


def test_every_key_of_the_results_is_documented() -> None:
    from ltdeploy.export import Checks
    from ltdeploy.models.inspection import HeadReport
    from ltdeploy.prediction import ClassScore
    from ltdeploy.verify.result import ClassResult, GroupResult

    keys = {
        field.name
        for kind in (GroupResult, ClassResult, Checks, HeadReport, ClassScore)
        for field in dataclasses.fields(kind)
    }
    assert "images_to_decide" in keys
    assert keys - documented("json.md") == set()


def options_of_commands() -> dict[str, set[str]]:
    """Return the long and short options of every command; the empty name is the program."""
    from typer.main import get_command

    from ltdeploy.cli.main import app

    root = get_command(app)
    commands = {"": root, **root.commands}  # type: ignore[attr-defined]
    return {
        name: {"--help", *(o for parameter in command.params for o in parameter.opts)}
        for name, command in commands.items()
    }


def command_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield command and rest of what a page says to type: in fences, and in inline code."""
    inline = re.findall(r"`(ltdeploy [^`\n]+)`", re.sub(FENCE, "", text))
    fenced = [
        line.partition("  #")[0]
        for _, code in FENCE.findall(text)
        for line in code.splitlines()
        if line.startswith("ltdeploy ")
    ]
    for line in [*inline, *fenced]:
        words = line.split(maxsplit=2)
        if re.fullmatch(r"[a-z]+|--\w+", words[1]):
            yield (words[1], words[2] if len(words) > 2 else "")


def mistakes(text: str, known: dict[str, set[str]]) -> list[str]:
    """Return the commands and options of a page that do not exist."""
    wrong = []
    for command, rest in command_lines(text):
        name = "" if command.startswith("--") else command
        if name not in known:
            wrong.append(f"ltdeploy {command}")
            continue
        used = [w for w in shlex.split(rest) if re.match(r"--?[a-z]", w)]
        used += [command] if not name else []
        wrong += [f"ltdeploy {name} {o}" for o in used if o.partition("=")[0] not in known[name]]
    everywhere = set().union(*known.values())
    inline = re.findall(r"`(--[a-z][\w-]*)", re.sub(FENCE, "", text))
    return wrong + [option for option in inline if option not in everywhere]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_options_exist(page: Path) -> None:
    assert not mistakes(page.read_text("utf-8"), options_of_commands())


def test_a_wrong_option_is_seen() -> None:
    known = {"": {"--version"}, "export": {"--tau", "--help"}}
    page = "`ltdeploy exprot x` `--tua`\n```\nltdeploy export --tau 1 --tav 2  # --no\n```\n"
    assert mistakes(page, known) == ["ltdeploy exprot", "ltdeploy export --tav", "--tua"]
    assert not mistakes("`ltdeploy export --tau=0.7 ckpt.pt`, `ltdeploy --version`", known)


def test_make_targets_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE)
        assert set(named) <= targets, page


# Written in pieces, so that this file does not find itself.
LEAKS = {
    "a package registry": re.compile(
        r"(pypi\.org|python" r"hosted|download\." r"pytorch|index-" r"url)"
    ),
    "a path of one machine": re.compile(r"/(wo" r"rk|ho" r"me|ro" r"ot|Users)/\w"),
    "a token": re.compile(r"\b(gh[pousr]_\w{20}|hf_\w{20}|AKIA\w{12})"),
}


def tracked_texts() -> Iterator[Path]:
    """Yield the tracked and the not ignored text files; all files where git is absent."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and b"\0" not in path.read_bytes()[:4096]:
            yield path


def leaks(text: str) -> list[str]:
    """Return what a text says that belongs to one machine."""
    return [what for what, pattern in LEAKS.items() if pattern.search(text)]


def test_no_file_names_a_registry_or_one_machine() -> None:
    found = {
        page_name(path): leaks(path.read_text("utf-8", errors="replace"))
        for path in tracked_texts()
        if path.name not in ("chart.umd.min.js", "tabulator.min.js")
    }
    assert {name: what for name, what in found.items() if what} == {}


def test_a_leak_is_seen() -> None:
    assert leaks("see /ho" + "me/me/x and --index-" + "url y") == [
        "a package registry",
        "a path of one machine",
    ]
