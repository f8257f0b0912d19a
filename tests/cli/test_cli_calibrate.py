"""``calibrate`` as a user types it: arrays, checkpoints, what comes out, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import draw_photo, write_checkpoint

from ltdeploy.fixes import read_fix_file

COUNTS = [500, 200, 120, 60, 30, 20, 12, 6, 4, 2]
TRAINED_ON = [9, 7, 5, 4, 3, 2]
Cli = Callable[..., tuple[int, str, str]]


def drawn(counts: list[int] | None = None, images_per_class: int = 12) -> dict[str, Any]:
    """Return logits that know their class and lean to frequent ones, with labels and counts."""
    rng = np.random.default_rng(0)
    given = np.array(COUNTS if counts is None else counts)
    labels = np.repeat(np.arange(len(given)), images_per_class)
    logits = rng.normal(scale=1.5, size=(len(labels), len(given)))
    logits[np.arange(len(labels)), labels] += 2.5
    logits += 0.8 * np.log(given / given.sum())
    return {"logits": logits.astype(np.float32), "labels": labels, "counts": given}


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Any]:
    """Arrays that stand in ``arrays.npz``, in the folder where commands run."""
    content = drawn()
    np.savez(tmp_path / "arrays.npz", **content)
    return content


def save(folder: Path, content: dict[str, Any]) -> str:
    np.savez(folder / "arrays.npz", **content)
    return "arrays.npz"


# Arrays


def test_logits_labels_and_counts_are_enough(
    cli: Cli, arrays: dict[str, Any], tmp_path: Path
) -> None:
    code, said, told = cli("calibrate", "arrays.npz", "--json", "result.json")
    assert (code, told) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    gains = {method["name"]: method["figures"]["balanced"]["value"] for method in result["methods"]}
    chosen = result["chosen"]["name"]
    assert gains[chosen] > gains["none"] + 5
    assert f"→ {chosen}" in said
    assert f"Chosen   {result['chosen']['reason']}" in said
    assert "Fix      fix.json" in said
    assert "crt: each needs features of training images" in said
    file = read_fix_file(tmp_path / "fix.json")
    assert [entry.method for entry in file.methods] == [
        method["method"] for method in result["chosen"]["methods"]
    ]
    assert file.checkpoint is None
    fix = file.logit_map()
    assert fix is not None
    fixed = fix.apply(arrays["logits"]).argmax(axis=1)
    right, before = ((top == arrays["labels"]) for top in (fixed, arrays["logits"].argmax(axis=1)))
    assert right.mean() > before.mean() + 0.05  # classes have equally many images here
    page = (tmp_path / "fix.html").read_text()
    assert result["chosen"]["reason"].split(" takes ")[0] in page
    assert not (tmp_path / "kept").exists()  # there is nothing to cache


FIGURE = {"value", "low", "high"}
RELIABILITY = {"bins", "ece", "accuracy", "confidence"}


def test_the_keys_of_the_json_are_frozen(cli: Cli, arrays: dict[str, Any]) -> None:
    methods = ["--method", "logit_adjustment", "--method", "vector", "--method", "temperature"]
    code, said, told = cli("calibrate", "arrays.npz", *methods, "--json", "-", "-q")
    assert (code, told) == (0, "")
    result = json.loads(said)
    assert list(result) == [
        "schema",
        "objective",
        "target_prior",
        "max_head_loss",
        "images",
        "folds",
        "groups",
        "chosen",
        "warnings",
        "skipped",
        "methods",
        "sweeps",
        "confidence",
        "classes",
        "provenance",
    ]
    assert (result["schema"], result["objective"], result["target_prior"]) == (
        1,
        "balanced",
        "uniform",
    )
    assert (result["images"], result["folds"], result["groups"]) == (
        120,
        5,
        ["many", "medium", "few"],
    )
    assert set(result["chosen"]) == {"name", "methods", "reason"}
    assert result["methods"][0]["name"] == "none"
    for method in result["methods"]:
        assert set(method) == {
            "name",
            "freedom",
            "methods",
            "per_fold",
            "figures",
            "objective",
            "behind",
            "head_change",
            "status",
            "note",
        }
        assert set(method["objective"]) == set(method["head_change"]) == FIGURE
        assert set(method["behind"]) == {"value", "standard_error"}
        figures = method["figures"]
        assert set(figures) == {
            "overall",
            "balanced",
            "harmonic",
            "worst",
            "groups",
            "nll",
            "ece",
            "classwise_ece",
            "group_ece",
        }
        assert set(figures["worst"]) == {*FIGURE, "label", "images"}
        assert set(figures["groups"]) == set(figures["group_ece"]) == {"many", "medium", "few"}
        for figure in (figures["balanced"], figures["nll"], figures["groups"]["few"]):
            assert set(figure) == FIGURE
            assert figure["low"] <= figure["value"] <= figure["high"]
    (sweep,) = (one for one in result["sweeps"] if one["method"] == "logit_adjustment")
    assert set(sweep) == {"method", "parameter", "values", "series", "chosen"}
    assert set(sweep["series"]) == {"overall", "balanced", "harmonic", "many", "medium", "few"}
    assert len(sweep["values"]) == len(sweep["series"]["few"])
    assert set(result["confidence"]) == {"before", "after"}
    for sets in result["confidence"].values():
        assert set(sets) == {"all", "many", "medium", "few"}
        assert all(set(one) == RELIABILITY for one in sets.values())
        assert set(sets["all"]["bins"][0]) == {"confidence", "accuracy", "count"}
    assert set(result["classes"][0]) == {
        "name",
        "label",
        "group",
        "train_count",
        "images",
        "before",
        "after",
    }
    assert set(result["provenance"]) == {"Data", "Images", "Date", "ltdeploy"}


def test_quiet_says_nothing_and_the_same_seed_chooses_the_same(
    cli: Cli, arrays: dict[str, Any], tmp_path: Path
) -> None:
    told = ["calibrate", "arrays.npz", "--method", "vector", "-q"]
    assert cli(*told) == (0, "", "")
    first = (tmp_path / "fix.json").read_bytes()
    assert cli(*told, "--out", "again.json", "--html", "other.html") == (0, "", "")
    assert (tmp_path / "again.json").read_bytes() == first
    assert (tmp_path / "other.html").exists()
    assert not (tmp_path / "again.html").exists()


def test_methods_by_name_are_all_that_is_tried(cli: Cli, arrays: dict[str, Any]) -> None:
    code, said, _ = cli(
        "calibrate",
        "arrays.npz",
        *("--method", "logit_adjustment:tau=1"),
        *("--method", "temperature+logit_adjustment:tau=0.5"),
        *("--json", "-"),
    )
    assert code == 0
    result = json.loads(said)
    assert {method["name"] for method in result["methods"]} == {
        "none",
        "logit_adjustment:tau=1",
        "temperature+logit_adjustment:tau=0.5",
        "temperature",  # to leave decisions as they are, should the two do harm
    }
    assert result["skipped"] == []


def test_the_head_is_spared_where_it_must_be(cli: Cli, arrays: dict[str, Any]) -> None:
    told = ["calibrate", "arrays.npz", "--method", "logit_adjustment", "--json", "-", "-q"]
    free = json.loads(cli(*told)[1])
    held = json.loads(cli(*told, "--max-head-loss", "25")[1])
    assert held["max_head_loss"] == 25
    chosen = next(method for method in held["methods"] if method["status"] == "chosen")
    assert chosen["name"] == "logit_adjustment"
    assert chosen["head_change"]["low"] >= -25
    assert free["sweeps"][0]["chosen"] > held["sweeps"][0]["chosen"] > 0
    many = held["sweeps"][0]["series"]["many"]
    assert many[0] - many[held["sweeps"][0]["values"].index(held["sweeps"][0]["chosen"])] <= 25
    code, said, _ = cli(*told[:4], "--max-head-loss", "0")
    assert code == 0
    assert "→ logit_adjustment:tau=0 " in said
    assert "Chosen   No change of decisions" in said
    code, said, _ = cli(*told[:3], "vector", "--max-head-loss", "0")
    assert code == 0
    assert "✗ vector" in said
    assert "✗ may cost the many group more than 0 points, by the lower end" in said
    assert "→ temperature" in said
    assert "vector would reach" in said


def test_a_file_that_is_no_fix_is_not_overwritten(
    cli: Cli, arrays: dict[str, Any], tmp_path: Path
) -> None:
    told = ["calibrate", "arrays.npz", "--method", "temperature", "-q"]
    (tmp_path / "fix.json").write_text('{"mine": 1}')
    code, _, error = cli(*told)
    assert code == 2
    assert "is no fix of ltdeploy's; it is left alone" in error
    assert (tmp_path / "fix.json").read_text() == '{"mine": 1}'
    assert cli(*told, "--out", "other.json")[0] == 0
    assert cli(*told, "--out", "other.json")[0] == 0  # its own is replaced
    (tmp_path / "third.html").write_text("<p>my thesis")
    code, _, error = cli(*told, "--out", "third.json")
    assert code == 2
    assert "is no report of ltdeploy's; it is left alone. Say --html" in error
    assert (tmp_path / "third.html").read_text() == "<p>my thesis"


@pytest.mark.parametrize(
    ("first", "text"),
    [
        ("array.npy", "holds one array; a choice needs three"),
        ("data.parquet", "is data; the first"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_it_is(cli: Cli, first: str, text: str) -> None:
    code, _, error = cli("calibrate", first)
    assert code == 2
    assert text in error


def test_a_method_that_does_harm_gives_way(cli: Cli, arrays: dict[str, Any]) -> None:
    code, said, _ = cli("calibrate", "arrays.npz", "--method", "logit_adjustment:tau=6")
    assert code == 0
    assert "Chosen   No change of decisions" in said
    assert "(--force, or force=True, has it all the same)" in said
    forced = cli("calibrate", "arrays.npz", "--method", "logit_adjustment:tau=6", "--force")[1]
    assert "logit_adjustment:tau=6 lowers class-averaged accuracy" in forced


def test_a_narrow_terminal_gets_whole_names(
    cli: Cli, arrays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltdeploy.cli.output import Output

    told = ["calibrate", "arrays.npz", "--method", "bias_corrected_temperature"]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert Output().console.width == 80  # or this proves nothing
    code, said, _ = cli(*told)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    table = plain.partition("Accuracies and ECE")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "…" not in "\n".join(table).replace(" … ", "")
    for word in ("bias_corrected_temperature", "l2=", "many", "medium", "few", "balanced"):
        assert word in "\n".join(table)
    assert "The report has all figures" in said


@pytest.mark.parametrize("groups", ["no few", "one class", "two classes"])
def test_odd_class_tables_are_as_good_as_any(cli: Cli, tmp_path: Path, groups: str) -> None:
    counts = {
        "no few": [900, 500, 200, 150],
        "one class": [900, 500, 200, 3],
        "two classes": [900, 3],
    }[groups]
    path = save(tmp_path, drawn(counts, 20))
    code, said, told = cli("calibrate", path, "--method", "logit_adjustment", "--json", "-")
    assert code == 0
    result = json.loads(said)
    measured = result["methods"][0]["figures"]["groups"]
    assert (measured["few"] is None) == (groups == "no few")
    assert "medium" not in told.splitlines()[1]  # a group without classes has no column
    assert len(result["classes"]) == len(counts)


def test_strange_names_are_shown_as_they_are(cli: Cli, tmp_path: Path) -> None:
    names = [f"<b>[red]{'very ' * 30}long {label}</b>" for label in range(10)]
    content = {**drawn(), "names": np.array(names)}
    keep = content["labels"] < 9
    content |= {"logits": content["logits"][keep], "labels": content["labels"][keep]}
    code, _, told = cli("calibrate", save(tmp_path, content), "--method", "temperature")
    assert code == 0
    assert f"1 of 10 classes have no validation image and stand in no figure: {names[9]}." in told
    page = (tmp_path / "fix.html").read_text()
    assert "<b>[red]" not in page
    assert "&lt;b&gt;[red]" in page or "\\u003cb>[red]" in page


# What goes wrong with arrays


def without_last_classes(content: dict[str, Any]) -> dict[str, Any]:
    keep = content["labels"] < 7
    return {**content, "logits": content["logits"][keep], "labels": content["labels"][keep]}


def with_training(content: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        **content,
        "features": rng.normal(size=(len(content["labels"]), 4)),
        "train_features": rng.normal(size=(30, 4)),
        "train_labels": np.arange(30) % 10,
    }


def with_nan(content: dict[str, Any]) -> dict[str, Any]:
    logits = content["logits"].copy()
    logits[17, 4] = np.nan
    return {**content, "logits": logits}


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "all of one class": (lambda c: {**c, "labels": c["labels"] * 0 + 3}, "120 images of 1 class"),
    "labels from 1": (
        lambda c: {**c, "labels": c["labels"] + 1},
        "'labels' holds 12 labels outside 0..9, the first is 10 in row 108",
    ),
    "negative labels": (lambda c: {**c, "labels": c["labels"] - 1}, "the first is -1 in row 0"),
    "NaN": (with_nan, "'logits' is not finite: row 17 has nan"),
    "counts for fewer": (
        lambda c: {**c, "counts": c["counts"][:9]},
        "10 columns and there are 9 training counts",
    ),
    "counts that contradict": (with_training, "contradict the training data for"),
    "a row too few": (lambda c: {**c, "labels": c["labels"][1:]}, "expected 120 whole numbers"),
    "misspelt": (lambda c: {**c, "feature": c["logits"]}, "Did you mean 'features'?"),
    "no counts": (lambda c: {"logits": c["logits"], "labels": c["labels"]}, "lacks counts"),
    "objects": (lambda c: {**c, "names": np.array([object()] * 10)}, "holds Python objects"),
    "counts of parts": (lambda c: {**c, "counts": c["counts"] + 0.5}, "one whole number per class"),
    "probabilities": (
        lambda c: {**c, "logits": np.exp(c["logits"]) / np.exp(c["logits"]).sum(1, keepdims=True)},
        "every row sums to 1",
    ),
    "shuffled": (lambda c: {**c, "labels": c["labels"][::-1]}, "do not belong together"),
    "negative counts": (lambda c: {**c, "counts": -c["counts"]}, "-500"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_cannot_be_used(cli: Cli, tmp_path: Path, name: str) -> None:
    change, text = REFUSED[name]
    earlier = '{"methods": "of an earlier run"}<p class="brand">ltdeploy <span>'
    for made in ("fix.json", "fix.html", "result.json"):
        (tmp_path / made).write_text(earlier)
    told = ["--method", "temperature", "--json", "result.json"]
    code, said, error = cli("calibrate", save(tmp_path, change(drawn())), *told)
    assert (code, said) == (2, "")
    assert text in error
    for made in ("fix.json", "fix.html", "result.json"):
        assert (tmp_path / made).read_text() == earlier
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "arrays.npz",
        "fix.html",
        "fix.json",
        "result.json",
    ]


def test_validation_data_without_some_classes_is_named(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path, without_last_classes(drawn()))
    code, _, told = cli("calibrate", path)
    assert code == 0
    assert "3 of 10 classes have no validation image and stand in no figure: 7, 8, 9" in told


def test_one_image_per_class_is_warned_of(cli: Cli, tmp_path: Path) -> None:
    code, said, told = cli("calibrate", save(tmp_path, drawn(images_per_class=1)))
    assert code == 0
    assert "10 classes have fewer than 3 validation images" in told
    assert "Not tried: matrix: it learns 110 numbers, too many for 10 images" in said


def test_a_singular_confusion_matrix_is_refused(cli: Cli, tmp_path: Path) -> None:
    content = drawn()
    content["logits"][:, 9] -= 100  # what is never predicted cannot be counted
    path = save(tmp_path, {**content, "target_logits": content["logits"][:50]})
    method = "label_shift:estimator=bbse,source=validation"
    code, _, told = cli("calibrate", path, "--method", method, "--target-prior", "uniform")
    assert code == 2
    assert "label_shift: the confusion matrix" in told
    assert "singular" in told
    assert "estimator=rlls or em" in told
    assert not (tmp_path / "fix.json").exists()


def test_an_optimiser_that_does_not_converge_is_named(
    cli: Cli, arrays: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ltdeploy.fixes.likelihood._NEWTON_STEPS", 1)
    code, _, told = cli("calibrate", "arrays.npz", "--method", "vector")
    assert code == 2
    assert "vector" in told
    assert "converge" in told
    assert not (tmp_path / "fix.json").exists()
    # Among others it is left out, by name.
    code, said, _ = cli("calibrate", "arrays.npz")
    assert code == 0
    (line,) = (line for line in said.splitlines() if line.startswith("Not tried: vector"))
    assert "converge" in line


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--objective", "balancd"], "Did you mean 'balanced'?"),
        (
            ["--max-head-loss=-1"],
            "head loss allowed is -1.0; expected points of accuracy, 0 or more",
        ),
        (["--max-head-loss", "nan"], "expected points of accuracy"),
        (["--folds", "1"], "number of folds is 1; expected 2 or more"),
        (["--seed=-1"], "--seed is -1; expected 0 or more"),
        (["--method", "logit_adjustmnt"], "Did you mean 'logit_adjustment'?"),
        (["--method", "logit_adjustment:tua=1"], "Did you mean 'tau'?"),
        (["--method", "tau_norm"], "tau_norm needs the head's weights"),
        (["--method", "crt"], "--train DATA, or 'train_features'"),
        (["--method", "label_shift"], "--target DATA, or 'target_logits'"),
        (["--method", "auto", "--method", "vector"], "leave the others out"),
        (["--method", "vector+"], "Unknown fix ''"),
        (["--trained-with", "balanced_sofmax"], "Did you mean 'balanced_softmax'?"),
        (["--out", "fix"], "ends in .json, like fix.json"),
        (["--out", "no/such/fix.json"], "its folder does not exist"),
        (["--html", "no/such/fix.html"], "--html is 'no/such/fix.html' and its folder"),
        (["--json", "no/such/r.json"], "--json is 'no/such/r.json' and its folder"),
        (["--json", "arrays.npz"], "--json would overwrite what is to be calibrated"),
        (["--json", "fix.json"], "--json would overwrite --out"),
        (["--html", "fix.json"], "--html would overwrite --out"),
        (["--html", "."], "a folder; expected a file"),
        (["--val", "photos"], "--val is for checkpoints"),
        (["--train", "photos"], "--train is for checkpoints"),
        (["--target", "photos"], "--target is for checkpoints"),
        (["--arch", "timm:resnet50"], "--arch is for checkpoints"),
        (["--cache", "x"], "--cache is for checkpoints"),
        (["--cache", "x", "--no-cache"], "contradict each other"),
        (["--target-prior", "absent.csv"], "absent.csv does not exist"),
    ],
)
def test_options_that_cannot_be_meant(
    cli: Cli, arrays: dict[str, Any], tmp_path: Path, options: list[str], text: str
) -> None:
    code, said, told = cli("calibrate", "arrays.npz", *options)
    assert (code, said) == (2, "")
    assert text in told
    assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]


def test_a_balanced_model_is_not_corrected_twice(cli: Cli, arrays: dict[str, Any]) -> None:
    told = ["calibrate", "arrays.npz", "--trained-with"]
    code, said, _ = cli(*told, "Balanced-Softmax")
    assert code == 0
    (line,) = (x for x in said.splitlines() if x.startswith("Not tried: logit_adjustment"))
    assert "trained with balanced_softmax" in line
    assert "would correct twice" in line
    assert "→ logit_adjustment" not in said
    only = ["--method", "logit_adjustment"]
    for sampler in ("balanced_softmax", "resample", "DRW"):
        code, _, error = cli(*told, sampler, *only)
        assert code == 2
        assert "twice" in error
    assert cli(*told, "balanced_softmax", *only, "--force")[0] == 0
    for harmless in ("cross_entropy", "focal", "ldam"):
        assert cli(*told, harmless, *only)[0] == 0


# Priors


def write_prior(folder: Path, rows: list[str]) -> str:
    (folder / "prior.csv").write_text("\n".join(["name,count", *rows]) + "\n")
    return "prior.csv"


def test_a_target_prior_is_read_by_name(cli: Cli, tmp_path: Path) -> None:
    names = [f"moth {label}" for label in range(10)]
    path = save(tmp_path, {**drawn(), "names": np.array(names)})
    told = ["calibrate", path, "--method", "logit_adjustment", "--json", "-", "-q"]
    shares = [100, *[1] * 9]
    straight = [f"{name},{share}" for name, share in zip(names, shares, strict=True)]
    code, said, _ = cli(*told, "--target-prior", write_prior(tmp_path, straight))
    assert code == 0
    result = json.loads(said)
    assert (result["target_prior"], result["objective"]) == ("given", "overall")
    again = json.loads(cli(*told, "--target-prior", write_prior(tmp_path, straight[::-1]))[1])
    assert again["methods"] == result["methods"]
    # Where the head comes often, it is left alone; where the tail does, it is not.
    tail = [f"{name},{share}" for name, share in zip(names, shares[::-1], strict=True)]
    other = json.loads(cli(*told, "--target-prior", write_prior(tmp_path, tail))[1])
    assert result["sweeps"][0]["chosen"] < 0.5 < other["sweeps"][0]["chosen"]


def test_a_target_prior_of_unknown_classes_is_refused(cli: Cli, tmp_path: Path) -> None:
    names = np.array([f"moth {label}" for label in range(10)])
    path = save(tmp_path, {**drawn(), "names": names})
    prior = write_prior(tmp_path, ["moth 0,1", "unicorn,1", "dragon,5"])
    code, _, told = cli("calibrate", path, "--target-prior", prior)
    assert code == 2
    assert "2 classes that the model does not know, the first is 'unicorn'" in told


def test_the_prior_of_target_images_is_estimated(cli: Cli, tmp_path: Path) -> None:
    content = drawn(images_per_class=20)
    often = np.concatenate([np.flatnonzero(content["labels"] == 0)] * 8)
    target = np.concatenate([often, np.arange(len(content["labels"]))])
    path = save(tmp_path, {**content, "target_logits": content["logits"][target]})
    code, said, _ = cli("calibrate", path, "--json", "result.json")
    assert code == 0
    assert said.startswith("Target   prior estimated without labels: most frequent class 0 ")
    result = json.loads((tmp_path / "result.json").read_text())
    tried = {method["name"] for method in result["methods"]}
    assert any("label_shift" in name for name in tried)
    assert "target_prior" not in tried  # what was estimated is learnt, and no declaration
    assert result["objective"] == "overall"
    assert result["target_prior"] == "estimated"
    assert any("if it were exact" in text for text in result["warnings"])


# Checkpoints


def draw_set(folder: Path, counts: list[int], first: int) -> Path:
    """Draw pictures of the checkpoint's classes, different for each ``first``."""
    for label, count in enumerate(counts):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(count):
            photo = draw_photo(first + 100 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def drawn_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint with the images that trained it, that choose its fix and that test it."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        "ckpt": write_checkpoint(folder / "ckpt.pt", train_counts=TRAINED_ON),
        "train": draw_set(folder / "train", TRAINED_ON, 10_000),
        "val": draw_set(folder / "val", [4] * 6, 20_000),
        "test": draw_set(folder / "test", [3] * 6, 30_000),
    }


