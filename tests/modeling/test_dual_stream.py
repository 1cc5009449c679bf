"""The dual-stream backbone against loops written out by hand, and against its own base."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.cost import gmacs, parameters
from lrreid_ext.modeling.backbones import DualStream, build_backbone
from lrreid_ext.modeling.backbones.dual_stream import Gate

KINDS = {
    "resnet18": {"DEPTH": "18x", "FEAT_DIM": 512},
    "resnet18_ibn_se": {"DEPTH": "18x", "FEAT_DIM": 512, "WITH_IBN": True, "WITH_SE": True},
    "osnet": {"DEPTH": "x0_25", "FEAT_DIM": 128, "BASE": "build_osnet_backbone"},
}


def dual_cfg(kind="resnet18", **dual):
    cfg = get_cfg()
    node = cfg.MODEL.BACKBONE
    node.NAME = "build_dual_stream_backbone"
    node.PRETRAIN = False
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [64, 32]
    settings = dict(KINDS[kind])
    node.DUAL.BASE = settings.pop("BASE", "build_resnet_backbone")
    for name, value in settings.items():
        node[name] = value
    for name, value in dual.items():
        node.DUAL[name] = value
    return cfg


def build(kind="resnet18", seed=0, **dual):
    torch.manual_seed(seed)
    return build_backbone(dual_cfg(kind, **dual))


def base_of(kind):
    cfg = dual_cfg(kind)
    return build_backbone(cfg, cfg.MODEL.BACKBONE.DUAL.BASE)


def tiny(alike=False, **options):
    """Two networks of one layer, fused at their end."""
    torch.manual_seed(0)
    low, high = (nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.ReLU()) for _ in range(2))
    if alike:
        high.load_state_dict(low.state_dict())
    return DualStream(low, high, **{"fuse": "end", "gate_dim": 4, "size": (64, 32), **options})


SIZES = {"native_size": torch.tensor([[64, 32], [16, 8]])}


def restarted(model, seed=5):
    """Batch statistics that aren't 0 and 1, so that a forgotten layer shows."""
    torch.manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def images(count=2, size=(64, 32)):
    torch.manual_seed(1)
    return torch.randn(count, 3, *size)


def resnet_stages(part):
    return [part.layer1, part.layer2, part.layer3, part.layer4]


def gate(model, stream, t, maps):
    """GAP - FC - ReLU - FC - sigmoid, number by number."""
    layers = model.gates[stream][t]
    weights = []
    for one in maps:
        pooled = torch.stack([channel.sum() / channel.numel() for channel in one])
        hidden = [
            max(0.0, float((row * pooled).sum() + bias))
            for row, bias in zip(layers.fc1.weight, layers.fc1.bias, strict=True)
        ]
        out = float((layers.fc2.weight[0] * torch.tensor(hidden)).sum() + layers.fc2.bias[0])
        weights.append(1 / (1 + torch.tensor(-out).exp()))
    return torch.stack(weights)


@pytest.mark.parametrize("gates", ["learned", "equal"])
@torch.no_grad()
def test_blocks_fuse_by_equation_6(gates):
    model = restarted(build(GATE_DIM=8, GATES=gates)).eval()
    x = images()
    before = x.clone()
    fused, extras = model.forward_with_extras(x)
    assert torch.equal(x, before)

    maps = model.stem.maxpool(model.stem.relu(model.stem.bn1(model.stem.conv1(x))))
    stages = zip(resnet_stages(model.low), resnet_stages(model.high), strict=True)
    for t, (low, high) in enumerate(stages):
        a, b = low(maps), high(maps)
        wl = wh = torch.full((2,), 0.5)
        if gates == "learned":
            wl, wh = gate(model, "low", t, a), gate(model, "high", t, b)
        torch.testing.assert_close(extras["gates"][:, t], torch.stack([wl, wh], 1))
        maps = torch.stack([wl[i] * a[i] + wh[i] * b[i] for i in range(len(x))])
    torch.testing.assert_close(fused, maps)
    assert extras["gates"].shape == (2, 4, 2)
    assert torch.equal(model(x), fused)


