"""Checkpoints as training codes write them, loaded back: the logits are the same to the bit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_samples import CLASSES, COUNTS, drawn, logits_of
from safetensors.torch import save_file
from torch import nn

from ltdeploy.classes import ClassTable
from ltdeploy.errors import CheckpointError
from ltdeploy.models.architectures import build, default_preprocessing
from ltdeploy.models.classifier import Classifier, LoadOptions, load_checkpoint
from ltdeploy.models.layouts import BALANCED_LOSSES, PREFIXES, strip_prefixes

NAMES = tuple(f"species {label}" for label in range(CLASSES))
TABLE = ClassTable.from_counts(COUNTS, NAMES)


def load(path: Path, data: Any, **options: Any) -> Classifier:
    torch.save(data, path)
    model = load_checkpoint(path, options=LoadOptions(**options))
    assert isinstance(model, Classifier)
    return model


def prefixed(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def cifar() -> nn.Module:
    return drawn(build("cifar:resnet20", CLASSES))


def test_ltdeploys_own(tmp_path: Path, cifar: nn.Module) -> None:
    told = {
        "schema": 1,
        "arch": "cifar:resnet20",
        "class_names": list(NAMES),
        "train_counts": COUNTS,
        "preprocessing": default_preprocessing("cifar:resnet20").to_dict(),
        "trained_with": "balanced_softmax",
    }
    model = load(tmp_path / "x.pt", {"ltdeploy": told, "state_dict": cifar.state_dict()})
    assert torch.equal(logits_of(model.module), logits_of(cifar))
    assert (model.arch, model.trained_with) == ("cifar:resnet20", "balanced_softmax")
    assert model.classes == TABLE
    assert model.source.notes == ()
    assert model.require_complete() is model.classes


def test_ltdeploys_own_with_a_cosine_head(tmp_path: Path) -> None:
    module = drawn(build("timm:resnet18", CLASSES, head="cosine", scale=16.0))
    told = {"schema": 1, "arch": "timm:resnet18", "head": {"kind": "cosine", "scale": 16.0}}
    model = load(tmp_path / "x.pt", {"ltdeploy": told, "state_dict": module.state_dict()})
    assert (model.head.kind, model.head.scale) == ("cosine", 16.0)
    assert torch.equal(logits_of(model.module, 224), logits_of(module, 224))


def test_a_newer_schema_is_refused(tmp_path: Path, cifar: nn.Module) -> None:
    data = {"ltdeploy": {"schema": 2}, "state_dict": cifar.state_dict()}
    with pytest.raises(CheckpointError, match="schema 2; this version reads 1"):
        load(tmp_path / "x.pt", data)


def test_bare_state_dict(tmp_path: Path, cifar: nn.Module) -> None:
    model = load(tmp_path / "x.pth", cifar.state_dict())
    assert torch.equal(logits_of(model.module), logits_of(cifar))
    assert model.arch == "cifar:resnet20"
    assert model.classes is None
    with pytest.raises(CheckpointError, match=r"Recognised: .*'linear' 7 × 64.*--classes FILE"):
        model.require_complete()


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "state_dict_best", "state_dict_ema", "model_ema", "net"]
)
def test_weights_under_a_key(tmp_path: Path, cifar: nn.Module, key: str) -> None:
    model = load(tmp_path / "x.pth", {key: cifar.state_dict(), "epoch": 3, "classes": TABLE.names})
    assert torch.equal(logits_of(model.module), logits_of(cifar))
    assert model.source.class_names == NAMES


@pytest.mark.parametrize(
    ("better", "worse"),
    [("state_dict_best", "state_dict"), ("state_dict_ema", "state_dict"), ("model_ema", "model")],
)
def test_the_better_weights_are_taken_and_it_is_said(
    tmp_path: Path, cifar: nn.Module, better: str, worse: str
) -> None:
    other = drawn(build("cifar:resnet20", CLASSES), seed=5)
    data = {worse: other.state_dict(), better: cifar.state_dict()}
    model = load(tmp_path / "x.pth", data)
    assert torch.equal(logits_of(model.module), logits_of(cifar))
    assert any(f"'{better}' is used, before '{worse}'" in note for note in model.source.notes)


def test_torchs_averaged_model(tmp_path: Path, cifar: nn.Module) -> None:
    average = torch.optim.swa_utils.AveragedModel(cifar)
    model = load(tmp_path / "x.pth", {"model_ema": average.state_dict()})
    assert torch.equal(logits_of(model.module), logits_of(cifar))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_real_wrappers(tmp_path: Path, cifar: nn.Module, wrap: Any) -> None:
    model = load(tmp_path / "x.pth", wrap(cifar).state_dict())
    assert torch.equal(logits_of(model.module), logits_of(cifar))
    assert any("prefix" in note for note in model.source.notes)


@given(st.lists(st.sampled_from(PREFIXES), max_size=5))
def test_prefixes_nest_in_any_order(prefixes: list[str]) -> None:
    weights = {"conv1.weight": torch.zeros(1), "layer1.0.bn1.bias": torch.zeros(1)}
    nested = {".".join((*prefixes, key)): value for key, value in weights.items()}
    assert strip_prefixes(nested) == weights


@given(st.lists(st.sampled_from(PREFIXES), max_size=3), st.sampled_from(["fc", "linear", "head"]))
def test_a_prefixed_trunk_beside_a_head_of_another_name(prefixes: list[str], head: str) -> None:
    module = build("cifar:resnet20", 4)
    trunk = ".".join((*prefixes, "backbone."))
    weights = {
        (f"{head}.{key.removeprefix('linear.')}" if key.startswith("linear.") else trunk + key): v
        for key, v in module.state_dict().items()
    }
    from ltdeploy.models.layouts import Parts
    from ltdeploy.models.matching import fit

    assert fit("cifar:resnet20", Parts("x", strip_prefixes(weights), weights)).is_exact


def test_two_networks_in_one_file_are_refused(tmp_path: Path, cifar: nn.Module) -> None:
    both = prefixed(cifar, "model.") | prefixed(cifar, "net.")
    with pytest.raises(CheckpointError, match="two networks"):
        load(tmp_path / "x.pth", both)


@pytest.mark.parametrize("key", ["state_dict_best", "state_dict"])
def test_classifier_balancing(tmp_path: Path, key: str) -> None:
    module = drawn(build("torchvision:resnet18", CLASSES))
    weights = module.state_dict()
    features = {f"module.{k}": v for k, v in weights.items() if not k.startswith("fc.")}
    classifier = {f"module.{k}": v for k, v in weights.items() if k.startswith("fc.")}
    data = {
        "epoch": 90,
        "best_acc": np.float64(0.4),
        "centroids": None,
        key: {"feat_model": features, "classifier": classifier},
    }
    model = load(tmp_path / "final_model_checkpoint.pth", data, classes=TABLE)
    assert model.arch == "torchvision:resnet18"
    assert model.source.layout == "classifier-balancing"
    assert (model.preprocessing.resize_px, model.preprocessing.height_px) == (256, 224)
    assert torch.equal(logits_of(model.module, 64), logits_of(module, 64))


def test_classifier_balancing_with_learned_scales(tmp_path: Path) -> None:
    module = drawn(build("torchvision:resnet18", CLASSES))
    weights = module.state_dict()
    scales = torch.linspace(0.5, 2.0, CLASSES)
    classifier = {k: v for k, v in weights.items() if k.startswith("fc.")} | {"scales": scales}
    features = {k: v for k, v in weights.items() if not k.startswith("fc.")}
    parts = {
        name: {f"module.{k}": v for k, v in part.items()}
        for name, part in (("feat_model", features), ("classifier", classifier))
    }
    model = load(tmp_path / "x.pth", {"state_dict_best": parts}, classes=TABLE)
    expected = scales * logits_of(module, 64)
    torch.testing.assert_close(logits_of(model.module, 64), expected)
    assert model.trained_with == "lws"
    norms = scales.double().numpy() * torch.linalg.vector_norm(weights["fc.weight"], dim=1).numpy()
    np.testing.assert_allclose(model.head.norms(), norms, rtol=1e-5)


def test_classifier_balancing_without_its_head(tmp_path: Path) -> None:
    weights = build("torchvision:resnet18", 3).state_dict()
    features = {f"module.{k}": v for k, v in weights.items() if not k.startswith("fc.")}
    data = {"state_dict": {"feat_model": features, "classifier": {}}}
    with pytest.raises(CheckpointError, match="head is missing"):
        load(tmp_path / "x.pth", data, arch="torchvision:resnet18")


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_mislas(tmp_path: Path, cifar: nn.Module, stage: int, prefix: str) -> None:
    weights = cifar.state_dict()
    norm = torch.linspace(0.5, 2.0, CLASSES)[None]
    data: dict[str, Any] = {
        "epoch": 10,
        "best_acc1": torch.tensor(40.0),
        "its_ece": 0.1,
        "state_dict_model": {
            f"{prefix}{k}": v for k, v in weights.items() if not k.startswith("linear.")
        },
        "state_dict_classifier": {
            f"{prefix}fc.{k.removeprefix('linear.')}": v
            for k, v in weights.items()
            if k.startswith("linear.")
        },
    }
    expected = logits_of(cifar)
    if stage == 2:
        data["state_dict_lws_model"] = {f"{prefix}learned_norm": norm}
        expected = norm * expected
    model = load(tmp_path / "x.pth.tar", data)
    torch.testing.assert_close(logits_of(model.module), expected)
    assert model.arch == "cifar:resnet20"
    assert any("re-numbers the labels" in note for note in model.source.notes)


def test_mislas_places_block_is_refused(tmp_path: Path) -> None:
    data = {"state_dict_model": {}, "state_dict_classifier": {}, "state_dict_block": {}}
    with pytest.raises(CheckpointError, match=r"state_dict_block.*ONNX"):
        load(tmp_path / "x.pth.tar", data)


def ldam(module: nn.Module, **more: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return {
        "epoch": 200,
        "arch": "resnet32",
        "state_dict": nn.DataParallel(module).state_dict(),
        "best_acc1": torch.tensor(42.0),
        "optimizer": optimizer.state_dict(),
        **more,
    }


def test_ldam_drw_linear(tmp_path: Path) -> None:
    module = drawn(build("cifar:resnet32", CLASSES))
    model = load(tmp_path / "x.pth.tar", ldam(module, cls_num_list=COUNTS))
    assert (model.arch, model.head.kind, model.trained_with) == ("cifar:resnet32", "linear", None)
    assert model.classes is not None
    assert model.classes.counts == tuple(COUNTS)
    assert torch.equal(logits_of(model.module), logits_of(module))


@pytest.mark.parametrize("classes", [CLASSES, 64, 100])
def test_ldam_drw_cosine(tmp_path: Path, classes: int) -> None:
    """64 classes on 64 features: the shape does not tell the orientation, the layout does."""
    module = drawn(build("cifar:resnet32", classes, head="cosine", scale=1.0))
    model = load(tmp_path / "x.pth.tar", ldam(module))
    assert (model.head.kind, model.head.scale) == ("cosine", 30.0)
    assert (model.head.weight.shape, model.trained_with) == ((classes, 64), "ldam")
    torch.testing.assert_close(logits_of(model.module), 30 * logits_of(module))
    assert any("s = 30" in note and "--head-scale" in note for note in model.source.notes)


def test_ldam_drw_cosine_with_a_scale_that_is_told(tmp_path: Path) -> None:
    module = drawn(build("cifar:resnet32", CLASSES, head="cosine", scale=20.0))
    model = load(tmp_path / "x.pth.tar", ldam(module), head_scale=20.0)
    assert torch.equal(logits_of(model.module), logits_of(module))
    assert not any("s = 30" in note for note in model.source.notes)


def bbn(module: nn.Module, head: str, transpose: bool = False) -> dict[str, Any]:
    weights = {}
    for key, value in module.state_dict().items():
        if key.startswith(f"{head}."):
            plain = f"classifier.{key.removeprefix(f'{head}.')}"
            weights[f"module.{plain}"] = value.t() if transpose else value
        else:
            weights[f"module.backbone.{key}"] = value
    return {"state_dict": weights, "epoch": 200, "best_result": 0.4, "best_epoch": 190}


@pytest.mark.parametrize("arch", ["bbn:cifar-resnet32", "cifar:resnet32"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_bbn_on_cifar(tmp_path: Path, arch: str, kind: Any) -> None:
    """BBN's FCNorm stores (classes, features), LDAM's NormedLinear the transpose."""
    module = drawn(build(arch, CLASSES, head=kind))
    head = "classifier" if arch.startswith("bbn") else "linear"
    model = load(tmp_path / "best_model.pth", bbn(module, head, transpose=kind == "cosine"))
    assert (model.arch, model.head.kind, model.source.layout) == (arch, kind, "BBN")
    assert torch.equal(logits_of(model.module), logits_of(module))


def test_bbn_resnet50(tmp_path: Path) -> None:
    module = drawn(build("bbn:resnet50", CLASSES))
    model = load(tmp_path / "best_model.pth", bbn(module, "classifier"))
    assert model.arch == "bbn:resnet50"
    assert model.head.weight.shape == (CLASSES, 4096)
    assert torch.equal(logits_of(model.module, 64), logits_of(module, 64))


@pytest.mark.parametrize("prefix", ["model.", "net."])
def test_lightning(tmp_path: Path, cifar: nn.Module, prefix: str) -> None:
    data = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(cifar, prefix) | {"criterion.weight": torch.ones(CLASSES)},
        "hyper_parameters": {"cls_num_list": COUNTS, "loss": "CrossEntropy", "lr": 0.1},
    }
    model = load(tmp_path / "x.ckpt", data)
    assert torch.equal(logits_of(model.module), logits_of(cifar))
    assert model.source.layout == "PyTorch Lightning"
    assert model.trained_with == "cross_entropy"
    assert model.classes is not None
    assert any("criterion.weight" in note for note in model.source.notes)


def test_timms_training_checkpoint(tmp_path: Path) -> None:
    module = drawn(build("timm:resnet18", CLASSES))
    args = argparse.Namespace(
        model="resnet18", num_classes=CLASSES, drop_path=None, img_size=None, input_size=None,
        crop_pct=0.9, interpolation="", mean=None, std=None,
    )  # fmt: skip
    data = {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": module.state_dict(),
        "optimizer": {},
        "version": 2,
        "args": args,
        "metric": 71.0,
    }
    model = load(tmp_path / "model_best.pth.tar", data)
    assert model.arch == "timm:resnet18"
    assert (model.preprocessing.resize_px, model.preprocessing.interpolation) == (248, "bicubic")
    assert torch.equal(logits_of(model.module, 64), logits_of(module, 64))


def test_torchvisions_reference_scripts(tmp_path: Path) -> None:
    module = drawn(build("torchvision:resnet18", CLASSES))
    args = argparse.Namespace(
        model="resnet18", val_crop_size=128, val_resize_size=160, interpolation="bicubic"
    )
    model = load(tmp_path / "model_9.pth", {"model": module.state_dict(), "args": args})
    p = model.preprocessing
    assert model.arch == "torchvision:resnet18"
    assert (p.height_px, p.resize_px, p.interpolation) == (128, 160, "bicubic")


def test_a_name_that_two_families_know(tmp_path: Path) -> None:
    weights = build("torchvision:resnet18", CLASSES).state_dict()
    model = load(tmp_path / "x.pth", {"arch": "resnet18", "state_dict": weights})
    assert model.arch == "torchvision:resnet18"
    assert any("timm:resnet18" in n and "--arch" in n for n in model.source.notes)


def test_safetensors_with_metadata(tmp_path: Path, cifar: nn.Module) -> None:
    path = tmp_path / "x.safetensors"
    save_file(cifar.state_dict(), path, metadata={"arch": "resnet20", "format": "pt"})
    model = load_checkpoint(path, options=LoadOptions(classes=TABLE))
    assert isinstance(model, Classifier)
    assert torch.equal(logits_of(model.module), logits_of(cifar))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(
    tmp_path: Path, cifar: nn.Module, dtype: torch.dtype
) -> None:
    weights = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in cifar.state_dict().items()
    }
    model = load(tmp_path / "x.pth", weights)
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    torch.testing.assert_close(logits_of(model.module), logits_of(cifar), rtol=0.2, atol=0.2)


def test_batch_counters_of_old_files_may_be_missing(tmp_path: Path, cifar: nn.Module) -> None:
    weights = {k: v for k, v in cifar.state_dict().items() if "num_batches" not in k}
    assert torch.equal(logits_of(load(tmp_path / "x.pth", weights).module), logits_of(cifar))


def test_counts_of_the_wrong_length(tmp_path: Path, cifar: nn.Module) -> None:
    data = {"state_dict": cifar.state_dict(), "cls_num_list": COUNTS[:-1]}
    with pytest.raises(CheckpointError, match=r"6 training counts and a head of 7.*--classes"):
        load(tmp_path / "x.pth", data)
    model = load(tmp_path / "x.pth", data, classes=TABLE)
    assert model.classes == TABLE


@pytest.mark.parametrize(
    ("counts", "said"), [([5, -1, 3, 2, 1, 1, 1], "-1"), ([0] * 7, "All training counts are zero")]
)
def test_counts_that_cannot_be(
    tmp_path: Path, cifar: nn.Module, counts: list[int], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "x.pth", {"state_dict": cifar.state_dict(), "cls_num_list": counts})


def test_class_names_that_stand_twice(tmp_path: Path, cifar: nn.Module) -> None:
    data = {
        "state_dict": cifar.state_dict(),
        "cls_num_list": COUNTS,
        "class_names": ["moth"] * CLASSES,
    }
    with pytest.raises(CheckpointError, match="'moth' stands twice"):
        load(tmp_path / "x.pth", data)


def test_a_class_table_of_the_wrong_length(tmp_path: Path, cifar: nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"has 2 classes and the head .* has 7"):
        load(tmp_path / "x.pth", cifar.state_dict(), classes=ClassTable.from_counts([5, 1]))


def test_a_class_table_in_another_order(tmp_path: Path, cifar: nn.Module) -> None:
    """Silently taking it would give every class another class's counts."""
    data = {"state_dict": cifar.state_dict(), "class_names": list(NAMES)}
    turned = ClassTable(NAMES[::-1], tuple(COUNTS))
    with pytest.raises(CheckpointError, match="another order: label 0 is 'species 0'"):
        load(tmp_path / "x.pth", data, classes=turned)
    assert load(tmp_path / "x.pth", data, classes=TABLE).classes == TABLE


