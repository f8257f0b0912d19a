"""Make the pictures of docs/fixes from a real checkpoint, and print the figures of their captions.

    python docs/fix_pictures.py --data DATA

``DATA`` holds CIFAR-100-LT as parquet and a long-tailed checkpoint of it. Its test images are the
validation data here, so nothing in these pictures is a test result. Needs the ``dev`` extra;
takes some minutes, the network's two passes included, which the cache keeps. Writes
``docs/images/fixes/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from fix_picture_parts import (
    ACCENT,
    BEFORE,
    COLOURS,
    GROUPS,
    INK,
    LINE,
    SOFT,
    WARN,
    draw_methods,
    draw_sweep,
    label_line,
    reached,
    save,
    set_x_ticks,
    sweep_of,
    tell_costs,
    told,
    use_report_style,
)
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ltdeploy.calibrate import (
    Calibration,
    DataSources,
    Evidence,
    calibrate,
    estimated_prior,
    evidence_of_checkpoint,
)
from ltdeploy.datasets import open_dataset
from ltdeploy.files import default_cache
from ltdeploy.fixes import FixContext, Platt, fit_chain, parse_spec, part_of
from ltdeploy.metrics import negative_log_likelihood
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.head import Head

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images" / "fixes"
CHECKPOINT = "cifar100_lt_if100_resnet20_ce.pth.tar"


def read_evidence(data: Path, cache: Path | None) -> Evidence:
    """Return logits and features of the checkpoint on the test and the training images."""
    model = load_checkpoint(data / "checkpoints" / CHECKPOINT)
    cifar = data / "cifar100"
    sources = DataSources(
        open_dataset(str(cifar / "test.parquet")),
        open_dataset(str(cifar / "train_lt_if100.parquet")),
    )
    return evidence_of_checkpoint(model, sources, cache=cache, warn=print)


def overview(done: Calibration, evidence: Evidence) -> Figure:
    """Draw all methods that `calibrate` compared."""
    figure, axes = plt.subplots(figsize=(7, 5.4))
    for result in done.methods:
        told(result.name, reached(result))
    rows = [(result.name, result) for result in done.methods if result.name != "temperature"]
    rows[0] = ("as it came", rows[0][1])
    draw_methods(axes, rows)
    return figure


def tau_norm(done: Calibration, evidence: Evidence) -> Figure:
    """Draw the accuracies over τ, for two of the bias policies."""
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    for axes, method, title in zip(
        panels, ("tau_norm", "tau_norm:bias=drop"), ("bias=scale", "bias=drop"), strict=True
    ):
        draw_sweep(axes, sweep_of(done, method), labels=title == "bias=drop", x_label="τ")
        axes.set_title(title)
    panels[0].set_ylabel("accuracy, %")
    return figure


def logit_adjustment(done: Calibration, evidence: Evidence) -> Figure:
    """Draw the accuracies over τ, with the value that theory names."""
    figure, axes = plt.subplots(figsize=(7, 3.4))
    draw_sweep(axes, sweep_of(done, "logit_adjustment"), x_label="τ")
    axes.axvline(1, color=BEFORE, linewidth=1, linestyle=":", zorder=0)
    for x, text, side in (
        (1, "theory ", "right"),
        (sweep_of(done, "logit_adjustment").chosen, " chosen", "left"),
    ):
        axes.text(x, 63, text, ha=side, va="center", color=SOFT)
    axes.set_ylabel("accuracy, %")
    return figure


def label_shift(done: Calibration, evidence: Evidence) -> Figure:
    """Draw the estimated prior of unlabelled images in which the rare classes are frequent."""
    generator = np.random.default_rng(0)
    context, labels = evidence.context, evidence.labels
    classes = len(evidence.classes)
    half = generator.permutation(len(labels)) < len(labels) // 2
    ratio = 20.0
    truth = ratio ** (np.arange(classes) / (classes - 1))
    truth /= truth.sum()
    images = generator.choice(
        np.flatnonzero(~half), 3000, p=truth[labels[~half]] / truth[labels[~half]].sum()
    )
    target = evidence.logits[images]
    known = replace(part_of(context, half), target_logits=target)
    estimate = estimated_prior(known)
    chain = [parse_spec(name).fixed() for name in ("bias_corrected_temperature", "label_shift")]
    weights = 1.0 / np.bincount(known.labels)[known.labels]
    adapted = fit_chain(chain, replace(known, weights=weights)).apply(target)
    level = fit_chain(chain[:1], replace(known, weights=weights)).apply(target)
    for name, logits in (("before", target), ("uniform prior", level), ("estimated", adapted)):
        told(f"label shift, {name}", {"overall": 100 * (logits.argmax(1) == labels[images]).mean()})
    figure, axes = plt.subplots(figsize=(7, 3.4))
    place = np.arange(classes)
    axes.plot(place, 100 * evidence.classes.prior(), color=BEFORE, linestyle=(0, (4, 2)))
    axes.plot(place, 100 * truth, color=INK)
    axes.plot(place, 100 * estimate, "o", color=ACCENT, markersize=4)
    axes.set(yscale="log", xlabel="class, the most frequent in training first", ylabel="share, %")
    axes.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    axes.minorticks_off()
    axes.set_xlim(-2, 100)
    axes.text(4, 4.2, "in training", color=SOFT)
    axes.text(85, 3.6, "in use", color=INK, ha="right")
    axes.text(99, 0.62, "estimated from\nunlabelled images", color=ACCENT, ha="right", va="top")
    return figure


def scaling(done: Calibration, evidence: Evidence) -> Figure:
    """Draw confidence against accuracy per group, before and after vector scaling."""
    fitted = calibrate(evidence, methods=["vector"])
    figure, panels = plt.subplots(1, 3, figsize=(7, 2.9), sharey=True)
    for axes, name in zip(panels, GROUPS, strict=True):
        axes.plot([0, 100], [0, 100], color=LINE, linewidth=1)
        for when, colour in (("before", BEFORE), ("after", COLOURS[name])):
            known = fitted.confidence[when][name]
            some = known.diagram.counts >= 20
            axes.plot(
                100 * known.diagram.confidence[some],
                100 * known.diagram.accuracy[some],
                "o-",
                color=colour,
                markersize=3.5,
                linewidth=1.5,
            )
            told(f"vector, {name}, {when}", {"ECE": 100 * (known.diagram.error or 0.0)})
        axes.set(xlim=(0, 100), ylim=(0, 100), yticks=(0, 50, 100))
        set_x_ticks(axes, (0, 50, 100), ("0", "50", "100"))
        axes.set_title(name, color=COLOURS[name])
        axes.set_aspect("equal")
    panels[0].set_ylabel("accuracy, %")
    panels[1].set_xlabel("confidence, %")
    panels[1].text(52, 66, "after", color=COLOURS["medium"], ha="right")
    panels[1].text(60, 12, "before", color=SOFT)
    return figure


def matrix(done: Calibration, evidence: Evidence) -> Figure:
    """Draw what four methods reach on unseen images, over how many images fitted them."""
    methods = {
        "temperature": BEFORE,
        "logit_adjustment": WARN,
        "vector": ACCENT,
        "matrix": INK,
    }
    order = np.random.default_rng(0).permutation(len(evidence.labels))
    rank = np.empty(len(order), dtype=int)  # of each image within its class
    for label in range(len(evidence.classes)):
        own = order[evidence.labels[order] == label]
        rank[own] = np.arange(len(own))
    unseen = rank >= 50
    truth = evidence.labels[unseen]
    sizes = (2, 3, 5, 10, 20, 50)
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.2))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for size in sizes:
        known = Evidence(part_of(evidence.context, rank < size), "part")
        for name in methods:
            logits = calibrate(known, methods=[name]).fix.apply(evidence.logits[unseen])
            right = logits.argmax(1) == truth
            share = np.mean([right[truth == label].mean() for label in np.unique(truth)])
            found[name].append((100 * share, negative_log_likelihood(logits, truth)))
            told(
                f"{size} images per class, {name}",
                {"all": found[name][-1][0], "NLL": found[name][-1][1]},
            )
    # Of each name: the size it stands at, and where from the line, in the left and right panel.
    moves = {
        "temperature": ((2, (0, 3)), (2, (0, 3))),
        "logit_adjustment": ((2, (0, 5)), (2, (0, -5))),
        "vector": ((2, (0, -11)), (2, (0, 3))),
        "matrix": ((5, (8, -1)), (5, (6, 2))),
    }
    for place, axes in enumerate(panels):
        for name, colour in methods.items():
            values = dict(zip(sizes, (one[place] for one in found[name]), strict=True))
            axes.plot(sizes, list(values.values()), "o-", color=colour, markersize=4)
            size, move = moves[name][place]
            label_line(axes, (size, values[size]), name, SOFT if colour == BEFORE else colour, move)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("validation images per class")
    panels[0].set_title("accuracy over classes, %")
    panels[1].set_title("negative log-likelihood")
    return figure


def sigmoid_head(context: FixContext) -> Head:
    """Return a head of independent sigmoids, trained on the training features by L-BFGS."""
    assert context.train_features is not None
    assert context.train_labels is not None
    inputs = torch.from_numpy(context.train_features).double()
    targets = torch.nn.functional.one_hot(torch.from_numpy(context.train_labels)).double()
    weight = torch.zeros(targets.shape[1], inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.full((targets.shape[1],), -4.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            inputs @ weight.T + bias, targets
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)
    return Head("linear", weight.detach().numpy(), bias.detach().numpy(), activation="sigmoid")


def platt(done: Calibration, evidence: Evidence) -> Figure:
    """Draw scores of a sigmoid head against what happens, before and after Platt's curves."""
    context = evidence.context
    head = sigmoid_head(context)
    assert context.features is not None
    assert head.bias is not None
    logits = context.features @ head.weight.T + head.bias
    half = np.random.default_rng(0).permutation(len(logits)) % 2 == 0
    known = part_of(replace(context, head=head, logits=logits), half)
    mapped = Platt().fit(known).apply(logits)
    shown = np.eye(logits.shape[1], dtype=bool)[evidence.labels[~half]]
    groups = np.array(evidence.classes.groups)
    edges = np.array([0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0])
    figure, panels = plt.subplots(1, 3, figsize=(7, 2.9), sharey=True)
    for axes, name in zip(panels, GROUPS, strict=True):
        axes.plot([0.001, 1], [0.001, 1], color=LINE, linewidth=1)
        for scores, colour in ((logits, BEFORE), (mapped, COLOURS[name])):
            score = (1 / (1 + np.exp(-scores[~half])))[:, groups == name].ravel()
            happened = shown[:, groups == name].ravel()
            place = np.digitize(score, edges)
            some = [p for p in range(1, len(edges)) if happened[place == p].sum() >= 5]
            axes.loglog(
                [score[place == p].mean() for p in some],
                [happened[place == p].mean() for p in some],
                "o-",
                color=colour,
                markersize=3.5,
                linewidth=1.5,
            )
            told(
                f"platt, {name}", {"mean score": 100 * score.mean(), "share": 100 * happened.mean()}
            )
        ticks = (0.001, 0.01, 0.1, 1)
        axes.set(xlim=(0.0008, 1.1), ylim=(0.0008, 1.1))
        set_x_ticks(axes, ticks, ["0.1", "1", "10", "100"])
        axes.set_yticks(ticks, ["0.1", "1", "10", "100"])
        axes.minorticks_off()
        axes.set_title(name, color=COLOURS[name])
        axes.set_aspect("equal")
    panels[0].set_ylabel("share that is the class, %")
    panels[2].text(0.006, 0.13, "before", color=SOFT, ha="center")
    panels[2].text(0.06, 0.016, "after", color=COLOURS["few"])
    panels[1].set_xlabel("score, %")
    return figure


