"""Every kind of map goes through export, ONNX Runtime and verify as it was fitted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fix_samples import IN_WEIGHTS, fix_file, maps_by_kind, onnx_model, small_model
from samples import draw_photo, write_checkpoint

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_dataset
from ltdeploy.engines import open_engine
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.errors import FixError
from ltdeploy.export import export_bundle
from ltdeploy.export.checks import relative_difference
from ltdeploy.export.fold import folded
from ltdeploy.fixes import AffineMap, FixSpec
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import Blend, LogSoftmax, NewHead
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import Classifier, load_checkpoint
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.models.options import LoadOptions
from ltdeploy.verify import compare_models, verify_bundle

IMAGES = np.random.default_rng(0).integers(0, 256, size=(7, 32, 32, 3), dtype=np.uint8)
Source = Callable[[Path], Classifier | OnnxClassifier]
Unfixed = tuple[Classifier | OnnxClassifier, Bundle]


def linear_model(folder: Path) -> Classifier | OnnxClassifier:
    return load_checkpoint(write_checkpoint(folder / "ckpt.pt"))


def cosine_model(folder: Path) -> Classifier | OnnxClassifier:
    torch.manual_seed(0)
    module = build("cifar:resnet20", 6, head="cosine")
    counts = [9, 8, 7, 6, 5, 4]
    state = {"state_dict": module.state_dict(), "arch": "resnet20", "cls_num_list": counts}
    torch.save(state, folder / "ldam.pth.tar")
    names = LoadOptions(classes=ClassTable.from_counts(counts, [f"species {i}" for i in range(6)]))
    return load_checkpoint(folder / "ldam.pth.tar", options=names)


def unfused(model: Classifier | OnnxClassifier, fix: LogitMap) -> np.ndarray:
    """Return the logits that the reference gives for IMAGES with a map applied to them."""
    outputs = reference_engine(model, features=True).run({"images": IMAGES})
    return fix.apply(outputs["logits"], outputs["features"])


def nodes_of(bundle: Bundle) -> int:
    onnx.checker.check_model(onnx.load(bundle.graph_path), full_check=True)
    return bundle.manifest.graphs[0].nodes


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn pictures of each of six classes."""
    folder = tmp_path_factory.mktemp("six") / "test"
    for label in range(6):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(4):
            photo = draw_photo(100 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number}.png")
    return folder


SOURCES: dict[str, Source] = {"linear": linear_model, "cosine": cosine_model, "onnx": onnx_model}
TRIED = {  # every kind goes through export below; these through verify too
    "linear": ("centred l2 head", "Dirichlet"),
    "cosine": ("blend", "head, Dirichlet"),
    "onnx": ("full", "head", "centred l2 head", "affine, blend, affine", "log-softmax"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Unfixed]:
    """Return a function from a source's name to its model and its bundle without a fix."""

    @cache
    def exported(name: str) -> Unfixed:
        folder = tmp_path_factory.mktemp(name)
        model = SOURCES[name](folder)
        return model, export_bundle(model, [], folder / "plain.ltd").bundle

    return exported


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in TRIED.items() for kind in kinds]
)
def test_a_map_survives_export_and_verify(
    plain: Callable[[str], Unfixed], photos: Path, name: str, kind: str
) -> None:
    model, unfixed = plain(name)
    fix = maps_by_kind(6, model.head.weight.shape[1])[kind]
    out = unfixed.path.parent / f"{kind}.ltd"
    bundle = export_bundle(model, [fix_file(fix)], out).bundle
    whole = kind in IN_WEIGHTS
    assert bundle.manifest.fix.folded == ("weights" if whole else "nodes")
    added = nodes_of(bundle) - nodes_of(unfixed)
    assert added <= 0 if whole else added <= 10
    found = open_engine(open_bundle(out)).run({"images": IMAGES})["logits"]
    expected = unfused(model, fix)
    assert relative_difference(expected, found) < 1e-5
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))

    done = verify_bundle(bundle, open_dataset(str(photos)))
    assert (done.result.verdict, done.result.flips) == ("pass", 0)
    before = compare_models(unfixed.path, out, open_dataset(str(photos)))
    assert done.result.overall.unfixed == before.result.overall.reference
    assert done.result.overall.candidate == before.result.overall.candidate