def test_names_of_the_file_go_with_counts_of_the_caller(tmp_path: Path, cifar: nn.Module) -> None:
    data = {"state_dict": cifar.state_dict(), "class_to_idx": {n: i for i, n in enumerate(NAMES)}}
    assert load(tmp_path / "x.pth", data, classes=ClassTable.from_counts(COUNTS)).classes == TABLE


def test_loading_leaves_the_random_state_alone(tmp_path: Path, cifar: nn.Module) -> None:
    before = torch.get_rng_state()
    load(tmp_path / "x.pth", cifar.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("recorded", "trained_with"),
    [
        ("CrossEntropyLoss", "cross_entropy"),
        ("CE", "cross_entropy"),
        ("SeesawLoss", "seesaw"),
        ("LogitAdjustedLoss", "logit_adjustment"),
        ("LogitAdjust", "logit_adjustment"),
        ("logit-adjustment", "logit_adjustment"),
        ("BSLoss", "balanced_softmax"),
        ("bsce", "balanced_softmax"),
        ("BalancedSoftmaxLoss", "balanced_softmax"),
        ("Balanced Softmax", "balanced_softmax"),
        ("LDAMLoss", "ldam"),
        ("FocalLoss", "focal"),
        ("VSLoss", "vector_scaling"),
        ("SomeOtherLoss", "someother"),
        ("loss", None),
    ],
)
def test_recorded_losses_have_one_name_each(
    tmp_path: Path, cifar: nn.Module, recorded: str, trained_with: str | None
) -> None:
    data = {"state_dict": cifar.state_dict(), "args": argparse.Namespace(loss=recorded)}
    assert load(tmp_path / "x.pth", data).trained_with == trained_with


