"""DGD: counts against the paper's table, values against plain convolutions, config and weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.cost import gmacs, parameters
from lrreid_ext.modeling.backbones import DGD, build_backbone
from lrreid_ext.modeling.backbones.dgd import Inception


def small_cfg(width=0.125, feat_dim=192):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_dgd_backbone"
    cfg.MODEL.BACKBONE.DGD.WIDTH = width
    cfg.MODEL.BACKBONE.FEAT_DIM = feat_dim
    return cfg


def counts_by_hand(height, width):
    """Weights and products of the paper's table, batch norm's two weights per channel included."""
    weights = products = 0

    def conv(i, o, k, h, w):
        nonlocal weights, products
        weights += i * o * k * k + 2 * o
        products += i * o * k * k * h * w

    h, w = height, width
    for i in (3, 32, 32):
        conv(i, 32, 3, h, w)
    h, w, i = h // 2 + 1, w // 2 + 1, 32
    for n in (64, 128, 256):
        for k, inputs in ((1, i), (1, i), (3, n), (1, i), (3, n), (3, n), (1, i)):
            conv(inputs, n, k, h, w)
        i = 4 * n
        half = ((h + 1) // 2, (w + 1) // 2)
        for k, inputs, size in (
            (1, i, (h, w)), (3, n, half), (1, i, (h, w)), (3, n, (h, w)), (3, n, half),
        ):  # fmt: skip
            conv(inputs, n, k, *size)
        i += 2 * n
        h, w = half
    return weights, products, (i, h, w)


def test_counts_at_full_size():
    with torch.device("meta"):
        image = torch.zeros(1, 3, 160, 72)
        backbone = DGD().eval()
        feature = nn.Sequential(
            backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1536, 256)
        )
        cuhk03 = nn.Sequential(feature, nn.BatchNorm1d(256), nn.Linear(256, 1367))
        shape = tuple(backbone(image).shape[1:])
    weights, products, expected = counts_by_hand(160, 72)
    assert shape == expected == (1536, 11, 5)
    assert parameters(backbone) == weights
    assert gmacs(backbone, image) == pytest.approx(products / 1e9, rel=1e-9)
    assert gmacs(feature, image) == pytest.approx(2.46, rel=5e-3)
    assert parameters(feature) == pytest.approx(7.1e6, rel=5e-2)
    assert parameters(cuhk03) == pytest.approx(7.1e6, rel=1e-3)


def plain(unit, x, chosen=slice(None)):
    """Convolution, batch norm with running statistics and ReLU, out of single operations."""
    conv, norm, _ = unit
    y = F.conv2d(x, conv.weight[chosen], stride=conv.stride, padding=conv.kernel_size[0] // 2)
    mean, var = norm.running_mean[chosen], norm.running_var[chosen]
    scale, shift = norm.weight[chosen], norm.bias[chosen]
    y = (y - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    return (y * scale[:, None, None] + shift[:, None, None]).clamp(min=0)


@pytest.mark.parametrize("size", [(8, 6), (9, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_is_its_branches_side_by_side(stride, size):
    torch.manual_seed(0)
    block = Inception(6, 4, stride)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data, module.weight.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2.0)
    block.eval()
    x = torch.randn(2, 6, *size)
    first = 4 if stride == 1 else 0
    single = plain(block.reduce, x, chosen=slice(first, first + 4))
    double = plain(block.reduce, x, chosen=slice(first + 4, first + 8))
    double = plain(block.double3x3[1], plain(block.double3x3[0], double))
    branches = [plain(block.single3x3, single), double]
    if stride == 1:
        branches.insert(0, plain(block.reduce, x, chosen=slice(0, 4)))
        branches.append(plain(block.pool[1], F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)))
    else:
        padded = F.pad(x, (1, 1, 1, 1), value=-float("inf"))
        branches.append(F.max_pool2d(padded, 3, 2))
    expected = torch.cat(branches, 1)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)
    assert expected.shape[1] == block.out_channels == (16 if stride == 1 else 14)


def test_every_parameter_learns_and_weights_come_back(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone(small_cfg())
    x = torch.randn(2, 3, 48, 24)
    before = x.clone()
    out = backbone(x)
    assert out.shape == (2, 192, 4, 2)
    assert torch.equal(x, before)
    (out * torch.randn_like(out)).sum().backward()
    assert not [k for k, p in backbone.named_parameters() if not p.grad.abs().sum() > 0]
    start = {k: p.detach().clone() for k, p in backbone.named_parameters()}
    torch.optim.SGD(backbone.parameters(), lr=0.1).step()
    assert not [k for k, p in backbone.named_parameters() if torch.equal(p, start[k])]

    torch.save(backbone.state_dict(), tmp_path / "dgd.pth")
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.PRETRAIN = True
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = str(tmp_path / "dgd.pth")
    again = build_backbone(cfg)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), backbone.eval()(x))


@pytest.mark.parametrize(("width", "channels"), [(0.5, 768), (1.5, 2304), (0.0078125, 12)])
def test_width_multiplies_every_channel(width, channels):
    with torch.device("meta"):
        model = DGD(width=width)
        assert model.out_channels == round(1536 * width) == channels
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        whole = [m for m in DGD().modules() if isinstance(m, nn.Conv2d)]
    if width >= 0.5:
        assert [c.out_channels for c in convs] == [round(c.out_channels * width) for c in whole]


def test_bad_keys_are_named():
    with pytest.raises(ConfigError, match=r"FEAT_DIM is 2048.*DGD\.WIDTH 0\.125.* 192"):
        build_backbone(small_cfg(feat_dim=2048))
    for width in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"DGD\.WIDTH must be positive"):
            DGD(width=width)
