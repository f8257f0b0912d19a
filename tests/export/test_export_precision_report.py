"""The report of a lowered precision: as a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from precision_report_samples import hostile, page_of, result_of, single, text_of
from precision_samples import DrawnDataset, pictures
from report_pages import HOSTILE_NAMES, Document
from samples import write_checkpoint

from ltdeploy.cli.export import export_result
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.export import PrecisionRequest, export_bundle
from ltdeploy.export.precision.damage import margins
from ltdeploy.images import normalise
from ltdeploy.models.classifier import load_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the result of a real export in which int8 destroys one layer.

    Labels are what the float32 model answers, so that every change of an answer is a loss.
    """
    folder = tmp_path_factory.mktemp("precision")
    model = load_checkpoint(with_outlier(write_checkpoint(folder / "moths.pt")))
    engine = reference_engine(model)
    logits = engine.run({"images": pictures(300)})["logits"]
    engine.close()
    labels = logits.argmax(axis=1).astype(np.int64)
    sure = np.argsort(margins(logits, labels))[-150:]
    request = PrecisionRequest(
        precision="int8",
        calibration=DrawnDataset(np.arange(48, dtype=np.int64) % 6),
        calibration_images=48,
        gate=DrawnDataset(labels[sure], sure),
        engine="onnxruntime",
        margin=2.0,
    )
    done = export_bundle(model, [], folder / "moths.ltd", precision=request)
    return export_result(done)


def with_outlier(path: Path) -> Path:
    """Make one channel between two convolutions large, and have the second take it back."""
    model = load_checkpoint(path)
    block = model.module.get_submodule("layer2.1")
    with torch.no_grad():
        block.bn1.weight[3] *= 300.0
        block.bn1.bias[3] *= 300.0
        block.conv2.weight[:, 3] /= 300.0
        # Drawn weights prefer one class always; taking the mean off lets every class win.
        images = torch.from_numpy(normalise(pictures(200), model.preprocessing))
        model.module.get_submodule(model.head_path).bias -= model.module(images).mean(dim=0)
    record = torch.load(path, weights_only=True)
    torch.save({**record, "state_dict": model.module.state_dict()}, path)
    return path


def trial_rows(page: str) -> list[str]:
    section = page.partition('id="trials"')[2].partition("</section>")[0]
    return re.findall(r"<tr[^>]*><th scope=\"row\".*?</tr>", section, re.DOTALL)


def test_a_real_export_is_told_in_full(exported: dict[str, Any]) -> None:
    lowering = exported["lowering"]
    assert len(lowering["trials"]) > 1
    page = page_of(exported)
    assert Document(page).json("result-data") == json.loads(json.dumps(exported))
    rows = trial_rows(page)
    assert len(rows) == len(lowering["trials"])
    (chosen,) = [row for row in rows if "chosen" in row]
    assert re.sub("<.*?>", "", chosen).startswith(
        f"{len(lowering['restored'])} layer{'s'[: len(lowering['restored']) > 1]}chosen"
    )
    told = text_of(exported)
    assert f"{len(lowering['restored'])} of {len(lowering['damage'])} layers restored" in told
    assert page.count(", restored</text>") == len(lowering["restored"])
    assert "150 of drawn; figures for a report should come from others" in told


def test_the_banner_says_what_the_rarest_group_pays() -> None:
    told = text_of(result_of())
    assert (
        "int8, with 9 of 52 layers restored to float32, costs the few group 0.60 points (95 % "
        "interval −0.98 … −0.22) and runs 2.08 × as fast as the float32 graph."
    ) in told
    assert "Gate: pass" in told
    assert "few, points−0.60" in told


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (0.001, "costs the few group nothing measurable"),
        (0.25, "gives the few group 0.25 points more"),
        (-0.25, "costs the few group 0.25 points"),
    ],
)
def test_gain_and_nothing_are_not_told_as_losses(difference: float, words: str) -> None:
    assert words in text_of(result_of([(0, difference)], 0))


def test_an_undecided_gate_is_not_told_as_no_loss() -> None:
    result = result_of([(0, 0.001)], 0)
    result["lowering"]["trials"][0]["verdict"] = "inconclusive"
    told = text_of(result)
    assert "leaves the few group where it was on these images" in told
    assert "nothing measurable" not in told


