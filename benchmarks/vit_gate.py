"""Train a ViT-S on the drawn species and pass its bfloat16 and int8 exports through the gate.

A vision transformer from nothing needs more passes than a convolutional network, so most of them
are at 112 pixels, a quarter of the work, and the last ones at 224 with resampled position
embeddings (progressive resizing; Touvron et al. 2019, arXiv 1906.06423).

    python benchmarks/vit_gate.py --out vit.pt                  # half an hour: train, then verify
    python benchmarks/vit_gate.py --out vit.pt --only-verify    # a checkpoint trained before
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import resample_abs_pos_embed

from ltdeploy.classes import ClassTable
from ltdeploy.datasets.species import SpeciesDataset
from ltdeploy.export import PrecisionRequest, export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.images import normalise
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.training.batches import TrainImages, crop_and_flip
from ltdeploy.training.checkpointing import TrainData, save_checkpoint
from ltdeploy.verify import verify_bundle

ARCH = "vit_small_patch16_224"
BATCH = 32
SEED = 0


def fit(
    module: torch.nn.Module, dataset: SpeciesDataset, side_px: int, epochs: int, highest: float
) -> TrainImages:
    """Train with AdamW, one cycle of the learning rate, in bfloat16 where the processor has it."""
    size = Preprocessing(side_px, side_px)
    images = TrainImages(dataset, size)
    steps = epochs * (len(dataset) // BATCH)
    optimiser = torch.optim.AdamW(module.parameters(), lr=highest, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, highest, total_steps=steps + 1)
    random = np.random.default_rng(SEED)
    module.train()
    for epoch in range(epochs):
        started, losses = time.perf_counter(), []
        for batch in images.deal(random, BATCH):
            pixels = normalise(crop_and_flip(batch.images, random, side_px // 10), size)
            with torch.autocast("cpu", torch.bfloat16):
                logits = module(torch.from_numpy(pixels))
            loss = torch.nn.functional.cross_entropy(logits.float(), torch.from_numpy(batch.labels))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            cycle.step()
            losses.append(float(loss.detach()))
        spent = time.perf_counter() - started
        print(
            f"{side_px} px, epoch {epoch + 1}: loss {np.mean(losses):.3f}, {spent:.0f} s",
            flush=True,
        )
    return images


def train(out: Path, epochs: int, large_epochs: int) -> None:
    """Train at 112, then at 224 pixels, and write the checkpoint."""
    torch.manual_seed(SEED)
    dataset = SpeciesDataset("train")
    small = timm.create_model(ARCH, num_classes=len(dataset.class_names), img_size=112)
    fit(small, dataset, 112, epochs, 5e-4)
    module = timm.create_model(ARCH, num_classes=len(dataset.class_names))
    weights = small.state_dict()
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], [14, 14])
    module.load_state_dict(weights)
    images = fit(module, dataset, 224, large_epochs, 1e-4)
    save_checkpoint(
        out,
        module.state_dict(),
        arch=f"timm:{ARCH}",
        classes=ClassTable.from_counts(dataset.counts().tolist(), dataset.class_names),
        preprocessing=Preprocessing(224, 224),
        trained_with="cross_entropy",
        epochs=epochs + large_epochs,
        seed=SEED,
        train_data=TrainData(dataset.name, len(images.readable), images.hashes()),
    )


def main() -> None:
    """Train unless told not to; print the groups and the verdict of each precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint")
    parser.add_argument("--only-verify", action="store_true")
    parser.add_argument("--epochs", type=int, default=15, help="at 112 pixels")
    parser.add_argument("--large-epochs", type=int, default=2, help="at 224 pixels")
    given = parser.parse_args()
    if not given.only_verify:
        train(given.out, given.epochs, given.large_epochs)
    model = load_checkpoint(given.out)
    test = SpeciesDataset("test")
    with tempfile.TemporaryDirectory() as name:
        for precision in ("bf16", "int8"):
            bundle = Path(name) / f"{precision}.ltd"
            request = PrecisionRequest(
                precision, calibration=SpeciesDataset("train"), calibration_images=128
            )
            export_bundle(
                model, [FixSpec("logit_adjustment", {"tau": 0.5})], bundle, precision=request
            )
            found = verify_bundle(bundle, test, reference=given.out, engine="openvino").result
            print(
                f"{precision}: {found.verdict}, {found.flips} flips of {found.images}", flush=True
            )
            for group, row in {"overall": found.overall, **found.groups}.items():
                print(
                    f"  {group:<8} unfixed {row.unfixed:5.2f}  reference {row.reference:5.2f}  "
                    f"{precision} {row.candidate:5.2f}  difference {row.difference:+5.2f} "
                    f"({row.ci_low:+.2f} … {row.ci_high:+.2f})  {row.verdict}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
