"""CSR-GAN: its losses against loops, who reaches whom, VGG-19, phases, and both SALR and MLR."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mini_sets
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, assert_same, state
from safetensors.torch import save_file
from torchvision.models import vgg as torchvision_vgg

from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.data.loaders import build_test_loader, build_test_set
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.evaluation.cost import parameters
from lrreid_ext.evaluation.run import evaluate_trained
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.contract import StepOutput
from lrreid_ext.modeling.frontends import build_frontend
from lrreid_ext.modeling.frontends.srgan import reduced
from projects.CSRGAN import CSRGAN, VGG19, Discriminator
from projects.CSRGAN.vgg import CONVOLUTIONS, from_timm, read_vgg

SMALL = [
    "MODEL.SR.CASCADE.BLOCKS", "1",
    "MODEL.SR.CASCADE.WIDTH", "4",
    "MODEL.BACKBONE.NAME", "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH", "x0_25",
    "MODEL.BACKBONE.FEAT_DIM", "128",
    "CSRGAN.DISCRIMINATOR.WIDTH", "4",
    "CSRGAN.DISCRIMINATOR.HIDDEN", "8",
    "PHASES.reid.EPOCHS", "1",
    "PHASES.generators.EPOCHS", "1",
    "PHASES.together.EPOCHS", "1",
]  # fmt: skip
YAML = "projects/CSRGAN/synth.yml"
WITH_VGG = [
    "CSRGAN.VGG_WEIGHT",
    "0.5",
    "CSRGAN.COMMON_WEIGHT",
    "2.0",
    "CSRGAN.VGG.LAYER",
    "conv2_2",
]


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return 255 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def narrow_features(width: int) -> torch.nn.Module:
    """torchvision's convolutions of VGG-19, all of one width."""
    layers: list[Any] = []
    for count in CONVOLUTIONS:
        layers += [width] * count + ["M"]
    return torchvision_vgg.make_layers(layers)


def vgg_state(width: int = 8, classes: int = 10) -> dict[str, torch.Tensor]:
    """Weights with torchvision's names for VGG-19, but of a network of a few channels."""
    torch.manual_seed(0)
    dense = [(width * 49, 8), (8, 8), (8, classes)]
    modules = {"features": narrow_features(width)}
    modules |= {
        f"classifier_{k}": torch.nn.Linear(*size) for k, size in zip((0, 3, 6), dense, strict=True)
    }
    state = torch.nn.ModuleDict(modules).state_dict()
    for value in state.values():  # so that 19 layers let something through
        if value.ndim > 1:
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
    return {k.replace("classifier_", "classifier."): v for k, v in state.items()}


def tiny_vgg(layer: str = "conv2_2") -> VGG19:
    return VGG19(vgg_state(), layer, where="test")