def test_from_a_checkpoint_to_a_verified_bundle(
    cli: Cli, drawn_sets: dict[str, Path], tmp_path: Path
) -> None:
    ckpt, val, test = (drawn_sets[name] for name in ("ckpt", "val", "test"))
    told = ["calibrate", ckpt, "--val", val, "--train", drawn_sets["train"], "--json", "r.json"]
    code, said, _ = cli(*told, "--method", "bias_corrected_temperature", "--method", "ncm")
    assert code == 0
    assert f"export --fix fix.json {ckpt}" in said
    result = json.loads((tmp_path / "r.json").read_text())
    assert {m["name"] for m in result["methods"]} == {
        *("none", "temperature"),
        *("bias_corrected_temperature", "ncm"),
    }
    assert result["provenance"]["Checkpoint"] == "ckpt.pt"
    assert result["provenance"]["Training data"] == "train"
    file = read_fix_file(tmp_path / "fix.json")
    assert file.checkpoint is not None
    assert file.checkpoint.name == "ckpt.pt"
    assert len(file.hashes()) == 24

    code, said, _ = cli("export", "--fix", "fix.json", ckpt, "--out", "a.ltd")
    assert code == 0
    assert file.methods[0].method in said
    code, said, _ = cli("verify", "a.ltd", "--data", test, "--html", "v.html", "--json", "v.json")
    assert code == 0
    assert json.loads((tmp_path / "v.json").read_text())["verdict"] == "pass"
    code, _, error = cli("verify", "a.ltd", "--data", val, "--html", "w.html")
    assert code == 2
    assert "chose the fix or the precision of a.ltd" in error
    assert not (tmp_path / "w.html").exists()

    other = write_checkpoint(tmp_path / "other.pt", seed=5, train_counts=TRAINED_ON)
    code, _, error = cli("export", "--fix", "fix.json", other, "--out", "b.ltd")
    assert code == 2
    assert "was fitted on ckpt.pt" in error
    assert "other.pt" in error
    assert "--force" in error
    assert not (tmp_path / "b.ltd").exists()
    assert cli("export", "--fix", "fix.json", other, "--out", "b.ltd", "--force", "-q")[0] == 0