@pytest.mark.parametrize(("gemm", "opset"), [(True, 11), (False, 18)])
def test_an_onnx_head_of_any_form_takes_every_map(tmp_path: Path, gemm: bool, opset: int) -> None:
    model = onnx_model(tmp_path, gemm=gemm, opset=opset)
    plain = nodes_of(export_bundle(model, [], tmp_path / "plain.ltd").bundle)
    for kind, fix in maps_by_kind(6, 12).items():
        bundle = export_bundle(model, [fix_file(fix)], tmp_path / f"{kind}.ltd").bundle
        added = nodes_of(bundle) - plain
        assert added <= 0 if kind in IN_WEIGHTS else 0 < added <= 9, kind
        found = open_engine(bundle).run({"images": IMAGES})["logits"]
        assert relative_difference(unfused(model, fix), found) < 1e-5, kind


# How many nodes each step takes. All kinds go through PyTorch below, and all through ONNX above.
EXTRA_NODES = {
    "full": 0,
    "head without bias": 0,
    "centred head": 1,
    "centred l2 head": 4,
    "blend": 6,
    "affine, blend, affine": 8,
    "head, Dirichlet": 2,
    "blend, log-softmax, affine": 9,
}
BY_CONVOLUTION = ("full", "head without bias", "centred l2 head", "blend")


@pytest.fixture(scope="module")
def plain_nodes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], int]:
    """Return a function from whether the small linear network has a bias to its nodes, unfixed."""

    @cache
    def exported(bias: bool) -> int:
        folder = tmp_path_factory.mktemp("small")
        model = small_model(folder, "linear", bias=bias)
        return nodes_of(export_bundle(model, [], folder / "plain.ltd").bundle)

    return exported


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        *(("linear", kind) for kind in EXTRA_NODES),
        *(("convolution", kind) for kind in BY_CONVOLUTION),
    ],
)
def test_a_layer_of_any_kind_takes_it_in_few_nodes(
    tmp_path: Path, plain_nodes: Callable[[bool], int], kind: str, layer: str
) -> None:
    bias = kind != "blend"
    model = small_model(tmp_path, layer, bias=bias)
    fix = maps_by_kind(6, 9)[kind]
    bundle = export_bundle(model, [fix_file(fix)], tmp_path / "a.ltd").bundle
    assert bundle.manifest.fix.folded == ("weights" if kind in IN_WEIGHTS else "nodes")
    found = open_engine(bundle).run({"images": IMAGES})["logits"]
    assert relative_difference(unfused(model, fix), found) < 1e-5
    if layer == "linear":
        assert nodes_of(bundle) - plain_nodes(bias) == EXTRA_NODES[kind]


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_every_map_folds_and_the_model_is_as_it_was_afterwards(tmp_path: Path, layer: str) -> None:
    model = small_model(tmp_path, layer)
    head = model.module.get_submodule(model.head_path)
    spread = (IMAGES / 255.0 - model.preprocessing.mean) / model.preprocessing.std
    pixels = torch.from_numpy(spread).float().permute(0, 3, 1, 2)
    for kind, fix in maps_by_kind(6, 9).items():
        with folded(model, fix) as (module, how), torch.no_grad():
            found = module(pixels).numpy()
        assert how == ("weights" if kind in IN_WEIGHTS else "nodes")
        assert relative_difference(unfused(model, fix), found) < 1e-5, kind
        assert model.module.get_submodule(model.head_path) is head
        assert not head._forward_pre_hooks