def batch(heights: tuple[int, ...] = (8, 8, 16, 16, 32, 64)) -> dict[str, Any]:
    count = len(heights)
    return {
        "images": pixels(count, 3, 64, 32),
        "images_hr": pixels(count, 3, 64, 32, seed=1),
        "native_size": torch.tensor([(h, h // 2) for h in heights]),
        "factor": 64 / torch.tensor(heights).float(),
        "has_hr": torch.ones(count, dtype=torch.bool),
        "targets": torch.arange(count) % 3,
        "camids": torch.zeros(count, dtype=torch.int64),
    }


@pytest.fixture
def model_of(make_cfg: Any) -> Any:
    """``model_of(*options)``: a small CSR-GAN in training mode, VGG-19 a tiny one."""

    def make(*options: str, vgg: bool = True) -> CSRGAN:
        cfg = make_cfg(YAML, [*TINY, *SMALL], *WITH_VGG, "MODEL.HEADS.NUM_CLASSES", "3", *options)
        model = build_model(cfg)
        assert isinstance(model, CSRGAN)
        if vgg:
            model.use_vgg(tiny_vgg())
        return model.train()

    return make


def learnt(model: torch.nn.Module, prefix: str) -> list[bool]:
    """Whether each parameter below ``prefix`` got a gradient that isn't 0."""
    named = [p for n, p in model.named_parameters() if n.startswith(prefix)]
    return [p.grad is not None and bool(p.grad.any()) for p in named]


def logged(step: StepOutput) -> set[str]:
    """The names of all losses and figures."""
    return {*step.figures, *(name for share in step.by_optimizer().values() for name in share)}


# ---------------------------------------------------------------------- losses
@pytest.mark.parametrize("common", ["logits", "probabilities"])
@pytest.mark.parametrize("mode", ["joint", "stagewise"])
def test_the_losses_against_a_loop(model_of: Any, common: str, mode: str) -> None:
    model = model_of("CSRGAN.COMMON", common, "MODEL.SR.CASCADE.MODE", mode)
    step = model(batch())
    losses = step.losses
    output, hr, share = model.supervised(model.restore(batch()), batch())
    assert share == 1.0
    pairs = model.frontend.pairs(output, hr)
    assert [len(restored) for restored, _ in pairs] == ([2, 4, 5] if mode == "joint" else [6, 6, 6])
    vgg = adversarial = discriminator = 0.0
    for stage, (restored, real) in enumerate(pairs):
        height = 64 // 2 ** (2 - stage)
        torch.testing.assert_close(real, reduced(hr[: len(restored)], (height, height // 2)))
        maps, hr_maps = model.vgg(restored), model.vgg(real)
        vgg += sum((a - b).square().mean() for a, b in zip(maps, hr_maps, strict=True)) / len(
            restored
        )
        no, yes = (model.discriminators[stage](x).sigmoid() for x in (restored, real))
        adversarial += -no.log().mean()
        discriminator += -yes.log().mean() - (1 - no).log().mean()
    a, b = (model.vgg.classify(model.vgg(x)) for x in pairs[-1])
    if common == "probabilities":
        a, b = a.softmax(1), b.softmax(1)
    common_human = sum((x - y).square().sum() / 10 for x, y in zip(a, b, strict=True)) / len(a)
    expected = {
        "vgg": 0.5 * vgg,
        "common_human": 2.0 * common_human,
        "adversarial": 1e-3 * adversarial,
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"loss_{name}"], value, rtol=1e-4, atol=1e-9, msg=name)
    torch.testing.assert_close(
        step.other_losses["discriminator"]["loss_discriminator"], discriminator
    )
    torch.testing.assert_close(losses["loss_sr"], model.frontend.losses(output, hr)["loss_sr"])
    assert losses["loss_smooth_cross_entropy"] > 0


def test_each_loss_can_be_left_out(model_of: Any) -> None:
    every = logged(model_of()(batch()))
    for key, gone in (
        ("CSRGAN.VGG_WEIGHT", {"loss_vgg"}),
        ("CSRGAN.COMMON_WEIGHT", {"loss_common_human"}),
        (
            "CSRGAN.ADVERSARIAL_WEIGHT",
            {"loss_adversarial", "loss_discriminator", "discriminator_accuracy"},
        ),
        ("MODEL.SR.LOSS_WEIGHT", {"loss_sr"}),
    ):
        assert every - logged(model_of(key, "0.0")(batch())) == gone
    without = model_of("CSRGAN.VGG_WEIGHT", "0.0", "CSRGAN.COMMON_WEIGHT", "0.0", vgg=False)
    assert "loss_sr" in without(batch()).losses  # and no VGG was asked for


def test_a_batch_that_passes_no_stage_has_the_same_losses(model_of: Any) -> None:
    model = model_of()
    full, none = model(batch()), model(batch((64, 64, 33, 40)))
    assert logged(none) == logged(full)
    for name in ("loss_sr", "loss_vgg", "loss_common_human", "loss_adversarial"):
        assert none.losses[name] == 0
    sum(v for share in none.by_optimizer().values() for v in share.values()).backward()
    for part in (model.frontend, model.discriminators):
        assert all(p.grad is not None for p in part.parameters())
    assert not any(learnt(model, "frontend") + learnt(model, "discriminators"))
    # And one of which no HR twin is known.
    small = batch()
    small["has_hr"] = torch.zeros(6, dtype=torch.bool)
    small["images_hr"] = small["images"]
    unknown = model(small)
    assert logged(unknown) == logged(full) and unknown.losses["loss_sr"] == 0
    assert unknown.other_losses["discriminator"]["loss_discriminator"] == 0


@pytest.mark.parametrize(("mode", "reaches"), [("joint", True), ("stagewise", False)])
def test_the_identity_loss_reaches_the_generators_in_joint_mode_alone(
    model_of: Any, mode: str, reaches: bool
) -> None:
    model = model_of("MODEL.SR.CASCADE.MODE", mode)
    losses = model(batch()).losses
    losses["loss_smooth_cross_entropy"].backward(retain_graph=True)
    assert set(learnt(model, "frontend")) == {reaches}
    assert any(learnt(model, "backbone"))
    for name in ("loss_sr", "loss_vgg", "loss_common_human", "loss_adversarial"):
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        # Eq. 8 is of the last stage, which in stagewise mode is reached alone.
        part = "frontend.generators.2" if name == "loss_common_human" else "frontend"
        assert all(learnt(model, part)), name
        assert not any(learnt(model, "backbone")), name


def test_no_loss_of_one_optimiser_reaches_what_the_other_steps(model_of: Any) -> None:
    model = model_of()
    statistics = {n: b.clone() for n, b in model.discriminators.named_buffers()}
    step = model(batch())
    sum(step.losses.values()).backward(retain_graph=True)
    assert all(p.grad is None for p in model.discriminators.parameters())
    model.zero_grad()
    step.other_losses["discriminator"]["loss_discriminator"].backward()
    others = [p for n, p in model.named_parameters() if not n.startswith("discriminators")]
    assert all(p.grad is None for p in others)
    assert all(learnt(model, "discriminators"))
    # Of two passes that its own loss needs; what the generators learn from leaves no trace.
    counts = {n: b for n, b in model.discriminators.named_buffers() if n.endswith("tracked")}
    assert all(int(b - statistics[n]) == 2 for n, b in counts.items())


def test_every_discriminator_changes_and_learns(model_of: Any) -> None:
    model = model_of()
    before = {n: p.clone() for n, p in model.discriminators.named_parameters()}
    output, hr, _ = model.supervised(model.restore(batch()), batch())
    # Clearly not alike, but not by any pixel's value alone: HR twins, and them without detail.
    pairs = []
    for _, real in model.frontend.pairs(output, hr):
        low = reduced(real, (real.shape[2] // 4, real.shape[3] // 4))
        pairs.append((F.interpolate(low, size=real.shape[2:], mode="bicubic"), real))
    optimizer = torch.optim.Adam(model.discriminators.parameters(), 3e-3)
    losses, accuracies = [], []
    for step in range(25):
        loss, accuracy = model.discriminator_loss(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            now = dict(model.discriminators.named_parameters())
            assert not [n for n, p in before.items() if torch.equal(p, now[n])]
        losses.append(loss.item())
        accuracies.append(accuracy.item())
    assert accuracies[-1] > 0.95 > accuracies[0]
    assert losses[-1] < 0.8 * losses[0]


class Bright(torch.nn.Module):
    """Takes bright images for real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(100.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)) - self.level


def test_accuracy_is_the_mean_over_stages_that_images_passed(model_of: Any) -> None:
    model = model_of()
    model.discriminators = torch.nn.ModuleList(Bright() for _ in range(3))
    dark, bright = torch.zeros(4, 3, 8, 4), torch.full((4, 3, 8, 4), 255.0)
    nothing = (dark[:1], bright[:1])
    assert model.discriminator_loss([nothing, (dark, bright), nothing])[1] == 1
    assert model.discriminator_loss([nothing, (dark, bright), (bright, dark)])[1] == 0.5
    assert model.discriminator_loss([nothing] * 3)[1] == 0.5


def test_any_front_end_that_learns_gets_one_discriminator(model_of: Any) -> None:
    model = model_of("MODEL.SR.NAME", "SRCNN", "MODEL.SR.FILTERS", "[4, 3]")
    losses = model(batch()).losses
    assert len(model.discriminators) == 1
    losses["loss_adversarial"].backward()
    assert any(learnt(model, "frontend"))
    plain = model_of("MODEL.SR.NAME", "Identity")
    assert not plain.discriminators
    assert set(plain(batch()).losses) == {"loss_smooth_cross_entropy"}


# ---------------------------------------------------------------------- discriminator, VGG-19
def test_the_discriminators_counts_are_srgans() -> None:
    with torch.device("meta"):
        pooled, whole = Discriminator(), Discriminator(size=(96, 96))
    assert parameters(pooled) == 5_215_425
    assert parameters(whole) == 5_215_425 + 512 * 1024 * (36 - 1) == 23_565_505
    convs = [m for m in pooled.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.out_channels, c.stride[0]) for c in convs] == [
        (64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2),
    ]  # fmt: skip
    assert Discriminator(4, 8, (30, 14))(pixels(2, 3, 30, 14)).shape == (2,)


def test_vgg_is_torchvisions() -> None:
    with torch.device("meta"):
        real = torchvision_vgg.vgg19().state_dict()
        theirs = timm.create_model("vgg19").state_dict()
    assert {k: v.shape for k, v in from_timm(theirs).items()} == {
        k: v.shape for k, v in real.items()
    }
    state = vgg_state()
    assert state.keys() == real.keys()
    features = narrow_features(8)
    features.load_state_dict(
        {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    )
    images = pixels(2, 3, 64, 32)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    normalised = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    for layer, depth in (("conv1_1", 2), ("conv2_2", 9), ("conv5_4", 36)):
        vgg = VGG19(state, layer, where="test")
        torch.testing.assert_close(vgg(images), features[:depth](normalised))
        x = F.adaptive_avg_pool2d(features(normalised), 7).flatten(1)
        for k in (0, 3):
            x = F.linear(x, state[f"classifier.{k}.weight"], state[f"classifier.{k}.bias"]).relu()
        x = F.linear(x, state["classifier.6.weight"], state["classifier.6.bias"])
        torch.testing.assert_close(vgg.train().classify(vgg(images)), x)
        assert not any(p.requires_grad for p in vgg.parameters()) and not vgg.training


def test_timms_first_dense_layer_reads_the_map_in_torchvisions_order() -> None:
    weight, maps = torch.randn(8, 4, 7, 7), torch.randn(2, 4, 7, 7)
    ours = from_timm({"pre_logits.fc1.weight": weight})["classifier.0.weight"]
    torch.testing.assert_close(F.linear(maps.flatten(1), ours), F.conv2d(maps, weight).flatten(1))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_vgg_is_read_from_a_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"vgg19.{ending}"
    (torch.save if ending == "pth" else save_file)(vgg_state(), path)
    vgg = read_vgg(str(path), "conv2_2", classes=True)
    torch.testing.assert_close(vgg(pixels(1, 3, 16, 8)), tiny_vgg()(pixels(1, 3, 16, 8)))
    maps = read_vgg(str(path), "conv2_2", classes=False)
    assert parameters(maps) < parameters(vgg)
    with pytest.raises(RuntimeError, match="without its classes"):
        maps.classify(maps(pixels(1, 3, 16, 8)))


def test_what_is_no_vgg_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = vgg_state()
    for name in ("features.34.bias", "classifier.0.weight"):
        with pytest.raises(WeightsError, match="not a VGG-19"):
            VGG19({k: v for k, v in state.items() if k != name}, where="x")
    with pytest.raises(WeightsError, match=r"VGG-19.*\n.*classifier\.0\.weight \[8, 5\]"):
        VGG19({**state, "classifier.0.weight": torch.zeros(8, 5)}, where="x")
    with pytest.raises(WeightsError, match="not a VGG-19"):
        VGG19({**state, "features.2.weight": torch.zeros(8, 9, 3, 3)}, where="x")
    with pytest.raises(ConfigError, match=r"CSRGAN\.VGG\.LAYER"):
        VGG19(state, "conv6_1", where="x")
    with pytest.raises(FileNotFoundError, match=r"CSRGAN\.VGG\.WEIGHTS"):
        read_vgg(str(tmp_path / "none.pth"), "conv5_4", classes=True)

    def unreachable(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ConfigError, match=r"no network.*CSRGAN\.VGG_WEIGHT 0"):
        read_vgg("vgg19.tv_in1k", "conv5_4", classes=True)


def test_without_vgg_training_says_what_to_do_and_evaluation_does_not_ask(make_cfg: Any) -> None:
    cfg = make_cfg(YAML, [*TINY, *SMALL], *WITH_VGG)
    with pytest.raises(ConfigError) as error:
        Trainer(cfg)
    for word in ("CSRGAN.VGG.WEIGHTS", "CSRGAN.VGG_WEIGHT 0", "CSRGAN.COMMON_WEIGHT 0"):
        assert word in str(error.value)
    cfg = make_cfg(YAML, [*TINY, *SMALL], *WITH_VGG, "MODEL.HEADS.NUM_CLASSES", "3")
    with torch.no_grad():
        assert build_model(cfg).eval()(batch()).shape[0] == 6


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["CSRGAN.VGG.LAYER", "conv5_4", "INPUT.SIZE_TRAIN", "[64, 32]"], "VGG.LAYER"),
        (["INPUT.SIZE_TRAIN", "[32, 16]", "INPUT.SIZE_TEST", "[32, 16]"], "COMMON_WEIGHT"),
        (["CSRGAN.COMMON", "softmax"], "COMMON"),
    ],
)
def test_what_cannot_be_followed_is_named_before_training(
    make_cfg: Any, options: list[str], key: str
) -> None:
    with pytest.raises(ConfigError, match=f"CSRGAN.{key}"):
        Trainer(make_cfg(YAML, [*TINY, *SMALL], *WITH_VGG, *options))


# ---------------------------------------------------------------------- phases
def with_tiny_vgg(cfg: CfgNode) -> Trainer:
    """A trainer whose VGG-19 is read from a tiny file beside the run."""
    path = Path(cfg.OUTPUT_DIR).parent / "vgg.pth"
    torch.save(vgg_state(), path)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.CSRGAN.VGG.WEIGHTS = str(path)
    return Trainer(cfg)


def test_stages_that_no_image_passes_stay_as_they_are_and_so_does_vgg(make_cfg: Any) -> None:
    only = ["INPUT.LR.FACTORS", "[3]", "INPUT.LR.FIXED", "False", "TEST.EVAL_PERIOD", "0"]
    adamw = ["SOLVER.OPT", "AdamW", "SOLVER.WEIGHT_DECAY", "0.1", "START_PHASE", "together"]
    cfg = make_cfg(YAML, [*TINY, *SMALL], *WITH_VGG, *only, *adamw)
    trainer = with_tiny_vgg(cfg)
    before, vgg = state(trainer), trainer.raw_model.vgg
    vgg_before = {k: v.clone() for k, v in vgg.state_dict().items()}
    assert not [k for k in before if "vgg" in k]
    trainer.train()
    moved = {k for k, v in state(trainer).items() if not torch.equal(v, before[k])}
    # 64 rows reduced by 3 are 21: the last stage alone.
    stages = {
        m[0] for k in moved if (m := re.match(r"(frontend\.generators|discriminators)\.\d", k))
    }
    assert stages == {"frontend.generators.2", "discriminators.2"}
    assert trainer.storage.latest()["loss_common_human"][0] > 0
    assert_same(vgg.state_dict(), vgg_before)
    assert evaluate_trained(cfg)["mlr_market1501"]  # which needs no VGG


def test_the_first_phase_is_trained_and_evaluated_without_the_cascade(make_cfg: Any) -> None:
    cfg = make_cfg(YAML, [*TINY, *SMALL], "MODEL.HEADS.NUM_CLASSES", "3")
    model = build_model(cfg).eval()
    with torch.no_grad():
        whole = model(batch())
        model.set_step("alone")
        alone = model(batch())
        plain = model.heads(model.backbone(model.normalise(batch()["images"])))
    torch.testing.assert_close(alone, plain)
    assert not torch.allclose(whole, alone)


# ---------------------------------------------------------------------- HR probe, LR gallery
SALR = {
    "salr_viper": ("VIPeR", mini_sets.viper, {"identities": 8, "train_identities": 6}),
    "salr_prid": ("prid_450s", mini_sets.prid, {"identities": 6, "train_identities": 4}),
    "salr_caviar": (
        "CAVIAR4REID",
        mini_sets.caviar,
        {"identities": 6, "train_identities": 4, "one_camera": 1},
    ),
    "caviar": ("CAVIAR4REID", mini_sets.caviar, {"identities": 6, "train_identities": 4}),
}


@pytest.mark.parametrize("name", SALR)
def test_low_images_enter_an_earlier_stage_on_either_side(name: str, tmp_path: Path) -> None:
    folder, make, options = SALR[name]
    make(tmp_path / folder)
    off = ["CSRGAN.VGG_WEIGHT", "0", "CSRGAN.COMMON_WEIGHT", "0"]
    cfg = load_cfg(
        str(ROOT / f"projects/CSRGAN/{name}.yml"),
        [
            *SMALL, *off, "MODEL.BACKBONE.PRETRAIN", "False", "MODEL.DEVICE", "cpu",
            "DATASETS.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "run"),
            *(w for k, v in options.items() for w in (f"DATASETS.OPTIONS.{name}.{k}", str(v))),
            "SOLVER.IMS_PER_BATCH", "4", "SOLVER.STEPS", "[]", "START_PHASE", "together",
            "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_WORKERS", "0", "TEST.TRIALS", "2",
        ],
    )  # fmt: skip
    frontend: Any = build_frontend(cfg)
    if name == "salr_viper":  # whose sizes are the real ones
        trainer = Trainer(cfg)
        trainer.train()
        frontend = trainer.raw_model.frontend
        groups = json.loads((tmp_path / "run" / f"results_{name}.json").read_text())["groups"]
        assert next(iter(groups)) == "query" and groups["query"]["multi_shot"]["mAP"] > 0
    test_set = build_test_set(cfg, name)
    stages: dict[str, list[int]] = {"query": [], "gallery": []}
    for images in build_test_loader(cfg, test_set):
        first = frontend.entry(images["images"], images["native_size"])
        for index, stage in zip(images["index"].tolist(), first.tolist(), strict=True):
            stages[test_set.samples[index].group].append(stage)
    low, high = ("gallery", "query") if name.startswith("salr") else ("query", "gallery")
    of_low, of_high = (sum(stages[side]) / len(stages[side]) for side in (low, high))
    assert of_low < of_high and min(stages[high]) > 0
    if name == "salr_viper":  # ratios up to 0.25, and 1
        assert set(stages[low]) <= {0, 1} and set(stages[high]) == {3}