def test_the_gates_loss_is_equation_7_summed_over_the_blocks():
    model = tiny(gate_weight=0.3, widest=64)
    gates = torch.rand(3, 4, 2)
    widths = [16, 64, 80]  # the last one wider than the widest: r is 1
    batch = {"native_size": torch.tensor([[128, w] for w in widths])}
    total = 0.0
    for t in range(4):
        for i, r in enumerate((0.25, 1.0, 1.0)):
            wl, wh = (float(w) for w in gates[i, t])
            total += ((wl - (1 - r)) ** 2 + (wh - r) ** 2) / 3
    losses = model.losses({"gates": gates}, batch)
    assert list(losses) == ["loss_gates"]
    assert float(losses["loss_gates"]) == pytest.approx(0.3 * total, rel=1e-5)
    assert losses["loss_gates"].dtype == torch.float32
    perfect = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.0, 1.0]])[:, None].repeat(1, 4, 1)
    assert float(model.losses({"gates": perfect}, batch)["loss_gates"]) == 0


def test_no_loss_without_gates_or_weight():
    gates = {"gates": torch.rand(2, 1, 2)}
    for options in ({"gates": "equal"}, {"gate_weight": 0.0}):
        assert tiny(widest=32, **options).losses(gates, SIZES) == {}
    with pytest.raises(ConfigError, match=r"DUAL\.WIDEST.*prepare"):
        tiny().losses(gates, SIZES)


@pytest.mark.parametrize(
    ("kind", "gates", "fuse"),
    [
        ("resnet18_ibn_se", "learned", "blocks"),
        ("osnet", "learned", "blocks"),
        ("osnet", "equal", "end"),
    ],
)
def test_every_kind_learns_is_saved_and_read_again(kind, gates, fuse, tmp_path):
    model = build(kind, FUSE=fuse, GATES=gates, GATE_DIM=4, WIDEST=32)
    x = images()
    out, extras = model.forward_with_extras(x)
    assert out.shape[:2] == (2, KINDS[kind]["FEAT_DIM"])
    assert extras["gates"].shape == (2, 1 if fuse == "end" else 4, 2)
    loss = (out * torch.randn_like(out)).sum()
    losses = model.losses(extras, SIZES)
    assert bool(losses) == (gates == "learned")
    (loss + sum(losses.values())).backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None]
    assert not [k for k, p in model.named_parameters() if not bool(p.grad.isfinite().all())]

    torch.save(model.state_dict(), tmp_path / "dual.pth")
    again = build(kind, seed=9, FUSE=fuse, GATES=gates, GATE_DIM=4)
    again.load_state_dict(torch.load(tmp_path / "dual.pth", weights_only=True))
    assert int(again.widest) == 32
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), model.eval()(x))


