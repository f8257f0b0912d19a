"""``inspect`` of annotated photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from box_samples import write_boxes

Cli = Callable[..., tuple[int, str, str]]


def test_sizes_and_classes_are_told(cli: Cli, tmp_path: Path) -> None:
    data = write_boxes(tmp_path)
    code, said, _ = cli("inspect", data, "--html", "page.html")
    assert code == 0
    assert "12 photographs, 0 without boxes" in said
    assert said.index("ring") < said.index("disc")  # the rarest first
    assert "<svg" in Path("page.html").read_text()
    code, said, _ = cli("inspect", data, "--json", "-")
    told = json.loads(said)
    assert (code, told["schema"], told["images"]) == (0, 1, 12)
    assert sum(one["boxes"] for one in told["sizes"].values()) == told["boxes"]


def test_a_page_is_for_photographs(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    code, _, said = cli("inspect", tmp_path / "x.pt", "--html", "page.html")
    assert code == 2
    assert "--html is for annotated photographs" in said
    assert cli("inspect", write_boxes(tmp_path), "--html", "no/page.html")[0] == 2
