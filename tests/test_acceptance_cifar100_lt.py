"""The main job on real input: somebody's CIFAR-100-LT checkpoint, all 10,000 test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ltdeploy.bundle import open_bundle, write_bundle
from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.fixture(scope="module")
def checkpoint_file(data_dir: Path) -> Path:
    return data_dir / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar"


@pytest.fixture(scope="module")
def test_images(data_dir: Path) -> Path:
    return data_dir / "cifar100" / "test.parquet"


def verified(folder: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """Run ``ltdeploy verify`` and return its exit code and JSON."""
    code = run(app, ["verify", *map(str, arguments), "--json", str(folder / "verify.json"), "-q"])
    return code, json.loads((folder / "verify.json").read_text())


def test_tau_norm_helps_the_tail_and_the_export_keeps_it(
    checkpoint_file: Path, test_images: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "ckpt.ltd"
    told = ["export", "--tau", "0.7", str(checkpoint_file), "--out", str(bundle)]
    assert run(app, [*told, "--json", str(tmp_path / "export.json"), "-q"]) == 0
    exported = json.loads((tmp_path / "export.json").read_text())
    assert exported["folded"] == "weights"
    assert exported["checks"]["reference_difference"] <= 1e-4

    code, result = verified(tmp_path, bundle, "--data", test_images)
    assert code == 0
    assert result["verdict"] == "pass"
    assert result["images"] == 10_000
    assert result["flips"] <= 2
    few = result["groups"]["few"]
    assert few["candidate"] > few["unfixed"] + 1
    # What the checkpoint's own README says of it.
    assert result["overall"]["unfixed"] == pytest.approx(28.34, abs=0.005)
    assert (bundle / "report.html").stat().st_size < 2_000_000
    assert (bundle / "baseline.json").exists()
    open_bundle(bundle)  # what verify left there breaks no seal


def test_five_dead_classes_fail_the_gate_by_name(
    checkpoint_file: Path, test_images: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "adjusted.ltd"
    told = ["export", "--logit-adjust", "1.5", str(checkpoint_file), "--out", str(bundle), "-q"]
    assert run(app, told) == 0
    code, before = verified(tmp_path, bundle, "--data", test_images)
    assert code == 0
    assert before["groups"]["few"]["candidate"] == pytest.approx(24, abs=1)

    # The five few-shot classes that know most: dead ones among them are a loss worth naming.
    few = [c for c in before["classes"] if c["group"] == "few"]
    dead = sorted(few, key=lambda c: -c["candidate"])[:5]
    damaged = zero_head_rows(bundle, tmp_path / "damaged.ltd", [c["label"] for c in dead])
    code, after = verified(tmp_path, damaged, "--data", test_images, "--reference", checkpoint_file)
    assert code == 1
    assert after["verdict"] == "fail"
    assert after["groups"]["few"]["verdict"] == "fail"
    assert before["overall"]["candidate"] - after["overall"]["candidate"] < 2
    assert {c["name"] for c in after["classes"] if c["regressed"]} == {c["name"] for c in dead}


def zero_head_rows(bundle: Path, out: Path, labels: list[int]) -> Path:
    """Write a copy of a bundle whose graph has the head's rows of some classes set to zero."""
    opened = open_bundle(bundle)
    graph = onnx.load(bundle / "model.onnx")
    head = next(node for node in reversed(graph.graph.node) if node.op_type == "Gemm")
    for tensor in graph.graph.initializer:
        if tensor.name == head.input[1]:
            array = np.array(numpy_helper.to_array(tensor))
            array[labels] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    kept = {name for name in opened.manifest.files if name != "model.onnx"}
    files = {name: (bundle / name).read_bytes() for name in kept}
    return write_bundle(
        out, opened.manifest, {**files, "model.onnx": graph.SerializeToString()}
    ).path