@torch.no_grad()
def test_fused_at_the_end_it_is_two_networks():
    model = restarted(build(FUSE="end", GATE_DIM=8)).eval()
    low, high = base_of("resnet18").eval(), base_of("resnet18").eval()
    state = model.state_dict()
    for name, network in (("low.", low), ("high.", high)):
        network.load_state_dict({k[len(name) :]: v for k, v in state.items() if k.startswith(name)})
    x = images()
    a, b = low(x), high(x)
    assert not torch.equal(a, b)
    wl, wh = gate(model, "low", 0, a), gate(model, "high", 0, b)
    wanted = wl[:, None, None, None] * a + wh[:, None, None, None] * b
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_alike_streams_whose_weights_add_up_to_one_are_the_base(kind):
    torch.manual_seed(3)
    base = restarted(base_of(kind)).eval()
    x = images()
    wanted = base(x)
    model = DualStream(base, copy.deepcopy(base), gate_dim=4, size=(64, 32)).eval()
    # A sigmoid of -z and one of z add up to 1, whatever the image.
    for low, high in zip(model.gates["low"], model.gates["high"], strict=True):
        high.load_state_dict(low.state_dict())
        high.fc2.weight.neg_()
        high.fc2.bias.neg_()
    fused, extras = model.forward_with_extras(x)
    torch.testing.assert_close(extras["gates"].sum(2), torch.ones_like(extras["gates"][..., 0]))
    torch.testing.assert_close(fused, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_non_local_layers_stay_in_their_stages():
    cfg = dual_cfg(GATES="equal")
    node = cfg.MODEL.BACKBONE
    node.DEPTH, node.FEAT_DIM, node.WITH_NL = "50x", 2048, True
    torch.manual_seed(0)
    base = restarted(build_backbone(cfg, node.DUAL.BASE)).eval()
    for name, parameter in base.named_parameters():
        if name.startswith("NL_"):
            parameter.normal_(0, 0.02)
    x = images(1)
    wanted = base(x)
    assert bool(wanted.isfinite().all())
    both = DualStream(base, copy.deepcopy(base), gates="equal", size=(64, 32)).eval()
    torch.testing.assert_close(both(x), wanted, rtol=1e-4, atol=1e-4)
    assert "NL_3.2" in both.blocks[2]


def test_rife_on_resnet_50_doubles_the_blocks():
    cfg = dual_cfg()
    cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.FEAT_DIM = "50x", 2048
    with torch.device("meta"):
        rife = build_backbone(cfg)
        base = build_backbone(cfg, cfg.MODEL.BACKBONE.DUAL.BASE)
        assert tuple(rife(torch.zeros(1, 3, 256, 128)).shape) == (1, 2048, 16, 8)
        single, double = (gmacs(m, torch.zeros(1, 3, 256, 128)) for m in (base, rife))
    assert rife.channels == (256, 512, 1024, 2048)
    blocks = sum(parameters(part) for part in resnet_stages(base))
    assert parameters(base) - blocks == 3 * 64 * 49 + 2 * 64
    gates = 2 * sum(c * 64 + 64 + 64 + 1 for c in rife.channels)
    assert parameters(rife) == parameters(base) + blocks + gates
    assert 1.9 < double / single < 2.0


def test_random_streams_differ_and_pretrained_ones_do_not(tmp_path):
    drawn = build("osnet").state_dict()
    name = "conv2.0.conv1.conv.weight"
    assert not torch.equal(drawn[f"low.{name}"], drawn[f"high.{name}"])
    torch.save(base_of("osnet").state_dict(), tmp_path / "base.pth")
    weights = torch.load(tmp_path / "base.pth", weights_only=True)
    cfg = dual_cfg("osnet")
    cfg.MODEL.BACKBONE.PRETRAIN = True
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = str(tmp_path / "base.pth")
    loaded = build_backbone(cfg).state_dict()
    for name, value in weights.items():
        for part in ("stem",) if name.startswith("conv1.") else ("low", "high"):
            assert torch.equal(loaded[f"{part}.{name}"], value)


# ---------------------------------------------------------------- prepare
def data_set(folder, widths):
    items = []
    for i, width in enumerate(widths):
        path = folder / f"{i}.png"
        Image.new("RGB", (width, 2 * width)).save(path)
        items.append((str(path), f"person_{i}", "camera_0"))
    return SimpleNamespace(img_items=items)


def test_the_widest_training_image_is_measured(tmp_path):
    model = tiny()
    model.prepare(data_set(tmp_path, [12, 48, 30]))
    assert int(model.widest) == 48
    again = tiny()
    again.load_state_dict(model.state_dict())
    r = again.resolution(torch.tensor([[24, 12], [96, 48], [100, 50]]))
    assert r.tolist() == [0.25, 1.0, 1.0]


def test_a_given_width_is_not_measured(tmp_path):
    model = tiny(widest=128)
    with torch.no_grad():
        model.widest.fill_(5)  # as a checkpoint of another data set would
    model.prepare(data_set(tmp_path, [12]))
    assert int(model.widest) == 128


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    data = SimpleNamespace(img_items=[(str(tmp_path / "bad.png"), "a", "b")])
    with pytest.raises(OSError, match=r"bad\.png"):
        tiny().prepare(data)


def test_equal_streams_are_made_different(caplog):
    none = SimpleNamespace(img_items=[])
    model = tiny(alike=True, gates="equal")
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO, logger="lrreid_ext"):
        model.prepare(none)
    assert "1 % noise" in caplog.text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if "high" not in k)
    was, now = (m["high.0.weight"] for m in (before, model.state_dict()))
    ratio = now / was - 1
    assert float(ratio.std()) == pytest.approx(0.01, rel=0.1)
    assert abs(float(ratio.mean())) < 1e-3
    # Once more changes nothing: they differ by now.
    after = copy.deepcopy(model.state_dict())
    model.prepare(none)
    assert all(torch.equal(v, after[k]) for k, v in model.state_dict().items())


