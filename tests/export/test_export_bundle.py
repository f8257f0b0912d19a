"""Export: what is in the bundle computes what the checkpoint with its fix computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fix_samples import onnx_model, small_model
from onnx import numpy_helper
from samples import draw_photo
from torch import nn

from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_dataset
from ltdeploy.engines import open_engine
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.errors import BundleError, CheckpointError, EngineError, ExportError, FixError
from ltdeploy.export import export_bundle
from ltdeploy.export.checks import check_graph, relative_difference
from ltdeploy.fixes import FixSpec
from ltdeploy.images import load_prepared
from ltdeploy.inference import fingerprints
from ltdeploy.models.classifier import Classifier, load_checkpoint
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.models.options import LoadOptions

TAU = FixSpec("tau_norm", {"tau": 0.7})
ADJUST = FixSpec("logit_adjustment", {"tau": 1.0})
COOL = FixSpec("temperature", {"t": 2.0})
IMAGES = np.random.default_rng(0).integers(0, 256, size=(7, 32, 32, 3), dtype=np.uint8)

FIXES = {
    "none": [],
    "tau": [TAU],
    "tau-drop": [FixSpec("tau_norm", {"tau": 0.7, "bias": "drop"})],
    "tau-keep": [FixSpec("tau_norm", {"tau": 0.7, "bias": "keep"})],
    "adjust": [ADJUST],
    "all": [TAU, ADJUST, COOL],
}


@pytest.mark.parametrize("fixes", FIXES.values(), ids=FIXES.keys())
def test_exported_logits_are_the_unfused_reference(tmp_path: Path, fixes: list[FixSpec]) -> None:
    model = onnx_model(tmp_path)
    exported = export_bundle(model, fixes, tmp_path / "a.ltd")
    assert_as_reference(model, open_bundle(tmp_path / "a.ltd"))
    assert exported.bundle.manifest.fix.folded == ("weights" if fixes else "none")


def assert_as_reference(model: Classifier | OnnxClassifier, bundle: Bundle) -> None:
    base = reference_engine(model).run({"images": IMAGES})["logits"]
    expected = bundle.manifest.fix.logit_map().apply(base)
    found = open_engine(bundle).run({"images": IMAGES})["logits"]
    assert relative_difference(expected, found) < 1e-4


def test_the_fix_costs_no_node_and_leaves_the_model_alone(checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(checkpoint)
    before = model.head.weight.copy()
    plain = export_bundle(model, [], tmp_path / "plain.ltd")
    fixed = export_bundle(model, [TAU, ADJUST, COOL], tmp_path / "fixed.ltd")
    assert fixed.bundle.manifest.graphs[0].nodes == plain.bundle.manifest.graphs[0].nodes
    assert_as_reference(model, plain.bundle)
    assert_as_reference(model, fixed.bundle)
    assert isinstance(model, Classifier)
    kept = model.module.get_submodule(model.head_path).weight.detach().double().numpy()
    np.testing.assert_array_equal(kept, before)


def test_a_head_without_bias_takes_a_shift(tmp_path: Path) -> None:
    model = small_model(tmp_path, bias=False)
    plain = export_bundle(model, [], tmp_path / "plain.ltd")
    fixed = export_bundle(model, [ADJUST], tmp_path / "fixed.ltd")
    assert fixed.bundle.manifest.graphs[0].nodes == plain.bundle.manifest.graphs[0].nodes


def test_a_cosine_head_takes_explicit_nodes_and_refuses_tau(tmp_path: Path) -> None:
    from ltdeploy.models.architectures import build

    torch.manual_seed(0)
    module = build("cifar:resnet20", 6, head="cosine")
    state = {
        "state_dict": module.state_dict(),
        "arch": "resnet20",
        "cls_num_list": [9, 8, 7, 6, 5, 4],
    }
    torch.save(state, tmp_path / "ldam.pth.tar")
    model = load_checkpoint(tmp_path / "ldam.pth.tar")
    assert model.head.kind == "cosine"
    exported = export_bundle(model, [ADJUST], tmp_path / "a.ltd")
    assert exported.bundle.manifest.fix.folded == "nodes"
    assert any("explicit nodes" in note for note in exported.bundle.manifest.fix.notes)
    with pytest.raises(FixError, match="cosine head"):
        export_bundle(model, [TAU], tmp_path / "b.ltd")
    assert not (tmp_path / "b.ltd").exists()


def test_metadata_and_contract_are_in_the_file(bundle_path: Path) -> None:
    graph = onnx.load(bundle_path / "model.onnx")
    assert {p.key: p.value for p in graph.metadata_props}["ltdeploy.arch"] == "cifar:resnet20"
    onnx.checker.check_model(graph, full_check=True)
    (entry,) = graph.graph.input
    axes = [axis.dim_param or axis.dim_value for axis in entry.type.tensor_type.shape.dim]
    assert (entry.name, axes) == ("images", ["batch", 32, 32, 3])
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    kinds = [node.op_type for node in graph.graph.node if node.op_type in ("Cast", "Transpose")]
    assert kinds[:2] == ["Cast", "Transpose"]  # TensorRT transposes no uint8


def test_auto_is_chosen_on_validation_images_and_remembered(tmp_path: Path) -> None:
    for label in range(6):
        (tmp_path / "val" / f"species {label}").mkdir(parents=True)
        for number in range(3):
            photo = draw_photo(10 * label + number, 32, 32)
            photo.save(tmp_path / "val" / f"species {label}" / f"{number}.png")
    validation = open_dataset(str(tmp_path / "val"))
    auto = FixSpec("logit_adjustment", {"tau": "auto"})
    out = tmp_path / "moths.ltd"
    exported = export_bundle(onnx_model(tmp_path), [auto], out, validation=validation)
    selected = exported.bundle.manifest.fix.selected_on
    assert selected is not None
    assert selected.images == len(validation)
    hashes = open_bundle(out).selection_hashes()
    ready = load_prepared(validation.source(3), exported.bundle.preprocessing)
    assert fingerprints(ready[None])[0] in hashes


class BatchMixer(nn.Module):
    """A classifier whose answer for an image depends on the others of its batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        return logits + logits.mean(dim=0, keepdim=True)


