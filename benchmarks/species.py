"""Measure how fast species are drawn, and what the fixes win back on them over seeds.

Prints one line per figure.

    python benchmarks/species.py                    # drawing only, half a minute
    python benchmarks/species.py --seeds 0 1 2      # also trains quickstart's model per seed
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ltdeploy.datasets import Loader
from ltdeploy.datasets.species import SpeciesDataset
from ltdeploy.export import export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.training import QUICKSTART, QUICKSTART_ARCH, QUICKSTART_PREPROCESSING, train
from ltdeploy.verify import verify_bundle

IMAGES = 560


def rate(work: Callable[[], object], repeats: int = 5) -> str:
    """Return images per second: median, lowest, highest."""
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        rates.append(IMAGES / (time.perf_counter() - started))
    return f"{statistics.median(rates):.0f} images/s ({min(rates):.0f} … {max(rates):.0f})"


def measure_drawing() -> None:
    """Print how fast the validation split is drawn by one thread and by the loader."""
    dataset = SpeciesDataset("val")
    size = Preprocessing(dataset.size_px, dataset.size_px, "none")
    loader = Loader(dataset, dataset.labels, size)
    one = rate(lambda: [dataset.source(index) for index in range(IMAGES)])
    print(f"{'species drawn by one thread':<52} {one}", flush=True)
    print(f"{'species drawn by the loader':<52} {rate(lambda: list(loader))}", flush=True)


def measure_seed(seed: int) -> None:
    """Train on one seed and print group accuracies before and after each fix."""
    test = SpeciesDataset("test")
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "moths.pt"
        options = replace(QUICKSTART, seed=seed)
        size = QUICKSTART_PREPROCESSING
        done = train(
            SpeciesDataset("train"), QUICKSTART_ARCH, options, checkpoint, preprocessing=size
        )
        print(f"seed {seed}: training took {done.seconds:.0f} s", flush=True)
        for method in ("tau_norm", "logit_adjustment"):
            exported = export_bundle(
                load_checkpoint(checkpoint),
                [FixSpec(method, {"tau": "auto"})],
                Path(name) / f"{method}.ltd",
                validation=SpeciesDataset("val"),
            )
            result = verify_bundle(exported.bundle, test).result
            strata = [*result.groups.values(), result.overall]
            before = " / ".join(f"{s.unfixed:.1f}" for s in strata)
            after = " / ".join(f"{s.candidate:.1f}" for s in strata)
            print(f"seed {seed}: {exported.fixes[0].describe():<36} {before} → {after}", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    told = parser.parse_args()
    measure_drawing()
    for seed in told.seeds:
        measure_seed(seed)


if __name__ == "__main__":
    main()
