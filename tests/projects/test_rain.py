"""RAIN: what discriminators and extractor learn from whom, the decoder, labels that lack."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, state

from lrreid_ext.config import CfgNode
from lrreid_ext.data.paired import select
from lrreid_ext.engine.optimizers import build_optimizers
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.contract import StepOutput
from lrreid_ext.modeling.losses import batch_hard_triplet, fool, mean_over, tell_apart
from projects.RAIN import RAIN, HRDecoder, ResolutionCritic

YAML = "projects/RAIN/synth.yml"
OSNET = [
    *TINY,
    "MODEL.BACKBONE.NAME", "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH", "x0_25",
    "MODEL.BACKBONE.FEAT_DIM", "128",
    "MODEL.HEADS.EMBEDDING_DIM", "16",
    "MODEL.HEADS.NUM_CLASSES", "6",
    "RAIN.LEVELS", "['conv3', 'conv5']",
    "RAIN.CRITIC_WIDTH", "8",
    "RAIN.DECODER.LEVEL", "conv5",
    "PHASES.joint.EPOCHS", "2",
]  # fmt: skip
Make = Callable[..., CfgNode]


def paired(count: int = 6, labelled: int | None = None) -> dict[str, Any]:
    """A batch of ``count`` people, HR and then LR, whose LR twins lack every fine detail."""
    draw = torch.Generator().manual_seed(0)
    hr = 255 * torch.rand(count, 3, 64, 32, generator=draw)
    lr = F.interpolate(F.avg_pool2d(hr, 8), scale_factor=8)
    targets = torch.arange(count) % 3
    if labelled is not None:
        targets[labelled:] = -1
    batch = {
        "images_hr": hr, "images_lr": lr,
        "native_size_hr": torch.tensor([(64, 32)] * count),
        "native_size_lr": torch.tensor([(8, 4)] * count),
        "factor_hr": torch.ones(count), "factor_lr": torch.full((count,), 8.0),
        "has_hr": torch.ones(count, dtype=torch.bool),
        "targets": targets, "camids": torch.zeros(count, dtype=torch.int64),
    }  # fmt: skip
    return select(batch, "both")


def rain_model(cfg: CfgNode) -> RAIN:
    model = build_model(cfg)
    assert isinstance(model, RAIN)
    return model.train()


def all_losses(output: StepOutput) -> dict[str, torch.Tensor]:
    return {k: v for share in output.by_optimizer().values() for k, v in share.items()}


# ---------------------------------------------------------------- adversaries
@pytest.mark.parametrize("levels", [["conv5"], ["conv2", "conv4.0", "conv5"]])
def test_every_discriminator_changes_in_one_step_and_learns(
    make_cfg: Make, levels: list[str]
) -> None:
    cfg = make_cfg(YAML, OSNET, "RAIN.LEVELS", str(levels), "RAIN.ADVERSARIAL_WEIGHT", "0")
    model, batch = rain_model(cfg), paired()
    optimizer = build_optimizers(cfg, model, 10)["critic"].optimizer
    names = [level.replace(".", "_") for level in levels]
    assert list(model.critics) == names

    def step() -> StepOutput:
        optimizer.zero_grad()
        output = model(batch)
        sum(output.other_losses["critic"].values()).backward()
        optimizer.step()
        return output

    before = {k: p.clone() for k, p in model.named_parameters()}
    first = step()
    for key, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[key])
        assert moved == key.startswith("critics."), key
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    for _ in range(30):
        last = step()
    for name in names:
        figure, loss = f"critic_accuracy_{name}", f"loss_critic_{name}"
        assert last.figures[figure] == 1.0 > first.figures[figure]
        assert last.other_losses["critic"][loss] < 0.5 * first.other_losses["critic"][loss]


def test_neither_side_gets_gradient_from_the_others_losses(make_cfg: Make) -> None:
    model, batch = rain_model(make_cfg(YAML, OSNET)), paired()
    shares = model(batch).by_optimizer()
    sum(shares["main"].values()).backward(retain_graph=True)
    critics = dict(model.critics.named_parameters())
    assert critics and all(p.grad is None for p in critics.values())
    others = [p for k, p in model.named_parameters() if not k.startswith("critics.")]
    assert all(p.grad is not None for p in others)
    model.zero_grad()
    sum(shares["critic"].values()).backward()
    assert all(p.grad is None for p in others)
    assert all(bool(p.grad.abs().sum() > 0) for p in critics.values())
    assert all(p.requires_grad for p in critics.values())


def test_the_adversarial_loss_makes_lr_maps_pass_for_hr_ones(make_cfg: Make) -> None:
    """Only LR images pull at the extractor, and a step along it raises their logits."""
    model = rain_model(make_cfg(YAML, OSNET, "RAIN.ADVERSARIAL_WEIGHT", "1"))
    maps = torch.randn(6, 128, 8, 4, requires_grad=True)
    low = torch.tensor([False, True, False, True, True, False])
    critic = model.critic("conv5")
    fool(critic(maps), low).backward()
    assert maps.grad is not None
    assert [bool(g.abs().sum() > 0) for g in maps.grad] == low.tolist()
    with torch.no_grad():
        before, after = (critic(m).mean((1, 2, 3)) for m in (maps, maps - 10 * maps.grad))
    assert torch.equal(after > before, low)
    losses = model(paired()).losses
    assert {"loss_adversarial_conv3", "loss_adversarial_conv5"} <= losses.keys()


def test_adversarial_losses_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3.0), -1.0, 2.0])
    fake = torch.tensor([False, False, True, True])
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    # -log sigmoid(0) = log 2, -log sigmoid(log 3) = log 4/3.
    real = (math.log(2) + math.log(4 / 3)) / 2
    assert tell_apart(logits, fake) == pytest.approx(real + (softplus(-1) + softplus(2)) / 2)
    assert fool(logits, fake) == pytest.approx((softplus(1) + softplus(-2)) / 2)
    target = (~fake).float()
    naive = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(tell_apart(logits, fake), naive[:2].mean() + naive[2:].mean())
    assert fool(logits, torch.zeros(4, dtype=torch.bool)) == 0
    maps = torch.arange(8.0).view(2, 1, 2, 2)
    assert mean_over(maps, torch.tensor([False, True])) == 5.5


def test_discriminators_need_both_resolutions(make_cfg: Make) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.LR\.TRAIN_ON 'hr'.*RAIN\.LEVELS"):
        Trainer(make_cfg(YAML, OSNET, "INPUT.LR.TRAIN_ON", "hr"))
    Trainer(make_cfg(YAML, OSNET, "INPUT.LR.TRAIN_ON", "hr", "RAIN.LEVELS", "[]"))


def test_an_unknown_level_is_named_with_those_there_are(make_cfg: Make) -> None:
    with pytest.raises(ConfigError, match=r"RAIN\.LEVELS: OSNet has no level 'layer4'.*conv5"):
        rain_model(make_cfg(YAML, OSNET, "RAIN.LEVELS", "['layer4']"))
    with pytest.raises(ConfigError, match=r"RAIN\.DECODER\.LEVEL.*'layer4'"):
        rain_model(make_cfg(YAML, OSNET, "RAIN.DECODER.LEVEL", "layer4"))


# ---------------------------------------------------------------- decoder
@pytest.mark.parametrize(
    ("channels", "stride", "size", "widths"),
    [
        (2048, 32, (64, 32), (2048, 1024, 512, 256, 64, 3)),  # ResNet-50, as the paper
        (512, 16, (64, 32), (512, 256, 128, 64, 16, 3)),
        (128, 16, (50, 21), (128, 64, 32, 16, 16, 3)),
    ],
)
def test_decoder_shapes(channels: int, stride: int, size: Any, widths: Any) -> None:
    decoder = HRDecoder(channels, stride)
    assert decoder.widths == widths
    maps = torch.randn(1, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    assert decoder(maps, size).shape == (1, 3, *size)
    ups = [m for m in decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert len(ups) == math.log2(stride)
    with pytest.raises(ConfigError, match=r"RAIN\.DECODER\.WIDTHS"):
        HRDecoder(channels, stride, [8])


def test_critic_keeps_the_maps_size() -> None:
    assert ResolutionCritic(32, 4)(torch.randn(2, 32, 4, 2)).shape == (2, 1, 4, 2)


# ---------------------------------------------------------------- all losses
@pytest.mark.parametrize("labelled", [6, 3, 0])
def test_losses_against_a_naive_version(make_cfg: Make, labelled: int) -> None:
    cfg = make_cfg(YAML, OSNET, "RAIN.ADVERSARIAL_WEIGHT", "0.5", "RAIN.CRITIC_WEIGHT", "0.25")
    model, batch = rain_model(cfg), paired(6, labelled)
    losses = all_losses(model(batch))

    normalised = (batch["images"] - model.pixel_mean) / model.pixel_std
    wanted = (batch["images_hr"] - model.pixel_mean) / model.pixel_std
    backbone = model.backbone
    f3 = backbone.conv3(backbone.conv2(backbone.maxpool(backbone.conv1(normalised))))
    f5 = backbone.conv5(backbone.conv4(f3))
    head = model.heads(f5, batch["targets"].clamp(min=0))
    decoded = model.decoder(f5, (64, 32))
    expected: dict[str, Any] = {}
    reconstruction = 0.0
    for name, rows in (("h", range(6)), ("l", range(6, 12))):
        labelled_rows = [i for i in rows if batch["targets"][i] >= 0]
        targets = batch["targets"][labelled_rows]
        # 10 * cross entropy and 20 * batch-hard triplets with margin 2, of this resolution alone.
        ce = [-F.log_softmax(head["cls_outputs"][i], 0)[batch["targets"][i]] for i in labelled_rows]
        triplet = (
            batch_hard_triplet(head["features"][labelled_rows], targets, 2.0)
            if labelled_rows
            else torch.zeros(())
        )
        expected[f"loss_smooth_cross_entropy_{name}"] = 10 * sum(ce) / max(len(ce), 1)
        expected[f"loss_batch_hard_triplet_{name}"] = 20 * triplet
        # Unlabelled images are reconstructed too.
        each = [(decoded[i] - wanted[i]).abs().mean() for i in rows]
        reconstruction += sum(each) / len(each)
    expected["loss_reconstruction"] = reconstruction
    for level, maps in (("conv3", f3), ("conv5", f5)):
        logits = model.critic(level)(maps)
        hr = F.binary_cross_entropy_with_logits(logits[:6], torch.ones_like(logits[:6]))
        lr = F.binary_cross_entropy_with_logits(logits[6:], torch.zeros_like(logits[6:]))
        flipped = F.binary_cross_entropy_with_logits(logits[6:], torch.ones_like(logits[6:]))
        expected[f"loss_adversarial_{level}"] = 0.5 * flipped
        expected[f"loss_critic_{level}"] = 0.25 * (hr + lr)
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], torch.as_tensor(value), msg=key, check_dtype=False)


def test_images_known_only_small_are_lr_and_have_no_twin(make_cfg: Make) -> None:
    model = rain_model(make_cfg(YAML, OSNET))
    batch = paired()
    batch["has_hr"][[1, 7]] = False
    batch["images_hr"][[1, 7]] = float("nan")  # nothing may look at them
    losses = all_losses(model(batch))
    assert all(bool(torch.isfinite(v)) for v in losses.values())


def test_parts_can_be_left_out(make_cfg: Make) -> None:
    options = ["RAIN.LEVELS", "[]", "RAIN.RECONSTRUCTION_WEIGHT", "0"]
    cfg = make_cfg(YAML, OSNET, *options)
    model = rain_model(cfg)
    assert model.decoder is None and not model.critics
    assert list(build_optimizers(cfg, model, 10)) == ["main"]
    names = {"loss_smooth_cross_entropy", "loss_batch_hard_triplet"}
    assert set(all_losses(model(paired()))) == {f"{n}_{s}" for n in names for s in "hl"}
    together = rain_model(make_cfg(YAML, OSNET, *options, "RAIN.BY_RESOLUTION", "False"))
    assert set(all_losses(together(paired()))) == names


# ---------------------------------------------------------------- training
@pytest.mark.parametrize(("share", "classes"), [("1", 6), ("0", 1)])
def test_trains_with_any_share_of_labels(make_cfg: Make, share: str, classes: int) -> None:
    cfg = make_cfg(
        YAML, OSNET, "DATASETS.LABELLED", share, "MODEL.HEADS.NUM_CLASSES", "0",
        "PHASES.joint.EPOCHS", "1", "SOLVER.IMS_PER_BATCH", "12",
    )  # fmt: skip
    trainer = Trainer(cfg)
    before = state(trainer)
    # A classifier for people with a label, with one output if there are none.
    assert before["heads.weight"].shape[0] == classes
    trainer.train()
    after = state(trainer)
    moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved >= {"backbone", "critics", "decoder"}
