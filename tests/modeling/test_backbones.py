"""Backbones: shapes, counts against timm's, gradients, pretrained weights and their failures."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from safetensors.torch import save_file

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError, PretrainedError
from lrreid_ext.evaluation.cost import parameters
from lrreid_ext.modeling.backbones import HRNet, build_backbone, pretrained

SMALL = {"width": 4, "modules": (1, 1, 1), "blocks": 1, "stage1_blocks": 1}


def hrnet_cfg(name="build_hrnet_backbone"):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    node = cfg.MODEL.BACKBONE.HRNET
    node.WIDTH, node.MODULES, node.BLOCKS, node.STAGE1_BLOCKS = 4, [1, 1, 1], 1, 1
    return cfg


def timm_cfg(name, feat_dim, size=(64, 32)):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.TIMM_NAME = name
    cfg.MODEL.BACKBONE.FEAT_DIM = feat_dim
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = list(size)
    return cfg


@cache
def timm_backbone(name, feat_dim):
    torch.manual_seed(0)
    return build_backbone(timm_cfg(name, feat_dim))


def check(backbone, expected):
    """Shapes, input left alone, a gradient for every parameter."""
    x = torch.randn(2, 3, 64, 32)
    before = x.clone()
    out = backbone(x)
    outs = [out] if isinstance(out, torch.Tensor) else out
    assert [tuple(o.shape[1:]) for o in outs] == expected
    assert torch.equal(x, before)
    sum((o * torch.randn_like(o)).sum() for o in outs).backward()
    assert not [k for k, p in backbone.named_parameters() if p.grad is None]


def test_hrnet():
    shapes = [(128, 16, 8), (256, 8, 4), (512, 4, 2), (1024, 2, 1)]
    backbone = build_backbone(hrnet_cfg())
    check(backbone, shapes)
    assert backbone.out_channels == tuple(channels for channels, *_ in shapes)


def test_fused_hrnet():
    check(build_backbone(hrnet_cfg("build_hrnet_cls_backbone")), [(2048, 2, 1)])
    cfg = hrnet_cfg("build_hrnet_cls_backbone")
    cfg.MODEL.BACKBONE.FEAT_DIM = 1024
    with pytest.raises(ValueError, match="2048"):
        build_backbone(cfg)


def test_hrnet_w32_is_timms():
    with torch.device("meta"):
        ours, fused = HRNet(), HRNet(fused=True)
        theirs = timm.create_model("hrnet_w32")
        shapes = [tuple(y.shape) for y in ours.eval()(torch.zeros(1, 3, 256, 128))]
    assert shapes == [(1, 128, 64, 32), (1, 256, 32, 16), (1, 512, 16, 8), (1, 1024, 8, 4)]
    head = [theirs.downsamp_modules, theirs.final_layer, theirs.classifier]
    assert parameters(ours) == parameters(theirs) - sum(map(parameters, head))
    assert parameters(fused) == parameters(theirs) - parameters(theirs.classifier)
    whole = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()}.items() <= whole.items()


def test_hrnet_computes_what_timms_does():
    torch.manual_seed(0)
    theirs = timm.create_model("hrnet_w32", num_classes=0, global_pool="").eval()
    with torch.device("meta"):
        fused, four = HRNet(fused=True).eval(), HRNet().eval()
    state = theirs.state_dict()
    fused.load_state_dict(state, assign=True)
    four.load_state_dict({k: state[k] for k in four.state_dict()}, assign=True)
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), theirs.forward_features(x))
        _, *maps = theirs.forward_intermediates(x, intermediates_only=True)
        for ours, wanted in zip(four(x), maps, strict=True):
            torch.testing.assert_close(ours, wanted)


def test_hrnet_refuses_bad_numbers():
    with pytest.raises(ValueError, match="MODULES"):
        HRNet(modules=(1, 4))
    with pytest.raises(ValueError, match="WIDTH"):
        HRNet(width=0)
    with pytest.raises(ValueError, match="multiples of 32"):
        HRNet(**SMALL)(torch.zeros(1, 3, 60, 32))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet10t", (512, 2, 1)),
        ("convnext_atto", (320, 2, 1)),
        ("vit_tiny_patch16_224", (192, 4, 2)),
        ("vit_wee_patch16_reg1_gap_256", (256, 4, 2)),
        ("deit_tiny_distilled_patch16_224", (192, 4, 2)),
        ("swin_tiny_patch4_window7_224", (768, 2, 1)),
        ("swinv2_cr_tiny_224", (768, 2, 1)),
        ("mixer_s32_224", (512, 2, 1)),
    ],
)
def test_timm(name, expected):
    check(timm_backbone(name, expected[0]).train(), [expected])


def test_channels_last_maps_are_turned_round():
    backbone = timm_backbone("swin_tiny_patch4_window7_224", 768).eval()
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        y = backbone(x)
        raw = backbone.model(x)
    assert raw.shape == (1, 2, 1, 768)
    assert y.shape == (1, 768, 2, 1)
    for i in range(2):
        torch.testing.assert_close(y[0, :, i, 0], raw[0, i, 0])


@pytest.mark.parametrize(
    ("name", "channels"), [("vit_tiny_patch16_224", 192), ("volo_d1_224", 384)]
)
def test_tokens_go_back_to_where_they_came_from(name, channels):
    backbone = timm_backbone(name, channels).eval()
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        tokens = backbone.model(x)
        y = backbone(x)
    assert tokens.shape == (1, 1 + 8, channels)
    for row in range(4):
        for column in range(2):
            torch.testing.assert_close(y[0, :, row, column], tokens[0, 1 + row * 2 + column])


def test_timm_errors_say_what_is_right():
    with pytest.raises(ValueError, match="resnet10t has 512"):
        build_backbone(timm_cfg("resnet10t", 2048))
    with pytest.raises(ValueError, match="resnet50"):
        build_backbone(timm_cfg("resnet5O", 2048))
    with pytest.raises(ValueError, match="coat_tiny makes no feature map"):
        build_backbone(timm_cfg("coat_tiny", 2048))
    # Built for squares alone.
    with pytest.raises(ValueError, match=r"nest_tiny makes no .*\[64, 32\] pixels: \w"):
        build_backbone(timm_cfg("nest_tiny", 384))
    cfg = timm_cfg("mixer_s32_224", 512)
    cfg.INPUT.SIZE_TEST = [96, 32]
    with pytest.raises(ValueError, match=r"\[96, 32\]"):
        build_backbone(cfg)
    # A row of patches cut off without a word would be a loss.
    with pytest.raises(ValueError, match=r"\[60, 32\].*multiples.*\[16, 16\]"):
        build_backbone(timm_cfg("vit_tiny_patch16_224", 192, size=(60, 32)))


@pytest.mark.parametrize(
    ("name", "dim", "shape"),
    [("vit_tiny_patch16_224", 192, (6, 2)), ("swin_tiny_patch4_window7_224", 768, (3, 1))],
)
def test_a_test_size_of_its_own(name, dim, shape):
    cfg = timm_cfg(name, dim)
    cfg.INPUT.SIZE_TEST = [96, 32]
    backbone = build_backbone(cfg).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 96, 32)).shape == (1, dim, *shape)
        assert backbone(torch.zeros(1, 3, 64, 32)).shape[2] < shape[0]


def with_file(cfg, path):
    cfg.MODEL.BACKBONE.PRETRAIN = True
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = str(path)
    return cfg


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_hrnet_from_a_file(ending, tmp_path):
    torch.manual_seed(1)
    whole = HRNet(**SMALL, fused=True)
    state = {**whole.state_dict(), "classifier.weight": torch.zeros(1000, 2048)}
    # As saved before batches were counted.
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / f"w4{ending}"
    (save_file if ending == ".safetensors" else torch.save)(state, path)
    for name in ("build_hrnet_backbone", "build_hrnet_cls_backbone"):
        loaded = build_backbone(with_file(hrnet_cfg(name), path))
        assert all(torch.equal(p, state[k]) for k, p in loaded.named_parameters())


def test_timm_from_a_file_with_other_position_embeddings(tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model("vit_tiny_patch16_224", img_size=(32, 32), num_classes=5)
    path = tmp_path / "vit.pth"
    torch.save({"state_dict": whole.state_dict()}, path)
    loaded = build_backbone(with_file(timm_cfg("vit_tiny_patch16_224", 192), path)).model
    assert loaded.pos_embed.shape == (1, 1 + 4 * 2, 192)
    assert torch.equal(loaded.blocks[3].mlp.fc1.weight, whole.blocks[3].mlp.fc1.weight)


def test_files_that_do_not_fit_list_the_names(tmp_path):
    path = tmp_path / "wrong.pth"
    state = HRNet(**SMALL).state_dict()
    state["conv9.weight"] = state.pop("conv1.weight")
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"conv1\.weight[\s\S]*conv9\.weight") as raised:
        build_backbone(with_file(hrnet_cfg(), path))
    assert "MODEL.BACKBONE.PRETRAIN_PATH" in str(raised.value)
    with pytest.raises(FileNotFoundError, match="PRETRAIN_PATH"):
        build_backbone(with_file(hrnet_cfg(), tmp_path / "absent.pth"))


def test_the_hub_gives_weights(monkeypatch):
    torch.manual_seed(1)
    create = timm.create_model
    published = create("resnet10t")
    monkeypatch.setattr(
        pretrained.timm,
        "create_model",
        lambda name, pretrained=False, **kw: published if pretrained else create(name, **kw),
    )
    cfg = timm_cfg("resnet10t", 512)
    cfg.MODEL.BACKBONE.PRETRAIN = True
    loaded = build_backbone(cfg).model
    assert all(torch.equal(p, published.state_dict()[k]) for k, p in loaded.named_parameters())


def assert_says_what_to_do(cfg):
    cfg.MODEL.BACKBONE.PRETRAIN = True
    with pytest.raises(PretrainedError) as raised:
        build_backbone(cfg)
    assert "MODEL.BACKBONE.PRETRAIN_PATH" in str(raised.value)
    assert "MODEL.BACKBONE.PRETRAIN False" in str(raised.value)


def test_a_hub_out_of_reach(monkeypatch):
    create = timm.create_model

    def unreachable(name, pretrained=False, **kwargs):
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, **kwargs)

    monkeypatch.setattr(pretrained.timm, "create_model", unreachable)
    assert_says_what_to_do(timm_cfg("resnet10t", 512))
    monkeypatch.setattr("lrreid_ext.modeling.backbones.hrnet.HRNet", lambda **kw: HRNet(**SMALL))
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_hrnet_backbone"
    assert_says_what_to_do(cfg)


def test_networks_that_nobody_published():
    assert_says_what_to_do(hrnet_cfg())
    cfg = hrnet_cfg("build_dgd_backbone")
    cfg.MODEL.BACKBONE.DGD.WIDTH, cfg.MODEL.BACKBONE.FEAT_DIM = 0.125, 192
    assert_says_what_to_do(cfg)


def test_the_hosts_backbones_fail_as_clearly(monkeypatch, tmp_path):
    from fastreid.modeling.backbones import resnet

    def unreachable(key):
        raise ModuleNotFoundError("No module named 'gdown'")

    monkeypatch.setattr(resnet, "init_pretrained_weights", unreachable)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.FEAT_DIM = "18x", 512
    assert_says_what_to_do(cfg)
    path = tmp_path / "other.pth"
    torch.save({"stem.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not one name agrees"):
        build_backbone(with_file(cfg, path))
    state = resnet.ResNet(1, "BN", False, False, False, resnet.BasicBlock, [2] * 4, [0] * 4)
    torch.save(state.state_dict(), path)
    loaded = build_backbone(with_file(cfg, path))
    assert torch.equal(loaded.conv1.weight, state.conv1.weight)


def test_an_unknown_backbone_names_the_nearest():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_hrnet_backbon"
    with pytest.raises(ConfigError, match="build_hrnet_backbone"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("name", "depth", "width"),
    [
        ("build_osnet_backbone", "x0_25", 128),
        ("build_resnet_backbone", "18x", 512),
        ("build_mobilenetv2_backbone", "1.0x", 1280),
        ("build_shufflenetv2_backbone", "1.0x", 1024),
    ],
)
def test_a_wrong_width_of_the_hosts_maps_names_the_right_one(name, depth, width):
    cfg = get_cfg()
    node = cfg.MODEL.BACKBONE
    node.NAME, node.DEPTH, node.FEAT_DIM, node.PRETRAIN = name, depth, width, False
    cfg.INPUT.SIZE_TRAIN = [64, 32]
    backbone = build_backbone(cfg)
    assert not any(p.is_meta for p in backbone.parameters())
    assert backbone(torch.randn(2, 3, 64, 32)).shape[:2] == (2, width)
    node.FEAT_DIM = 99
    with pytest.raises(ConfigError, match=rf"FEAT_DIM is 99; {name} makes maps of {width}"):
        build_backbone(cfg)


def test_a_depth_that_there_is_not_is_named() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.PRETRAIN = "x0_25", False
    with pytest.raises(ConfigError, match=r"DEPTH: build_resnet_backbone has no depth 'x0_25'"):
        build_backbone(cfg, "build_resnet_backbone")
