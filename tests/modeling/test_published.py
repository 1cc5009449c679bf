"""Weights that other projects publish, in every model that has a place for them."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, TINY
from torch import Tensor, nn

from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.evaluation.run import evaluate_trained
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.published import init_weights
from lrreid_ext.weights import load_weights, read_state_dict


def model_of(yaml: str, *options: str) -> nn.Module:
    words = [*TINY, "MODEL.INIT.WEIGHTS", "", "MODEL.HEADS.NUM_CLASSES", "6", *options]
    return build_model(load_cfg(str(ROOT / yaml), words))


@pytest.fixture(scope="module")
def torchreids(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """An OSNet x0.25 under torchreid's names, of random numbers, with 1041 identities."""
    path = tmp_path_factory.mktemp("torchreid") / "osnet.pth"
    torch.manual_seed(1)
    ours = model_of("configs/osnet_hr.yml").state_dict()
    state = {
        k.removeprefix("backbone.").removeprefix("heads."): 0.1 * torch.rand(v.shape)
        for k, v in ours.items()
        if k.startswith(("backbone.", "heads.fc."))
    }
    state |= {"classifier.weight": torch.zeros(1041, 512), "classifier.bias": torch.zeros(1041)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path, state


OLD_MAP = [[r"^classifier\.", ""], [r"^fc\.", "heads.fc."], ["^", "backbone."]]


def test_torchreids_names_fill_every_place(
    torchreids: tuple[Path, dict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    file, state = torchreids
    plain, mapped = model_of("configs/osnet_hr.yml"), model_of("configs/osnet_hr.yml")
    with caplog.at_level(logging.INFO):
        init_weights(plain, file, form="torchreid")
    assert "left out: classifier.weight, classifier.bias" in caplog.text
    assert "initialised afresh: heads.classifier.weight" in caplog.text
    init_weights(mapped, file, OLD_MAP)
    both = zip(plain.state_dict().items(), mapped.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (name, a), b in both if "classifier" not in name)

    model = model_of("configs/osnet_sing.yml")
    init_weights(model, file, form="torchreid")
    for anchor in ("x2", "x3", "x4"):
        weight = model.state_dict()[f"anchors.{anchor}.backbone.conv2.0.conv1.conv.weight"]
        assert torch.equal(weight, state["conv2.0.conv1.conv.weight"])

    dual = model_of("configs/osnet_dual.yml")
    init_weights(dual, file, form="torchreid")
    filled = dual.state_dict()
    assert torch.equal(filled["backbone.stem.conv1.conv.weight"], state["conv1.conv.weight"])
    for stream in ("low", "high"):
        name = "conv3.0.conv1.conv.weight"
        assert torch.equal(filled[f"backbone.{stream}.{name}"], state[name])


def test_a_teacher_keeps_its_own_weights(torchreids: tuple[Path, dict[str, Tensor]]) -> None:
    model = model_of("configs/osnet_teacher.yml")
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("teacher.")}
    init_weights(model, torchreids[0], form="torchreid")
    assert before and all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


FASTREID = ["MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", "512"]


def test_fastreids_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As its trainer saves a Baseline: backbone, heads and the pixels' mean, in "model"."""
    torch.manual_seed(1)
    options = [*FASTREID, "MODEL.META_ARCHITECTURE", "Baseline", "MODEL.BACKBONE.PRETRAIN", "False"]
    theirs = model_of("configs/resnet50_hr.yml", *options)
    whole = theirs.state_dict().items()
    state = {k: torch.rand(v.shape) for k, v in whole if v.is_floating_point()}
    state |= {"pixel_mean": torch.zeros(1, 3, 1, 1), "heads.weight": torch.zeros(751, 512)}
    torch.save({"model": state, "iteration": 1}, tmp_path / "zoo.pth")
    ours = model_of("configs/resnet50_hr.yml", *FASTREID, "MODEL.BACKBONE.PRETRAIN", "False")
    with caplog.at_level(logging.INFO):
        init_weights(ours, tmp_path / "zoo.pth", form="fastreid")
    assert "left out: heads.weight, pixel_mean" in caplog.text
    filled = [k for k, v in ours.state_dict().items() if k in state and torch.equal(v, state[k])]
    assert {k for k in state if k.startswith("backbone.")} <= set(filled)
    assert "heads.bottleneck.0.weight" in filled and "heads.weight" not in filled

    # Another depth: the wrong shapes are listed, and nothing is loaded.
    other = model_of("configs/resnet50_hr.yml", "MODEL.BACKBONE.PRETRAIN", "False")
    with pytest.raises(WeightsError, match=r"backbone\.layer1\.0\.conv1\.weight \[64, 64, 3, 3\]"):
        init_weights(other, tmp_path / "zoo.pth", form="fastreid")


TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.PRETRAIN", "False"]


def test_timms_names_and_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    whole = timm.create_model("vit_tiny_patch16_224", img_size=(32, 32), num_classes=5, depth=2)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    options = [*TIMM, "MODEL.BACKBONE.TIMM_NAME", "vit_tiny_patch16_224"]
    model = model_of("configs/osnet_hr.yml", *options, "MODEL.BACKBONE.FEAT_DIM", "192")
    with caplog.at_level(logging.INFO):
        init_weights(model, tmp_path / "vit.pth", form="timm")
    filled = model.state_dict()
    assert filled["backbone.model.pos_embed"].shape == (1, 1 + 4 * 2, 192)
    name = "blocks.1.mlp.fc1.weight"
    assert torch.equal(filled[f"backbone.model.{name}"], whole.state_dict()[name])
    assert "left out: head.weight, head.bias" in caplog.text
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("initialised afresh: backbone.model.blocks.2" in w for w in warned)


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


def test_numbers_beside_the_weights_are_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchreid keeps numpy's numbers, under the name that the numpy of its day gave them."""
    file, weight = tmp_path / "a.pth", torch.ones(2)
    torch.save({"state_dict": {"w": weight}, "rank1": np.float64(0.9), "epoch": np.int64(3)}, file)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(file) as given, zipfile.ZipFile(old, "w") as made:
        for name in given.namelist():
            content = given.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content or b"numpy.core" in content
                content = content.replace(b"numpy._core.multi", b"numpy.core.multi")
            made.writestr(name, content)
    for path in (file, old):
        assert torch.equal(read_state_dict(path)["w"], weight)
    torch.save({"w": weight, "x": _Code()}, file)
    with pytest.raises(
        WeightsError, match=r"it holds pickled code \(\S*print\), which is not run$"
    ):
        read_state_dict(file)
    assert "this ran" not in capsys.readouterr().out
    file.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"a\.pth can't be read as weights"):
        read_state_dict(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, "missing in the file: bias"),
        ({"gain": torch.ones(2)}, "not in the model: gain"),
        ({"bias": torch.ones(3)}, r"of another shape: bias \[3\] in the file, \[2\] in the model"),
    ],
)
def test_weights_fit_whole_or_are_refused(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**nn.Linear(2, 2).state_dict(), **changes}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "a.pth")
    model = nn.Linear(2, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        WeightsError, match=rf"a\.pth: the weights don't fit the model\.\n  {message}"
    ):
        load_weights(model, tmp_path / "a.pth", key="MODEL.WEIGHTS")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    model = model_of("configs/osnet_hr.yml")
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"MODEL\.INIT\.FORMAT: 'torchried'.*'torchreid'"):
        init_weights(model, tmp_path / "other.pth", form="torchried")
    with pytest.raises(ConfigError, match="FORMAT or MAP"):
        init_weights(model, tmp_path / "other.pth", OLD_MAP, "torchreid")
    with pytest.raises(WeightsError, match=r"no key matched; the file has stem\.weight"):
        init_weights(model, tmp_path / "other.pth", form="torchreid")


def test_initial_weights_are_evaluated_as_they_are(
    make_cfg: Callable[..., CfgNode], torchreids: tuple[Path, dict[str, Tensor]]
) -> None:
    options = ["MODEL.INIT.WEIGHTS", str(torchreids[0]), "TEST.INITIAL", "True"]
    cfg = make_cfg("configs/osnet_hr.yml", [*TINY, *options])
    assert "mlr_market1501" in evaluate_trained(cfg)
    with pytest.raises(ConfigError, match=r"TEST\.INITIAL.*MODEL\.INIT\.WEIGHTS"):
        evaluate_trained(
            make_cfg("configs/osnet_hr.yml", [*TINY, "MODEL.INIT.WEIGHTS", "", *options[2:]])
        )
