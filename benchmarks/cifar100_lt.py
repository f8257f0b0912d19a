"""Measure the main job on a real long-tailed checkpoint: fold, agreement, tail, and the gate.

Prints one line per figure.

    python benchmarks/cifar100_lt.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ltdeploy.bundle import Bundle, write_bundle
from ltdeploy.datasets import Dataset, open_dataset
from ltdeploy.export import export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.verify import VerifyResult, verify_bundle


def line(name: str, value: str) -> None:
    """Print one figure."""
    print(f"{name:<72} {value}", flush=True)


def groups(result: VerifyResult, model: str) -> str:
    """Return many / medium / few / overall of one model, in percent."""
    strata = [*result.groups.values(), result.overall]
    return " / ".join(f"{getattr(stratum, model):.2f}" for stratum in strata)


def kill_five(bundle: Bundle, result: VerifyResult, out: Path) -> tuple[Path, set[str]]:
    """Zero the head rows of the five few-shot classes that know most."""
    few = sorted(
        (c for c in result.classes if c.group == "few"), key=lambda c: -(c.candidate or 0)
    )[:5]
    graph = onnx.load(bundle.graph_path)
    head = next(node for node in reversed(graph.graph.node) if node.op_type == "Gemm")
    for tensor in graph.graph.initializer:
        if tensor.name == head.input[1]:
            array = np.array(numpy_helper.to_array(tensor))
            array[[c.label for c in few]] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    files = {"model.onnx": graph.SerializeToString()}
    files["golden.npz"] = (bundle.path / "golden.npz").read_bytes()
    return write_bundle(out, bundle.manifest, files).path, {c.name for c in few}


def main() -> None:
    """Run every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data")
    told = parser.parse_args()
    checkpoint = told.data / "checkpoints" / "cifar100_lt_if100_resnet20_ce.pth.tar"
    dataset: Dataset = open_dataset(str(told.data / "cifar100" / "test.parquet"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = load_checkpoint(checkpoint)
        plain = export_bundle(model, [], folder / "plain.ltd")
        tau = export_bundle(model, [FixSpec("tau_norm", {"tau": 0.7})], folder / "tau.ltd")
        nodes = [e.bundle.manifest.graphs[0].nodes for e in (plain, tau)]
        line("nodes without the fix / with it (wanted: the same)", f"{nodes[0]} / {nodes[1]}")
        difference = tau.checks.reference_difference
        line("folded logits against unfused, relative (wanted: 1e-4 or less)", f"{difference:.1e}")
        result = verify_bundle(tau.bundle, dataset, reference=checkpoint).result
        line("tau 0.7, unfixed: many / medium / few / all, %", groups(result, "unfixed"))
        line("tau 0.7, exported: many / medium / few / all, %", groups(result, "candidate"))
        same = result.images - result.flips
        line("top-1 labels the same (wanted: 9,998 or more of 10,000)", f"{same:,}")
        line("verdict (wanted: pass)", result.verdict)

        specs = [FixSpec("logit_adjustment", {"tau": 1.5})]
        adjusted = export_bundle(model, specs, folder / "adjusted.ltd").bundle
        before = verify_bundle(adjusted, dataset, reference=checkpoint).result
        line("logit adjustment 1.5: many / medium / few / all, %", groups(before, "candidate"))
        path, dead = kill_five(adjusted, before, folder / "dead.ltd")
        after = verify_bundle(path, dataset, reference=checkpoint).result
        line("five dead few-shot classes: many / medium / few / all, %", groups(after, "candidate"))
        drop = (before.overall.candidate or 0) - (after.overall.candidate or 0)
        line("five dead classes: drop of the overall accuracy (wanted: below 2)", f"{drop:.2f}")
        line("five dead classes: verdict (wanted: fail)", after.verdict)
        named = {c.name for c in after.regressed}
        line(
            "five dead classes: named are exactly these (wanted: yes)",
            "yes" if named == dead else "no",
        )


if __name__ == "__main__":
    main()
