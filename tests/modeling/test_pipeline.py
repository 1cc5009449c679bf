"""The generic pipeline and PS-HRNet: what passes where, and what gets a gradient."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY_OSNET, TINY_PSHRNET
from mini_systems import MINI

from lrreid_ext.config import Phase
from lrreid_ext.engine.phases import freeze_for, set_modes
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.losses import l1_image, smooth_cross_entropy
from lrreid_ext.modeling.meta_arch.pipeline import loss_key

OSNET, PSHRNET = "configs/osnet_copies.yml", "projects/PSHRNet/mlr_market.yml"
TINY = [*TINY_OSNET, *MINI]
CLASSES = ["MODEL.HEADS.NUM_CLASSES", "4"]


def batch(factors=(1.0, 2.0, 4.0, 1.0)) -> dict:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(4, 3, 64, 32, generator=generator) * 255
    lr = (hr + torch.randn(hr.shape, generator=generator) * 20).clamp(0, 255)
    factor = torch.tensor(factors)
    return {
        "images": torch.where(factor.view(-1, 1, 1, 1) > 1, lr, hr),
        "images_hr": hr,
        "images_lr": lr,
        "native_size": torch.tensor([[64 // int(f), 32 // int(f)] for f in factors]),
        "factor": factor,
        "targets": torch.tensor([0, 0, 1, 1]),
    }


def test_only_low_resolution_images_pass_through_the_front_end(make_cfg):
    cfg = make_cfg(OSNET, TINY, *CLASSES, "MODEL.SR.NAME", "SRCNN", "MODEL.SR.APPLY", "lr")
    model = build_model(cfg).eval()
    data = batch()
    with torch.no_grad():
        out = model.restore(data).images
        whole = model.frontend(data["images"]).images
    assert torch.equal(out[[0, 3]], data["images"][[0, 3]])
    torch.testing.assert_close(out[[1, 2]], whole[[1, 2]])
    assert not torch.equal(out[1], data["images"][1])


def test_native_size_decides_where_the_factor_is_unknown(make_cfg):
    cfg = make_cfg(OSNET, TINY, *CLASSES, "MODEL.SR.APPLY", "lr")
    data = batch()
    del data["factor"]
    assert build_model(cfg).low_resolution(data).tolist() == [False, True, True, False]


def test_images_are_not_changed_in_place(make_cfg):
    model = build_model(make_cfg(PSHRNET, TINY_PSHRNET, *CLASSES)).eval()
    data = batch()
    before = {k: v.clone() for k, v in data.items()}
    with torch.no_grad():
        model(data)
    assert all(torch.equal(before[k], data[k]) for k in data)


def test_losses_are_what_the_parts_give(make_cfg):
    cfg = make_cfg(
        OSNET, TINY, *CLASSES, "MODEL.SR.NAME", "SRCNN", "MODEL.SR.LOSS_WEIGHT", "0.25",
        "MODEL.LOSSES.NAME", "['SmoothCrossEntropyLoss']", "MODEL.LOSSES.CE.SCALE", "3.0",
    )  # fmt: skip
    model = build_model(cfg).train()
    data = batch()
    losses = model(data).losses
    restored = model.frontend(data["images"]).images
    assert losses["loss_sr"].item() == pytest.approx(
        0.25 * l1_image(restored, data["images_hr"]).item(), rel=1e-5
    )
    outputs = model.heads(model.backbone(model.normalise(restored)), data["targets"])
    expected = 3.0 * smooth_cross_entropy(outputs["cls_outputs"], data["targets"], 0.1)
    assert losses["loss_smooth_cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_sr_step_trains_the_front_end_alone(make_cfg):
    cfg = make_cfg(OSNET, TINY, *CLASSES, "MODEL.SR.NAME", "VDSR", "MODEL.SR.DEPTH", "3")
    model = build_model(cfg).train()
    model.set_step("sr")
    losses = model(batch()).losses
    assert list(losses) == ["loss_sr"]
    losses["loss_sr"].backward()
    assert all(p.grad is not None for p in model.frontend.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_a_front_end_with_nothing_to_learn_says_so(make_cfg):
    model = build_model(make_cfg(OSNET, TINY, *CLASSES)).train()
    model.set_step("sr")
    with pytest.raises(ConfigError, match="nothing to learn"):
        model(batch())


def test_pseudo_siamese_loss_against_a_loop(make_cfg):
    cfg = make_cfg(PSHRNET, TINY_PSHRNET, *CLASSES, "MODEL.HEADS.DROPOUT", "0.0")
    model = build_model(cfg)
    phase = Phase("student", 1, 0, train=("frontend", "backbone", "heads"))
    freeze_for(model, phase, {n for n, _ in model.named_parameters()})
    set_modes(model, phase)
    data = batch()
    loss = model(data).losses["loss_ps"].item()
    with torch.no_grad():
        guide = model.teacher.heads.represent(
            model.teacher.backbone(model.normalise(data["images_hr"]))
        )
        student = model.heads.represent(
            model.backbone(model.normalise(model.frontend(data["images"]).images))
        )
    expected = 0.0
    for a, b in [
        (guide["sequences"][0], student["sequences"][0]),
        (guide["sequences"][3], student["sequences"][3]),
        (guide["sequences"][4], student["sequences"][4]),
        (guide["cls_outputs"], student["cls_outputs"]),
    ]:
        total = 0.0
        for row_a, row_b in zip(a.tolist(), b.tolist(), strict=True):
            total += sum(abs(x - y) for x, y in zip(row_a, row_b, strict=True))
        expected += total / a.numel()
    assert loss == pytest.approx(0.5 * expected, rel=1e-4)


def test_what_is_evaluated_follows_the_step(make_cfg):
    model = build_model(make_cfg(PSHRNET, TINY_PSHRNET, *CLASSES)).eval()
    data = batch()
    with torch.no_grad():
        student = model(data)
        model.set_step("teacher")
        teacher = model(data)
        expected = model.teacher.heads(model.teacher.backbone(model.normalise(data["images"])))
    assert torch.equal(teacher, expected)
    assert not torch.allclose(student, teacher)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["MODEL.SR.LOSS_WEIGHT", "0", "PSHRNET.PS_WEIGHT", "0"], set()),  # ID
        (["PSHRNET.PS_WEIGHT", "0"], {"loss_sr"}),  # SR + ID
        ([], {"loss_sr", "loss_ps"}),  # SR + ID + PS
        (["MODEL.SR.NAME", "Bicubic"], {"loss_ps"}),
    ],
)
def test_ablations_are_one_key_away(make_cfg, overrides, expected):
    model = build_model(make_cfg(PSHRNET, TINY_PSHRNET, *CLASSES, *overrides)).train()
    losses = set(model(batch()).losses)
    assert losses - {"loss_smooth_cross_entropy", "loss_sequence_triplet"} == expected


def test_unknown_terms_and_steps_are_named(make_cfg):
    cfg = make_cfg(PSHRNET, TINY_PSHRNET, *CLASSES, "PSHRNET.PS_TERMS", "['seq9']")
    with pytest.raises(ConfigError, match="'seq9'"):
        build_model(cfg).train()(batch())
    with pytest.raises(ConfigError, match="no step 'nap'"):
        build_model(cfg).set_step("nap")


def test_loss_keys():
    assert loss_key("BatchHardTripletLoss") == "loss_batch_hard_triplet"
    assert loss_key("CrossEntropyLoss") == "loss_cross_entropy"
    assert loss_key("Cosface") == "loss_cosface"


def test_a_trained_model_can_be_the_teacher(make_cfg, tmp_path):
    trained = build_model(make_cfg(OSNET, TINY, *CLASSES, "SEED", "7"))
    path = str(tmp_path / "hr.pth")
    torch.save({"model": trained.state_dict()}, path)
    cfg = make_cfg("configs/osnet_teacher.yml", TINY, *CLASSES)
    fresh = build_model(cfg)
    cfg.defrost()
    cfg.PSHRNET.TEACHER_WEIGHTS = path
    model = build_model(cfg)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[f"teacher.{name}"], tensor)
    name = "backbone.0.weight"
    assert not torch.equal(fresh.state_dict()[f"teacher.{name}"], trained.state_dict()[name])


def test_weights_that_cannot_be_had_are_said_in_one_line(make_cfg, monkeypatch, capsys):
    from conftest import ROOT

    from lrreid_ext.cli import main
    from lrreid_ext.modeling.backbones import pretrained

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(pretrained.timm, "create_model", offline)
    cfg = make_cfg(PSHRNET, TINY_PSHRNET)
    options = [*TINY_PSHRNET, "MODEL.BACKBONE.PRETRAIN", "True"]
    options += ["DATASETS.ROOT", cfg.DATASETS.ROOT, "OUTPUT_DIR", cfg.OUTPUT_DIR]
    assert main(["train", "--config-file", str(ROOT / PSHRNET), *options]) == 2
    err = capsys.readouterr().err
    assert "MODEL.BACKBONE.PRETRAIN False" in err
    assert "Traceback" not in err


def test_masks_go_with_the_images_that_pass_through_the_front_end(make_cfg):
    more = ["MODEL.SR.NAME", "FFSR", "MODEL.SR.WIDTH", "4", "MODEL.SR.MASK", "given"]
    options = [*CLASSES, *more, "MODEL.SR.APPLY", "lr", "MODEL.SR.LOSS", "mse"]
    model = build_model(make_cfg(OSNET, TINY, *options)).train()
    data = batch()
    masks = torch.zeros(4, 1, 64, 32)
    masks[[0, 3]] = 1.0  # of the HR images, which by-pass the front-end
    assert model({**data, "masks": masks}).losses["loss_foreground"] == 0
    masks = 1.0 - masks
    losses = model({**data, "masks": masks}).losses
    torch.testing.assert_close(losses["loss_foreground"], losses["loss_sr"])
    with pytest.raises(ConfigError, match=r"INPUT\.MASKS"):
        model(data)


def test_images_without_an_hr_twin_have_no_pixel_loss(make_cfg):
    more = ["MODEL.SR.NAME", "SRCNN", "MODEL.SR.LOSS", "mse"]
    model = build_model(make_cfg(OSNET, TINY, *CLASSES, *more)).train()
    data = batch((2.0, 2.0, 4.0, 4.0))
    restored = model.frontend(data["images_lr"]).images
    error = ((restored - data["images_hr"]) / 255).square().mean((1, 2, 3))
    has_hr = torch.tensor([True, False, True, False])
    losses = model({**data, "has_hr": has_hr}).losses
    torch.testing.assert_close(losses["loss_sr"], error[has_hr].mean())
    assert model({**data, "has_hr": torch.zeros(4, dtype=torch.bool)}).losses["loss_sr"] == 0


def test_a_backbones_own_losses_count_while_it_learns(make_cfg):
    more = [
        "MODEL.BACKBONE.NAME", "build_dual_stream_backbone",
        "MODEL.BACKBONE.DUAL.BASE", MINI[1], "MODEL.BACKBONE.DUAL.FUSE", "end",
        "MODEL.BACKBONE.DUAL.WIDEST", "32",
    ]  # fmt: skip
    model = build_model(make_cfg(OSNET, TINY, *CLASSES, *more)).train()
    assert model(batch()).losses["loss_gates"] > 0
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    assert "loss_gates" not in model(batch()).losses
