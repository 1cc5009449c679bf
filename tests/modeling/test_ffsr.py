"""FFSR: counts, layout against plain operations, and the foreground loss against loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.cost import gmacs, parameters
from lrreid_ext.modeling.frontends import FFSR, FrontendOutput, build_frontend
from lrreid_ext.modeling.losses import foreground_mse, gaussian_mask, mse_image


def ffsr_cfg(**keys):
    cfg = get_cfg()
    cfg.MODEL.SR.NAME, cfg.MODEL.SR.WIDTH = "FFSR", 8
    for key, value in keys.items():
        cfg.MODEL.SR[key] = value
    return cfg


def pixels(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 255


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


@pytest.mark.parametrize(
    ("layout", "convs", "giga", "mega"), [("paper", 12, 3.71, 0.43), ("code", 15, 7.62, 0.66)]
)
def test_counts_at_full_size(layout, convs, giga, mega):
    with torch.device("meta"):
        frontend, image = FFSR(layout=layout), torch.zeros(1, 3, 384, 128)
    assert len(convolutions(frontend)) == convs
    assert gmacs(frontend, image) == pytest.approx(giga, rel=2e-2)
    assert parameters(frontend) == pytest.approx(mega * 1e6, rel=2e-2)


def test_channels_of_the_paper_layout():
    with torch.device("meta"):
        frontend = FFSR()
    assert [(c.in_channels, c.out_channels, *c.kernel_size) for c in convolutions(frontend)] == [
        (3, 64, 2, 2), (64, 64, 3, 3), (64, 64, 2, 2), (64, 128, 3, 3),
        (128, 64, 1, 1), (64, 64, 3, 3), (64, 128, 1, 1), (128, 128, 2, 2), (128, 128, 3, 3),
        (192, 32, 2, 2), (32, 32, 3, 3), (32, 3, 3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["paper", "code"])
def test_the_layout_out_of_single_operations(layout):
    torch.manual_seed(0)
    frontend = FFSR(layout=layout, width=4)
    for module in frontend.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data, module.weight.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2.0)
    nn.init.normal_(frontend.last.weight, std=0.1)
    frontend.eval()
    convs = iter(convolutions(frontend))
    norms = iter(m for m in frontend.modules() if isinstance(m, nn.BatchNorm2d))

    def step(x, relu=True):
        conv, norm = next(convs), next(norms)
        if isinstance(conv, nn.ConvTranspose2d):
            y = F.conv_transpose2d(x, conv.weight, stride=2)
        elif conv.kernel_size[0] == 2:
            y = F.conv2d(x, conv.weight, stride=2)
        else:
            y = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return y.clamp(min=0) if relu else y

    def residual(x):
        return (x + step(step(step(x)), relu=False)).clamp(min=0)

    images = pixels(2, 3, 12, 8)
    unit = images / 255
    skip = step(step(unit))
    y = residual(step(step(skip)))
    y = step(step(y))
    if layout == "code":
        y = residual(y)
    y = step(step(torch.cat([y, skip], 1)))
    y = unit + F.conv2d(y, frontend.last.weight, frontend.last.bias, padding=1)
    assert next(norms, None) is None
    with torch.no_grad():
        torch.testing.assert_close(frontend(images).images, y * 255)


@pytest.mark.parametrize("width", [2, 3, 32])
def test_all_channels_follow_the_width(width):
    with torch.device("meta"):
        frontend = FFSR(width=width)
        assert frontend(torch.zeros(2, 3, 8, 12)).images.shape == (2, 3, 8, 12)
    full = width // 2
    wanted = [width] * 3 + [2 * width] + [width] * 2 + [2 * width] * 3 + [full] * 2 + [3]
    assert [c.out_channels for c in convolutions(frontend)] == wanted


def naive_foreground(restored, hr, mask):
    restored, hr, mask = restored.double(), hr.double(), mask.double()
    batch, colours, height, width = restored.shape
    total = 0.0
    for b in range(batch):
        for c in range(colours):
            for y in range(height):
                for x in range(width):
                    m = mask[b if len(mask) > 1 else 0, 0, y, x].item()
                    difference = (restored[b, c, y, x] - hr[b, c, y, x]).item() / 255
                    total += (m * difference) ** 2
    return total / (batch * colours * height * width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masks", [1, 2])
def test_foreground_loss_against_a_loop(masks, dtype):
    restored = pixels(2, 3, 5, 4, dtype=dtype).requires_grad_()
    hr = pixels(2, 3, 5, 4, seed=1, dtype=dtype)
    mask = pixels(masks, 1, 5, 4, seed=2, dtype=dtype) / 255
    loss = foreground_mse(restored, hr, mask)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(naive_foreground(restored.detach(), hr, mask), rel=1e-5)
    loss.backward()
    wanted = 2 * mask**2 * (restored.detach() - hr) / 255**2 / restored.numel()
    torch.testing.assert_close(restored.grad, wanted)
    ones = torch.ones_like(mask)
    torch.testing.assert_close(foreground_mse(restored, hr, ones), mse_image(restored, hr))


def test_foreground_loss_in_half_precision_is_taken_in_float32():
    restored, hr = pixels(1, 3, 5, 4).half(), pixels(1, 3, 5, 4, seed=1).half()
    loss = foreground_mse(restored, hr, torch.ones(1, 1, 5, 4).half())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mse_image(restored.float(), hr.float()))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 1, 5, 4), (2, 1, 4, 5), (5, 4)])
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="masks"):
        foreground_mse(pixels(2, 3, 5, 4), pixels(2, 3, 5, 4), torch.ones(shape))


@pytest.mark.parametrize(("height", "width"), [(7, 5), (8, 6), (1, 1)])
def test_gaussian_against_a_loop(height, width):
    mask = gaussian_mask(height, width, (0.4, 0.25))
    assert mask.shape == (1, 1, height, width)
    assert mask.dtype == torch.float32
    for y in range(height):
        for x in range(width):
            dy = (y - (height - 1) / 2) / (0.4 * height)
            dx = (x - (width - 1) / 2) / (0.25 * width)
            assert mask[0, 0, y, x].item() == pytest.approx(
                math.exp(-(dy**2 + dx**2) / 2), rel=1e-5
            )
    torch.testing.assert_close(mask, mask.flip(2, 3))
    assert height % 2 == 0 or mask.max() == 1.0


@pytest.mark.parametrize("sigma", [(0.4,), (0.4, 0.0), (-1.0, 0.2), (1, 2, 3)])
def test_bad_deviations_are_refused(sigma):
    with pytest.raises(ConfigError, match=r"MODEL\.SR\.MASK_SIGMA"):
        gaussian_mask(4, 4, sigma)
    with pytest.raises(ConfigError, match=r"MODEL\.SR\.MASK_SIGMA"):
        FFSR(width=4, mask_sigma=sigma)


def test_losses_by_kind_of_mask():
    output, hr = FrontendOutput(pixels(2, 3, 8, 4)), pixels(2, 3, 8, 4, seed=1)
    given = pixels(2, 1, 8, 4, seed=2) / 255
    plain = build_frontend(ffsr_cfg(MASK="none", LOSS="mse")).losses(output, hr)
    assert list(plain) == ["loss_sr", "loss_foreground"]
    assert plain["loss_foreground"] == plain["loss_sr"]
    torch.testing.assert_close(plain["loss_sr"], mse_image(output.images, hr))

    masked = build_frontend(ffsr_cfg(MASK_SIGMA=[0.2, 0.3])).losses(output, hr)
    expected = naive_foreground(output.images, hr, gaussian_mask(8, 4, (0.2, 0.3)))
    assert masked["loss_foreground"].item() == pytest.approx(expected, rel=1e-5)

    frontend = build_frontend(ffsr_cfg(MASK="given", LOSS="l1"))
    with pytest.raises(ConfigError, match=r"INPUT\.MASKS"):
        frontend.losses(output, hr)
    output.extras["masks"] = given
    losses = frontend.losses(output, hr)
    expected = naive_foreground(output.images, hr, given)
    assert losses["loss_foreground"].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(losses["loss_sr"], (output.images - hr).abs().mean() / 255)


def test_bad_options_name_their_key():
    for key, value in (("LAYOUT", "papre"), ("MASK", "oval"), ("WIDTH", 1), ("LOSS", "huber")):
        with pytest.raises(ValueError, match=rf"MODEL\.SR\.{key}"):
            build_frontend(ffsr_cfg(**{key: value}))
    cfg = ffsr_cfg()
    cfg.INPUT.SIZE_TRAIN = [50, 32]
    with pytest.raises(ValueError, match="multiples of 4"):
        build_frontend(cfg)