def test_streams_that_differ_or_learn_their_gates_are_left_alone(tmp_path):
    for model in (tiny(alike=True), tiny(gates="equal")):
        before = copy.deepcopy(model.state_dict())
        model.prepare(data_set(tmp_path, [16]))
        changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
        assert changed == (["widest"] if model.learned else [])


# ---------------------------------------------------------------- precision
def test_mixed_precision_keeps_the_gates_exact():
    model = build("osnet", WIDEST=32).eval()
    x = images()
    exact, wanted = model.forward_with_extras(x)
    with torch.autocast("cpu", torch.bfloat16):
        maps, extras = model.forward_with_extras(x)
        loss = model.losses(extras, SIZES)["loss_gates"]
    assert maps.dtype == torch.bfloat16
    assert extras["gates"].dtype == loss.dtype == torch.float32
    torch.testing.assert_close(extras["gates"], wanted["gates"], rtol=0.02, atol=0.02)
    assert float((maps.detach().float() - exact.detach()).norm() / exact.detach().norm()) < 0.05
    (maps.float().square().mean() + loss).backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None]
    # Weights that bfloat16 can't hold: they weren't rounded on the way.
    assert not torch.equal(extras["gates"], extras["gates"].bfloat16().float())


# ---------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("FUSE", "middle"),
        ("GATES", "fixed"),
        ("GATE_DIM", 0),
        ("GATE_WEIGHT", -0.1),
        ("WIDEST", -1),
        ("BASE", "build_dual_stream_backbone"),
        ("BASE", "build_resnet_backbon"),
    ],
)
def test_bad_values_name_their_key(key, value):
    with pytest.raises(ConfigError, match=rf"MODEL\.BACKBONE\.DUAL\.{key}"):
        build("osnet", **{key: value})


def test_other_backbones_can_be_fused_at_the_end():
    cfg = dual_cfg(BASE="build_timm_backbone")
    cfg.MODEL.BACKBONE.TIMM_NAME = "resnet10t"
    with pytest.raises(ConfigError, match=r"DUAL\.BASE.*not TimmBackbone.*FUSE end"):
        build_backbone(cfg)
    cfg.MODEL.BACKBONE.DUAL.FUSE = "end"
    assert build_backbone(cfg)(images()).shape == (2, 512, 2, 1)
    cfg = dual_cfg(BASE="build_hrnet_backbone", FUSE="end")
    node = cfg.MODEL.BACKBONE.HRNET
    node.WIDTH, node.MODULES, node.BLOCKS, node.STAGE1_BLOCKS = 4, [1, 1, 1], 1, 1
    with pytest.raises(ConfigError, match=r"DUAL\.BASE.*one map"):
        build_backbone(cfg)


@pytest.mark.parametrize("detach", [False, True])
def test_detached_gates_leave_the_streams_alone(detach):
    backbone = build("osnet", DETACH=detach, WIDEST=32).train()
    maps, extras = backbone.forward_with_extras(images())
    backbone.losses(extras, SIZES)["loss_gates"].backward(retain_graph=True)
    touched = {
        name.split(".")[0]
        for name, p in backbone.named_parameters()
        if p.grad is not None and bool(p.grad.any())
    }
    assert touched == ({"gates"} if detach else {"gates", "low", "high", "stem"})
    # The other losses reach the streams, and the gates too unless they are cut off.
    backbone.zero_grad(set_to_none=True)
    maps.square().mean().backward()
    missing = {n.split(".")[0] for n, p in backbone.named_parameters() if p.grad is None}
    assert missing == ({"gates"} if detach else set())


def test_gates_may_standardise_what_they_read():
    plain, normed = Gate(6, 4), Gate(6, 4, norm=True).train()
    normed.load_state_dict(plain.state_dict(), strict=False)
    maps = torch.rand(5, 6, 3, 2, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.05
    pooled = maps.mean((2, 3))
    wanted = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(normed(maps), plain(wanted[:, :, None, None]))
    assert {n for n, _ in normed.named_parameters()} == {n for n, _ in plain.named_parameters()}