@pytest.mark.parametrize(
    ("record", "trained_with"),
    [
        ({"train_rule": "Resample", "loss_type": "CE"}, "class_balanced_sampling"),
        ({"sampler": "class_balanced"}, "class_balanced_sampling"),
        ({"sampler": "ClassAwareSampler"}, "class_balanced_sampling"),
        ({"train_rule": "DRW", "loss_type": "LDAM"}, "class_balanced_weights"),
        ({"train_rule": "Resample", "loss_type": "bsce"}, "balanced_softmax"),
        ({"train_rule": "None", "loss_type": "CE"}, "cross_entropy"),
        ({"sampler": "RandomSampler", "loss_type": "LDAM"}, "ldam"),
    ],
)
def test_recorded_samplers_count_where_the_loss_is_plain(
    tmp_path: Path, cifar: nn.Module, record: dict[str, str], trained_with: str
) -> None:
    model = load(tmp_path / "x.pth", {"state_dict": cifar.state_dict(), "hyper_parameters": record})
    assert model.trained_with == trained_with
    noted = any("The file records class balanced" in note for note in model.source.notes)
    assert noted == trained_with.startswith("class_balanced")


def test_what_the_loader_calls_balanced_is_known_as_such() -> None:
    assert {"lws", "label_aware_smoothing", "bbn", "balanced_softmax"} <= BALANCED_LOSSES
    assert not {"cross_entropy", "ldam", "focal"} & BALANCED_LOSSES


@pytest.mark.parametrize("kind", [np.str_, np.bytes_])
def test_class_names_in_an_array(tmp_path: Path, cifar: nn.Module, kind: type) -> None:
    data = {"state_dict": cifar.state_dict(), "class_names": np.array(NAMES, dtype=kind)}
    assert load(tmp_path / "x.pth", data).source.class_names == NAMES
