"""SING: three streams, anchors, and what is evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY

from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.run import evaluate_trained
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.frontends import build_frontend
from lrreid_ext.modeling.meta_arch import take
from projects.SING.sing import SING

SMALL = [
    *TINY,
    "MODEL.SR.FILTERS", "[4, 3]",
    "MODEL.BACKBONE.DGD.WIDTH", "0.125",
    "MODEL.BACKBONE.FEAT_DIM", "192",
    "MODEL.HEADS.EMBEDDING_DIM", "16",
    "PHASES.srcnn.EPOCHS", "1",
    "PHASES.dgd.EPOCHS", "1",
    "PHASES.x2.EPOCHS", "1",
    "PHASES.x3.EPOCHS", "1",
    "PHASES.x4.EPOCHS", "1",
]  # fmt: skip


@pytest.fixture
def cfg(market_root: Path, tmp_path: Path) -> CfgNode:
    return sing_cfg(market_root, tmp_path)


def sing_cfg(root: Path, out: Path, *more: str) -> CfgNode:
    options = [*SMALL, "DATASETS.ROOT", str(root), "OUTPUT_DIR", str(out), *more]
    return load_cfg(str(ROOT / "projects/SING/synth.yml"), options)


def sing_model(cfg: CfgNode, **changes: Any) -> SING:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = "SING"
    cfg.MODEL.HEADS.NUM_CLASSES = 6
    for key, value in changes.items():
        cfg.SING[key] = value
    model = build_model(cfg)
    assert isinstance(model, SING)
    return model.train()


def paired_batch(count: int = 6, has_hr: list[bool] | None = None) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    images = {
        f"images_{twin}": 255 * torch.rand(count, 3, 64, 32, generator=draw)
        for twin in ("hr", "lr", "synthetic")
    }
    sizes = {"hr": (64, 32), "lr": (16, 8), "synthetic": (32, 16)}
    factors = {"hr": 1.0, "lr": 4.0, "synthetic": 2.0}
    return {
        **images,
        **{f"native_size_{k}": torch.tensor([v] * count) for k, v in sizes.items()},
        **{f"factor_{k}": torch.full((count,), v) for k, v in factors.items()},
        "has_hr": torch.tensor(has_hr or [True] * count),
        "images": images["images_lr"],
        "native_size": torch.tensor([(16, 8)] * count),
        "factor": torch.full((count,), 4.0),
        "targets": torch.arange(count) % 6,
        "camids": torch.zeros(count, dtype=torch.int64),
        "img_paths": ["-"] * count,
    }


def test_the_loss_is_the_sum_over_three_streams_and_the_pixel_loss(cfg: CfgNode) -> None:
    model, batch = sing_model(cfg), paired_batch()
    # So that the reference may pass each stream by itself.
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    losses = model(batch).losses

    def classified(images: torch.Tensor) -> torch.Tensor:
        logits = model.heads(model.backbone(model.normalise(images)))["cls_outputs"]
        return torch.nn.functional.cross_entropy(logits, batch["targets"])

    restored = model.frontend(batch["images_synthetic"], None).images
    expected = {
        "loss_smooth_cross_entropy_h": classified(batch["images_hr"]),
        "loss_smooth_cross_entropy_h2l": classified(restored),
        "loss_smooth_cross_entropy_l": classified(model.frontend(batch["images_lr"], None).images),
        "loss_sr": ((restored - batch["images_hr"]) / 255).square().mean(),
    }
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, msg=key)


def test_images_known_only_small_enter_the_lr_stream_alone(cfg: CfgNode) -> None:
    model = sing_model(cfg)
    mask = [True, False, True, False, True, True]
    batch = paired_batch(has_hr=mask)
    parts = {name: model.stream(name, batch) for name in ("h", "h2l", "l")}
    assert [len(p["images"]) for p in parts.values()] == [4, 4, 6]
    torch.testing.assert_close(parts["h2l"]["images_hr"], batch["images_hr"][mask])
    assert set(model(batch).losses) == set(model(paired_batch()).losses)
    # No pair at all: the same losses, those of the missing streams 0.
    losses = model(paired_batch(has_hr=[False] * 6)).losses
    assert set(losses) == set(model(batch).losses)
    assert losses["loss_sr"] == 0 and losses["loss_smooth_cross_entropy_h"] == 0
    assert losses["loss_smooth_cross_entropy_l"] > 0


def test_without_the_synthetic_stream_nothing_pairs_pixels(cfg: CfgNode) -> None:
    losses = sing_model(cfg, STREAMS=["h", "l"])(paired_batch()).losses
    assert "loss_sr" not in losses and "loss_smooth_cross_entropy_h2l" not in losses
    with pytest.raises(ConfigError, match=r"SING\.STREAMS.*hr"):
        sing_model(cfg, STREAMS=["hr"])
    for key, value in (("SYNTHETIC", 0.0), ("TRAIN_ON", "hr")):
        phase = cfg.clone()
        phase.defrost()
        phase.INPUT.LR.SYNTHETIC = 2.0
        phase.INPUT.LR[key] = value
        with pytest.raises(ConfigError, match=rf"INPUT\.LR\.{key}"):
            sing_model(cfg).check_phase(phase)
    with pytest.raises(ConfigError, match="a batch held no image that the streams h, h2l see"):
        sing_model(cfg, STREAMS=["h", "h2l"])(paired_batch(has_hr=[False] * 6))


def test_the_papers_lr_stream_sees_small_images_alone(cfg: CfgNode) -> None:
    model = sing_model(cfg, LR_STREAM="small")
    batch = paired_batch(has_hr=[True, False, True, True, False, True])
    assert len(model.stream("l", batch)["images"]) == 2
    assert set(model(batch).losses) == set(model(paired_batch()).losses)
    assert model(paired_batch()).losses["loss_smooth_cross_entropy_l"] == 0
    with pytest.raises(ConfigError, match=r"SING\.LR_STREAM"):
        sing_model(cfg, LR_STREAM="lr")


def test_alpha_weighs_the_pixel_loss_in_the_joint_step_alone(cfg: CfgNode) -> None:
    losses = {}
    for alpha in (0.0, 1.0, 10.0):
        model = sing_model(cfg)
        model.sr_weight = alpha
        joint = model(paired_batch()).losses.get("loss_sr", torch.zeros(()))
        model.set_step("sr")
        alone = model(paired_batch()).losses["loss_sr"]
        losses[alpha] = [float(joint.detach()), float(alone.detach())]
    assert losses[0.0][0] == 0
    assert losses[10.0][0] == pytest.approx(10 * losses[1.0][0], rel=1e-5)
    assert losses[0.0][1] == losses[1.0][1] == losses[10.0][1] > 0


def test_hr_images_are_not_restored_in_evaluation(cfg: CfgNode) -> None:
    model, batch = sing_model(cfg).eval(), paired_batch()
    batch |= {"images": batch["images_hr"], "factor": batch["factor_hr"]}
    torch.testing.assert_close(model.restore(batch).images, batch["images_hr"])


def test_take_takes_rows_of_everything_that_has_them() -> None:
    outputs = {"a": torch.arange(6), "b": [torch.arange(6) * 2], "c": torch.tensor(3.0), "d": "x"}
    rows = take(outputs, slice(2, 4), 6)
    assert rows["a"].tolist() == [2, 3] and rows["b"][0].tolist() == [4, 6]
    assert rows["c"] == 3 and rows["d"] == "x"


def test_a_skipped_anchor_starts_from_what_came_before_and_is_not_fused(
    market_root: Path, tmp_path: Path
) -> None:
    cfg = sing_cfg(market_root, tmp_path, "PHASES.x2.EPOCHS", "0", "PHASES.x3.EPOCHS", "0")
    trainer = Trainer(cfg)
    trainer.train()
    state = trainer.raw_model.state_dict()
    assert state["trained"].tolist() == [True, False, True]  # x2 by the phases srcnn and dgd
    keys = [k for k in state if k.startswith("anchors.x2.")]
    assert all(torch.equal(state[k], state[k.replace("x2", "x3", 1)]) for k in keys)
    results = json.loads((tmp_path / "results_mlr_market1501.json").read_text())
    assert results["fusion"]["anchors"] == [2, 4]
    single = sing_cfg(market_root, tmp_path, "TEST.FUSION.ANCHORS", "[4]")
    assert evaluate_trained(single)["mlr_market1501"]
    with pytest.raises(ConfigError, match=r"TEST\.FUSION\.ANCHORS.*5"):
        evaluate_trained(sing_cfg(market_root, tmp_path, "TEST.FUSION.ANCHORS", "[5]"))


def test_what_a_phase_lacks_is_found_before_the_first(market_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.LR\.SYNTHETIC"):
        Trainer(sing_cfg(market_root, tmp_path, "PHASES.x3.INPUT.LR.SYNTHETIC", "0"))
    with pytest.raises(ConfigError, match=r"TEST\.FUSION\.ANCHORS"):
        Trainer(sing_cfg(market_root, tmp_path, "TEST.FUSION.ANCHORS", "[5]"))


def test_a_front_end_is_taken_out_of_an_anchor(market_root: Path, tmp_path: Path) -> None:
    cfg = sing_cfg(market_root, tmp_path, "MODEL.HEADS.NUM_CLASSES", "6")
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "anchors.pth")
    alone = sing_cfg(
        market_root, tmp_path, "MODEL.SR.WEIGHTS", str(tmp_path / "anchors.pth"), "SEED", "9"
    )
    front = build_frontend(alone)
    wanted = model.anchors["x2"].frontend.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(v, wanted[k]) for k, v in front.state_dict().items())
