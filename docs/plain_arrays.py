"""Fix a long-tailed classifier from its logits alone: no checkpoint, no images.

    python docs/plain_arrays.py

A notebook in plain Python: editors that know ``# %%`` run it cell by cell. Needs the ``verify``
extra; takes some seconds. Put your own logits, labels and training counts in the place of the drawn
ones in the first cell, and go on from there.
"""

# %% [markdown]
# ## The data
# Thirty classes, from 500 training images down to 5. The "model" knows each class as a cloud of
# points, and leans as trained models do: towards what it saw most, and too sure of itself.

# %%
from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ltdeploy.calibrate import (
    Aim,
    Evidence,
    FixEstimator,
    calibrate,
    check_context,
    estimated_prior,
    read_npz,
)
from ltdeploy.classes import ClassTable
from ltdeploy.fixes import FixContext, TargetPrior

CLASSES, DEPTH = 30, 8
generator = np.random.default_rng(0)
counts = np.geomspace(500, 5, CLASSES).round().astype(int)
training_prior = counts / counts.sum()
centres = generator.normal(0, 1.1, (CLASSES, DEPTH))


def draw(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the model's logits, array of shape (N, C), of one new image per label."""
    points = centres[labels] + generator.normal(0, 1, (len(labels), DEPTH))
    distances = np.square(points[:, None] - centres).sum(axis=2)
    honest = -distances / 2 + np.log(training_prior)
    return (1.6 * honest).astype(np.float32)


labels = np.repeat(np.arange(CLASSES), 20)  # validation: images that the model was not trained on
logits = draw(labels)
test_labels = np.repeat(np.arange(CLASSES), 200)
test_logits = draw(test_labels)

# %% [markdown]
# ## How it is without a fix
# Accuracy per group of classes: many (more than 100 training images), medium, few (fewer than 20).

# %%
table = ClassTable.from_counts(counts.tolist())


def show(name: str, predicted: npt.NDArray[np.int64]) -> None:
    """Print the accuracy of each group and over all classes, in percent, on the test images."""
    right = np.array([(predicted[test_labels == c] == c).mean() for c in range(CLASSES)])
    by_group = {g: right[table.members(g)].mean() for g in table.rule.names} | {"all": right.mean()}
    print(f"{name:<34}" + "".join(f"{g} {100 * share:5.1f}   " for g, share in by_group.items()))


show("no fix", test_logits.argmax(axis=1))

# %% [markdown]
# ## One fix, with a strength that you say
# Logit adjustment takes the training prior off. It looks at nothing but the counts.

# %%
adjusted = FixEstimator("logit_adjustment:tau=1.0").fit(logits, counts=counts)
show("logit_adjustment:tau=1.0", adjusted.predict(test_logits))
print("the logits of an image's most and least frequent class, before and after:")
print(test_logits[0, [0, -1]].round(1), adjusted.transform(test_logits)[0, [0, -1]].round(1))

# %% [markdown]
# ## The same, with a strength that validation images choose
# Without a value in its name the strength is chosen by cross-validation, and a temperature follows,
# so that probabilities are honest.

# %%
tuned = FixEstimator("logit_adjustment").fit(logits, labels, counts=counts)
assert tuned.calibration_ is not None
print("chosen:", tuned.calibration_.chosen.methods())
show("logit_adjustment, chosen", tuned.predict(test_logits))
confidence = tuned.predict_proba(test_logits).max(axis=1).mean()
accuracy = (tuned.predict(test_logits) == test_labels).mean()
print(f"mean confidence {100 * confidence:.1f} %, accuracy {100 * accuracy:.1f} %")

# %% [markdown]
# ## The choice among all methods
# Every method that these arrays allow. Each figure comes from images that the fit did not see.

# %%
auto = FixEstimator("auto").fit(logits, labels, counts=counts)
done = auto.calibration_
assert done is not None
print(f"{'method':<30}{'learnt':>7}{'balanced, with 95 % interval':>32}{'NLL':>8}{'ECE':>7}")
for method in done.methods:
    figures = method.figures
    reached = figures.balanced
    print(
        f"{method.name:<30}{method.freedom:>7}"
        f"{f'{reached.value:.1f} ({reached.low:.1f} … {reached.high:.1f})':>32}"
        f"{figures.nll.value:>8.3f}{figures.ece.value:>7.1f}"
    )
print(done.reason)
for skipped in done.skipped[:2]:
    print(f"not tried: {skipped.reason}")
show("auto", auto.predict(test_logits))

# %% [markdown]
# What the common classes may lose can be limited, in points of accuracy. A loss counts as possible
# until the images rule it out, by the lower end of its interval: 80 images of the common classes
# rule out little.

# %%
careful = FixEstimator("auto", max_head_loss=15.0).fit(logits, labels, counts=counts)
assert careful.calibration_ is not None
print(careful.calibration_.reason)
show("auto, many may lose 15 points", careful.predict(test_logits))

# %% [markdown]
# ## Label shift
# Unlabelled images from where the model will be used. Here the rare classes have become common.
# How often each class comes is estimated from the logits of these images alone.

# %%
shares = training_prior[::-1]
target_labels = generator.choice(CLASSES, 4000, p=shares)
target_logits = draw(target_labels)

shift = FixEstimator("bias_corrected_temperature:l2=0.01+label_shift:source=validation")
shift.fit(logits, labels, counts=counts, target_logits=target_logits)


def right_in_use(predicted: npt.NDArray[np.int64]) -> str:
    """Return the share of the target images that are answered rightly."""
    return f"{100 * (predicted == target_labels).mean():.1f} %"


print("in use, no fix:                 ", right_in_use(target_logits.argmax(axis=1)))
print("in use, auto:                   ", right_in_use(auto.predict(target_logits)))
print("in use, label shift:            ", right_in_use(shift.predict(target_logits)))

context = FixContext(classes=table, logits=logits, labels=labels, target_logits=target_logits)
estimate = estimated_prior(check_context(context))
print("share of the rarest class in training, in use, estimated:", end=" ")
print(f"{training_prior[-1]:.4f}, {shares[-1]:.4f}, {estimate[-1]:.4f}")

# %% [markdown]
# ## A prior that you know
# Where you know how often classes come, say it: any unit will do, counts too. The formula trusts
# the model's probabilities, and this model is too sure. So it is better to let the choice be made
# for that prior.

# %%
known = FixEstimator(TargetPrior(tuple(shares.tolist()))).fit(logits, counts=counts)
print("in use, known prior, by formula:", right_in_use(known.predict(target_logits)))

evidence = Evidence(
    check_context(FixContext(classes=table, logits=logits, labels=labels)), "arrays"
)
chosen = calibrate(evidence, aim=Aim("overall", target_prior=shares))
print(chosen.reason)
fixed = chosen.fix.apply(target_logits)
print("in use, chosen for the prior:   ", right_in_use(fixed.argmax(axis=1)))

# %% [markdown]
# ## On the command line
# The same arrays in a file give the same choice, a report to look at, and a `fix.json`:
# `ltdeploy calibrate arrays.npz`. The file may hold more, `docs/calibrate.md` lists it.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "arrays.npz"
    np.savez(path, logits=logits, labels=labels, counts=counts)
    written = read_npz(path)
print(f"arrays.npz: {len(written.labels)} images of {len(written.classes)} classes")