def test_every_method_applies_to_a_checkpoint_with_training_images(
    cli: Cli, drawn_sets: dict[str, Path]
) -> None:
    told = ["calibrate", drawn_sets["ckpt"], "--val", drawn_sets["val"], "--json", "-"]
    told += ["--train", drawn_sets["train"], "--target", drawn_sets["test"] / "species 0"]
    code, _, error = cli(*told)
    assert code == 2
    assert "3 unlabelled images are too few to tell how often 6 classes come" in error
    told += ["--force"]
    code, said, error = cli(*told)
    assert code == 0, error
    result = json.loads(said)
    tried = {method["name"] for method in result["methods"]}
    assert tried >= {"tau_norm", "tau_norm:bias=drop", "ncm", "crt", "disalign"}
    skipped = {one["method"]: one["reason"] for one in result["skipped"]}
    assert "sigmoid" in skipped["platt"]
    assert set(skipped) <= {"platt", "matrix", "dirichlet"}


def test_passes_are_kept_unless_told_otherwise(
    cli: Cli, drawn_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ltdeploy.cache

    passes = 0
    real = ltdeploy.cache.collect_logits

    def counted(*arguments: Any, **known: Any) -> Any:
        nonlocal passes
        passes += 1
        return real(*arguments, **known)

    monkeypatch.setattr(ltdeploy.cache, "collect_logits", counted)
    told = ["calibrate", drawn_sets["ckpt"], "--val", drawn_sets["val"], "--method", "temperature"]
    assert cli(*told, "-q", "--no-cache")[0] == 0
    assert not (tmp_path / "kept").exists()
    assert cli(*told, "-q")[0] == 0
    first = (tmp_path / "fix.json").read_bytes()
    assert passes == 2
    assert cli(*told, "-q")[0] == 0
    assert passes == 2
    assert (tmp_path / "fix.json").read_bytes() == first
    assert cli(*told, "-q", "--cache", "mine")[0] == 0
    assert passes == 3
    assert (tmp_path / "mine").is_dir()
    code, _, error = cli(*told, "--cache", "fix.json")
    assert code == 2
    assert "expected a folder, or --no-cache" in error


def test_checkpoints_need_images_that_fit(
    cli: Cli, drawn_sets: dict[str, Path], photo_folder: Path, tmp_path: Path
) -> None:
    ckpt, val = drawn_sets["ckpt"], drawn_sets["val"]

    def refused(*options: str | Path, ckpt: Path = ckpt) -> str:
        code, said, told = cli("calibrate", ckpt, *options, "--method", "temperature")
        assert (code, said) == (2, "")
        assert not (tmp_path / "fix.json").exists()
        return told

    assert "add --val DATA" in refused()
    assert "Did you mean" in refused("--val", val.with_name("vla"))
    assert "cat" in refused("--val", photo_folder)
    assert "among val's training images" in refused("--val", val, "--train", val)
    assert "contradict the training data" in refused("--val", val, "--train", drawn_sets["test"])
    assert "nothing.pt" in refused("--val", val, ckpt=tmp_path / "nothing.pt")
    shutil.copytree(val, tmp_path / "one")
    for label in range(1, 6):
        shutil.rmtree(tmp_path / "one" / f"species {label}")
    assert "images of 1 class" in refused("--val", "one")


def test_an_unreadable_image_is_named_and_left_out(
    cli: Cli, drawn_sets: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(drawn_sets["val"], tmp_path / "val")
    (tmp_path / "val" / "species 1" / "1.png").write_bytes(b"no image")
    told = ["calibrate", drawn_sets["ckpt"], "--val", "val", "--method", "temperature"]
    code, _, error = cli(*told, "--json", "r.json")
    assert code == 0
    assert "1.png" in error
    assert "1 images of val were left out" in error
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 23