def test_the_rarest_group_that_has_images_is_the_tail() -> None:
    result = single()
    nothing = dict.fromkeys(result["lowering"]["trials"][0]["groups"]["few"])
    result["lowering"]["trials"][0]["groups"]["few"] = nothing
    told = text_of(result)
    assert "costs the medium group" in told
    assert "fewno images" in told
    for name in ("medium", "many"):
        del result["lowering"]["trials"][0]["groups"][name]
    assert "costs all classes together" in text_of(result)


def test_where_nothing_had_to_be_restored_nothing_empty_is_left() -> None:
    page = page_of(single())
    assert len(trial_rows(page)) == 1
    assert "accepted at once" in page
    assert 'id="damage"' not in page
    assert 'data-download="damage"' not in page
    assert 'class="notes"' not in page
    assert "gate: undecided</li>" not in page
    assert "accepted at once" not in page_of(result_of())
    assert 'id="damage"' in page_of(result_of())
    assert "gate: undecided</li>" in page_of(result_of())


def test_what_a_reader_should_know_is_noted() -> None:
    result = single()
    lowering = result["lowering"]
    lowering["trials"][0]["verdict"] = lowering["gate"]["verdict"] = "inconclusive"
    lowering["fewest"] = False
    lowering["large"] = [{"tensor": f"Add_{i}", "largest": 7e4 + i} for i in range(7)]
    result["unreadable"] = 1
    told = text_of(result)
    assert "Gate: undecided" in told
    assert "4 notes" in told
    assert "verify the bundle on more" in told
    assert "--search-seconds" in told
    assert "Add_4 (7e+04) and 2 more" in told
    assert "1 image could not be read" in told


def test_the_float32_size_stands_beside_where_it_is_known() -> None:
    result = single()
    assert "float32 102.3 MB" not in text_of(result)
    result["lowering"]["float32_bytes"] = 102_326_956
    assert "size, float32 102.3 MB" in text_of(result)


def test_the_worst_layers_are_shown_and_the_restored_ones_all() -> None:
    page = page_of(result_of())
    assert page.count("<dt title=") == 30
    assert "The other 22 cost" in page
    assert 'aria-label="not finite, restored"' in page
    many = result_of(((0, -6.0), (40, -0.1)), 40)
    assert page_of(many).count("<dt title=") == 45
    few = result_of(layers=20)
    assert page_of(few).count("<dt title=") == 20
    assert "The other" not in page_of(few)


def test_no_damage_at_all_draws_bars_of_no_length() -> None:
    result = result_of()
    for one in result["lowering"]["damage"]:
        one["damage"] = 0.0
    assert 'width="0.3%"' in page_of(result)


def test_hostile_names_make_no_element() -> None:
    document = Document(page_of(hostile()))
    assert not any("hacked" in text for a, text in document.scripts if "type" not in a)
    assert not any(a.get("src") == "x" or "onerror" in a for _, a in document.elements)
    assert HOSTILE_NAMES[0] in document.text


def test_an_unescaped_name_would_be_seen() -> None:
    spoiled = page_of(hostile()).replace("\\u003c", "<").replace("\\u003e", ">")
    runs = [text for a, text in Document(spoiled).scripts if "type" not in a]
    assert any("hacked" in text for text in runs)


def test_loads_nothing_and_every_picture_carries_a_text() -> None:
    for result in (result_of(), single()):
        for tag, attributes in Document(page_of(result)).elements:
            for name in ("src", "href"):
                assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
            if tag in ("canvas", "svg") and "aria-hidden" not in attributes:
                assert attributes.get("aria-label"), (tag, attributes)


def test_same_result_gives_the_same_file() -> None:
    assert page_of(result_of()) == page_of(result_of())


def test_scaled_decoding_is_told_apart_from_precision() -> None:
    result = single()
    assert "Scaled decoding" not in text_of(result)
    groups = {"few": {"difference": -0.4}, "many": {"difference": None}}
    result["scaling"] = {"groups": groups, "verdict": "inconclusive"}
    told = text_of(result)
    assert "alone, in float32, it costs few −0.40 points (gate: undecided)" in told
    assert "The head, and in int8 the first layer, are always in float32" in told


def test_classes_without_images_are_not_told_as_too_few_images() -> None:
    result = single()
    chosen = result["lowering"]["trials"][0]
    chosen["verdict"] = "inconclusive"
    chosen["groups"]["medium"] |= {"classes": 163, "classes_without_images": 90}
    told = text_of(result)
    assert "cannot decide: only 73 of the 163 medium classes have images" in told
    assert "too few images" not in told