def test_a_head_of_two_layers_takes_what_looks_at_logits_only(tmp_path: Path) -> None:
    small = small_model(tmp_path, "linear")
    model = replace(small, head=replace(small.head, foldable=False))
    outputs = reference_engine(model, features=True).run({"images": IMAGES})
    assert set(outputs) == {"logits"}
    for kind, fix in maps_by_kind(6, 9).items():
        out = tmp_path / f"{kind}.ltd"
        if fix.needs_features:
            with pytest.raises(FixError, match="come from more than one linear layer"):
                export_bundle(model, [fix_file(fix)], out)
            assert not out.exists()
        elif kind in ("full", "affine, Dirichlet"):
            bundle = export_bundle(model, [fix_file(fix)], out).bundle
            assert bundle.manifest.fix.folded == "nodes"
            found = open_engine(bundle).run({"images": IMAGES})["logits"]
            assert relative_difference(fix.apply(outputs["logits"]), found) < 1e-5


@pytest.mark.parametrize(
    ("fix", "text"),
    [
        (AffineMap.identity(5), "6 classes and the fix 5"),
        (LogSoftmax(7), "6 classes and the fix 7"),
        (NewHead(np.eye(6, 32), np.ones(6)), "length 32, and the head of .* is given 12"),
        (Blend(np.ones(6), np.ones(6), np.ones(65), 0.0), "length 65"),
    ],
)
def test_a_map_for_another_model_is_refused(tmp_path: Path, fix: LogitMap, text: str) -> None:
    model = onnx_model(tmp_path)
    with pytest.raises(FixError, match=text):
        export_bundle(model, [fix_file(fix)], tmp_path / "a.ltd")
    assert not (tmp_path / "a.ltd").exists()


@pytest.mark.parametrize("kind", ["diagonal", "blend"])
def test_a_bundle_as_reference_tells_the_unfixed_model_where_it_can(
    tmp_path: Path, photos: Path, kind: str
) -> None:
    model = onnx_model(tmp_path)
    bundle = export_bundle(model, [fix_file(maps_by_kind(6, 12)[kind])], tmp_path / "a.ltd").bundle
    done = verify_bundle(bundle, open_dataset(str(photos)), reference=bundle.path)
    assert done.result.verdict == "pass"
    assert (done.result.overall.unfixed is None) == (kind != "diagonal")


def test_the_reference_gives_what_the_head_is_given(tmp_path: Path) -> None:
    for model in (linear_model(tmp_path), onnx_model(tmp_path)):
        outputs = reference_engine(model, features=True).run({"images": IMAGES})
        head = model.head
        assert head.bias is not None
        assert outputs["features"].dtype == np.float32
        again = outputs["features"].astype(np.float64) @ head.weight.T + head.bias
        assert relative_difference(outputs["logits"], again) < 1e-5
        engine = reference_engine(model, features=True)
        batches = [IMAGES[: 1 + number % 4] for number in range(16)]
        with ThreadPoolExecutor(4) as pool:  # each hears of its own batch only
            for batch in pool.map(engine.run, [{"images": images} for images in batches]):
                rows = len(batch["logits"])
                np.testing.assert_allclose(
                    batch["features"], outputs["features"][:rows], rtol=1e-4, atol=1e-5
                )
        plain = reference_engine(model).run({"images": IMAGES})
        assert set(plain) == {"logits"}
        assert relative_difference(outputs["logits"], plain["logits"]) < 1e-6


def test_a_spec_after_a_fix_file_sees_what_it_leaves(tmp_path: Path) -> None:
    model = onnx_model(tmp_path)
    maps = maps_by_kind(6, 12)
    tau = FixSpec("tau_norm", {"tau": 1.0})
    bundle = export_bundle(model, [fix_file(maps["head"]), tau], tmp_path / "a.ltd").bundle
    fix = bundle.manifest.fix.logit_map()
    assert isinstance(fix, NewHead)
    norms = np.linalg.norm(fix.weight, axis=1)
    np.testing.assert_allclose(norms, norms[0])  # τ = 1 makes the new rows equally long
    assert [entry.method for entry in bundle.manifest.fix.methods] == ["temperature", "tau_norm"]
    with pytest.raises(FixError, match="more than its last linear map"):
        export_bundle(model, [fix_file(maps["blend"]), tau], tmp_path / "b.ltd")
