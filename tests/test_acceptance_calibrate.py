"""Choosing a fix on real input: one half of the CIFAR-100 test images chooses, the other checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.fixture(scope="module")
def halves(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two parquet files with half of each class's test images."""
    table = pq.read_table(data_dir / "cifar100" / "test.parquet")
    labels = table.column("label").to_numpy()
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folder = tmp_path_factory.mktemp("halves")
    paths = (folder / "choose.parquet", folder / "check.parquet")
    for start, path in enumerate(paths):
        pq.write_table(table.take(order[start::2]), path)
    return paths


def ltdeploy(folder: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Run a command and return its exit code and JSON."""
    told = [*map(str, arguments), "--json", str(folder / "result.json"), "-q"]
    code = run(app, told)
    return code, json.loads((folder / "result.json").read_text())


def test_what_was_promised_on_one_half_holds_on_the_other(
    data_dir: Path,
    halves: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = data_dir / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar"
    choose, check = halves
    fix, bundle = tmp_path / "fix.json", tmp_path / "ckpt.ltd"
    methods = ("logit_adjustment", "tau_norm", "bias_corrected_temperature", "temperature")
    code, promised = ltdeploy(
        tmp_path,
        *("calibrate", checkpoint, "--val", choose, "--out", fix),
        *("--cache", tmp_path / "cache"),
        *(part for name in methods for part in ("--method", name)),
    )
    assert code == 0
    assert promised["images"] == 5_000
    (chosen,) = (m for m in promised["methods"] if m["status"] == "chosen")
    plain = promised["methods"][0]["objective"]["value"]
    assert chosen["objective"]["value"] > plain + 4

    code, exported = ltdeploy(tmp_path, "export", "--fix", fix, checkpoint, "--out", bundle)
    assert code == 0
    assert exported["folded"] == "weights"
    assert exported["selected_on"]["images"] == 5_000

    code, verified = ltdeploy(tmp_path, "verify", bundle, "--data", check)
    assert code == 0
    assert verified["verdict"] == "pass"
    assert verified["images"] in range(4_990, 5_001)  # CIFAR-100 holds a few images twice
    reached = verified["overall"]["candidate"]  # classes have equally many images
    assert abs(reached - chosen["objective"]["value"]) < 2
    assert abs(verified["overall"]["unfixed"] - plain) < 2
    assert verified["groups"]["few"]["candidate"] > verified["groups"]["few"]["unfixed"] + 10

    capsys.readouterr()
    told = ["verify", str(bundle), "--data", str(choose), "--html", str(tmp_path / "no.html")]
    assert run(app, told) == 2
    assert "chose the fix or the precision of ckpt.ltd" in capsys.readouterr().err
    assert not (tmp_path / "no.html").exists()
