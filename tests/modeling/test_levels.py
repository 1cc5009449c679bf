"""Levels of backbones: names, shapes, that they are the maps on the way, and the error."""

from __future__ import annotations

import copy

import pytest
import torch

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.backbones import (
    TimmBackbone,
    build_backbone,
    find_levels,
    levels_of,
    tapped,
)

SIZE = (64, 32)


def host_backbone(kind: str) -> torch.nn.Module:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.BACKBONE.NAME = f"build_{kind}_backbone"
    cfg.MODEL.BACKBONE.DEPTH = {"resnet": "18x", "osnet": "x0_25"}[kind]
    cfg.MODEL.BACKBONE.FEAT_DIM = {"resnet": 512, "osnet": 128}[kind]
    return build_backbone(cfg)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("resnet", {"layer1": (64, 16, 8), "layer3": (256, 4, 2), "layer4": (512, 4, 2)}),
        ("osnet", {"conv3": (96, 4, 2), "conv4": (128, 4, 2), "conv5": (128, 4, 2)}),
    ],
)
def test_levels_of_the_hosts(kind: str, expected: dict[str, tuple[int, int, int]]) -> None:
    backbone = host_backbone(kind).train()
    every_level = levels_of(backbone, SIZE)
    assert {name: tuple(every_level[name][1:]) for name in expected} == expected
    assert all(m.training for m in backbone.modules())
    assert next(name for name in every_level if "." not in name) == "conv1"
    last = next(reversed(expected))
    levels = find_levels(backbone, expected, SIZE, "KEY")
    # A copy has its own modules; the names hold for it as well.
    other = copy.deepcopy(backbone)
    images = torch.randn(2, 3, *SIZE)
    with tapped(other, levels, SIZE) as maps:
        out = other(images)
    assert torch.equal(maps[last], out)
    assert {k: tuple(v.shape) for k, v in maps.items()} == {k: (2, *v) for k, v in expected.items()}
    maps[last].sum().backward()
    assert next(other.parameters()).grad is not None
    other(images)
    assert all(not m._forward_hooks for m in other.modules())


def test_a_held_stage_is_its_last_block() -> None:
    backbone = host_backbone("resnet").eval()
    images = torch.randn(1, 3, *SIZE)
    with tapped(backbone, find_levels(backbone, ["layer2", "layer2.1"], SIZE, "K"), SIZE) as maps:
        backbone(images)
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    for stage in (backbone.layer1, backbone.layer2):
        for block in stage:
            x = block(x)
    torch.testing.assert_close(maps["layer2"], x)
    assert torch.equal(maps["layer2"], maps["layer2.1"])


@pytest.mark.parametrize(
    ("name", "index", "level"),
    [
        ("resnet10t", 3, "layer3"),
        ("vit_tiny_patch16_224", 5, "blocks.5"),
        ("swin_tiny_patch4_window7_224", 1, "layers.1"),
    ],
)
def test_timms_levels_are_its_own_intermediates(name: str, index: int, level: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name, SIZE).eval()
    images = torch.randn(2, 3, *SIZE)
    levels = find_levels(backbone, [level], SIZE, "KEY")
    with torch.no_grad(), tapped(backbone, levels, SIZE) as maps:
        backbone(images)
    with torch.no_grad():
        wanted = backbone.model.forward_intermediates(
            images, indices=[index], norm=False, intermediates_only=True, output_fmt="NCHW"
        )[0]
    torch.testing.assert_close(maps[level], wanted)


def test_an_unknown_level_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"KEY: OSNet has no level 'convv4'. Did you mean 'conv4"):
        find_levels(host_backbone("osnet"), ["convv4"], SIZE, "KEY")
    with pytest.raises(ConfigError, match=r"There are conv1.*layer4"):
        find_levels(host_backbone("resnet"), ["f5"], SIZE, "KEY")
    assert find_levels(host_backbone("osnet"), [], SIZE, "KEY") == {}