class Nonfinite(nn.Module):
    """A classifier that overflows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        return logits / (logits * 0)


class ValueDependent(nn.Module):
    """A classifier that torch.export cannot trace."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.sum() > 0:
            return self.inner(images)
        return -self.inner(images)


@pytest.mark.parametrize(
    ("wrapper", "error", "text"),
    [
        (BatchMixer, ExportError, "mixes the images of a batch"),
        (Nonfinite, EngineError, "non-finite logits .* golden sample 0"),
        (ValueDependent, ExportError, r"torch\.export cannot trace"),
    ],
)
def test_what_the_checks_are_for_is_refused(
    tmp_path: Path,
    wrapper: type[nn.Module],
    error: type[Exception],
    text: str,
) -> None:
    model = small_model(tmp_path)
    model.module = wrapper(model.module).eval()
    model.head_path = f"inner.{model.head_path}"
    with pytest.raises(error, match=text):
        export_bundle(model, [], tmp_path / "bad.ltd")
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt"]


def test_a_wrong_fold_is_caught(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    golden = bundle.golden()
    engine = open_engine(bundle)
    assert check_graph(engine, golden.images, golden.logits).reference_difference < 1e-4
    with pytest.raises(ExportError, match="differs from the reference"):
        check_graph(engine, golden.images, golden.logits * 1.001)


def test_missing_counts_are_asked_for(tmp_path: Path) -> None:
    from ltdeploy.models.architectures import build

    torch.save(build("cifar:resnet20", 4).state_dict(), tmp_path / "bare.pt")
    model = load_checkpoint(tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match="--classes FILE"):
        export_bundle(model, [], tmp_path / "bare.ltd")


def test_a_taken_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.ltd").write_text("mine")
    with pytest.raises(BundleError, match="left alone"):
        export_bundle(onnx_model(tmp_path), [], tmp_path / "a.ltd")


def foreign_graph(*, softmax: bool, gemm: bool) -> onnx.ModelProto:
    """Write a small ONNX classifier by hand: pooling, a linear head, perhaps a softmax."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 5)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    helper = onnx.helper
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    last = "logits" if not softmax else "inner"
    if gemm:
        nodes.append(helper.make_node("Gemm", ["features", "w", "b"], [last], name="head"))
    else:
        nodes.append(helper.make_node("MatMul", ["features", "w"], ["product"], name="head"))
        nodes.append(helper.make_node("Add", ["product", "b"], [last]))
    if softmax:
        nodes.append(helper.make_node("Softmax", [last], ["logits"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "foreign",
        [value("images", onnx.TensorProto.FLOAT, ["n", 3, 16, 16])],
        [value("logits", onnx.TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("gemm", [False, True])
def test_a_foreign_graph_takes_the_fix(tmp_path: Path, softmax: bool, gemm: bool) -> None:
    path = tmp_path / "foreign.onnx"
    onnx.save(foreign_graph(softmax=softmax, gemm=gemm), path)
    options = LoadOptions(
        classes=ClassTable.from_counts([200, 90, 40, 10, 2]),
        resize="none",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    model = load_checkpoint(path, options=options)
    plain = export_bundle(model, [], tmp_path / "plain.ltd")
    fixed = export_bundle(model, [TAU, ADJUST], tmp_path / "fixed.ltd")
    assert fixed.bundle.manifest.fix.folded == "weights"
    assert fixed.bundle.manifest.graphs[0].nodes == plain.bundle.manifest.graphs[0].nodes
    assert fixed.bundle.manifest.graphs[0].inputs[0].name == "images"
    # By hand, from the weights above.
    images = IMAGES[:, :16, :16]
    features = ((images / 255.0 - options.mean) / options.std).mean(axis=(1, 2))
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 5)), rng.normal(size=5)
    unfixed = features @ weight.astype(np.float32) + bias.astype(np.float32)
    expected = fixed.bundle.manifest.fix.logit_map().apply(unfixed)
    found = open_engine(fixed.bundle).run({"images": images})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