def heads(done: Calibration, evidence: Evidence) -> Figure:
    """Draw heads that replace the old one: class means, and one that is learnt again."""
    by_name = {result.name: result for result in done.methods}
    chosen = {
        "as it came": "none",
        "ncm": "ncm",
        "ncm:variant=l2": "ncm:variant=l2",
        "ncm:variant=centred_l2": "ncm:variant=centred_l2",
        "crt": "crt",
        "tau_norm": "tau_norm",
        "logit_adjustment": "logit_adjustment",
    }
    figure, axes = plt.subplots(figsize=(7, 3.2))
    draw_methods(
        axes, [(shown, by_name[name]) for shown, name in chosen.items() if name in by_name]
    )
    return figure


def disalign(done: Calibration, evidence: Evidence) -> Figure:
    """Draw the accuracies over ρ."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    draw_sweep(axes, sweep_of(done, "disalign"), x_label="ρ")
    axes.set_ylabel("accuracy, %")
    return figure


def group_boost(done: Calibration, evidence: Evidence) -> Figure:
    """Draw the accuracy over classes for every pair of boosts, and what is chosen."""
    logits, labels = evidence.logits, evidence.labels
    groups = np.array([GROUPS.index(name) for name in evidence.classes.groups])
    best = np.stack([logits[:, groups == g].max(axis=1) for g in range(3)], axis=1)
    leading = logits[np.arange(len(labels)), labels] >= best[np.arange(len(labels)), groups[labels]]
    worth = 100.0 / np.bincount(labels)[labels] / len(evidence.classes)
    medium, few = np.linspace(0, 4, 41), np.linspace(0, 6, 61)
    reach = np.empty((len(few), len(medium)))
    for row, of_few in enumerate(few):
        for column, of_medium in enumerate(medium):
            winner = (best + np.array([0.0, of_medium, of_few])).argmax(axis=1)
            reach[row, column] = worth @ (leading & (winner == groups[labels]))
    fitted = fit_chain([parse_spec("group_boost").fixed()], evidence.context)
    shift = fitted.apply(np.zeros((1, len(groups))))[0]
    boosts = {name: float(shift[groups == place][0]) for place, name in enumerate(GROUPS)}
    top = np.unravel_index(reach.argmax(), reach.shape)
    told(
        "group_boost",
        {**boosts, "best": reach.max(), "at few": few[top[0]], "at medium": medium[top[1]]},
    )
    figure, axes = plt.subplots(figsize=(7, 3.8))
    tints = LinearSegmentedColormap.from_list("tints", ["#ffffff", "#8fc9c1"])
    axes.contourf(medium, few, reach, levels=np.arange(22, 34), cmap=tints, extend="min")
    lines = axes.contour(
        medium, few, reach, levels=np.arange(22, 32, 2), colors=SOFT, linewidths=0.7
    )
    axes.clabel(lines, fmt="%g %%", fontsize=8, colors=INK)
    for x, y, text in (
        (0.0, 0.0, f"as it came, {reach[0, 0]:.1f} %"),
        (boosts["medium"], boosts["few"], f"fitted, {reach.max():.1f} %"),
    ):
        axes.plot(x, y, "o", color=INK, markersize=6, clip_on=False, zorder=5)
        axes.annotate(text, (x, y), xytext=(8, 5), textcoords="offset points")
    set_x_ticks(axes, range(5), [str(boost) for boost in range(5)])
    axes.tick_params(axis="y", pad=8)
    axes.set(xlabel="boost of the medium group (log)", ylabel="boost of the few group (log)")
    axes.grid(visible=False)
    return figure


PICTURES: dict[str, Callable[[Calibration, Evidence], Figure]] = {
    draw.__name__: draw
    for draw in (
        overview,
        tau_norm,
        logit_adjustment,
        label_shift,
        scaling,
        matrix,
        platt,
        heads,
        disalign,
        group_boost,
    )
}


def main() -> None:
    """Compare all methods once, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these pictures")
    given = parser.parse_args()
    use_report_style()
    evidence = read_evidence(given.data, given.cache)
    tell_costs(evidence)
    done = calibrate(evidence)
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in given.names or PICTURES:
        figure = PICTURES[name](done, evidence)
        save(figure, IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
