"""The SRGAN generator and the cascade: counts, routing, gradients, and its two ways to train."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.cost import gmacs, parameters
from lrreid_ext.modeling.frontends import CascadedSRGAN, SRGANGenerator, build_frontend
from lrreid_ext.modeling.frontends.srgan import reduced, resampled

# Native heights for an input of 64 rows, and how many of three stages they need.
NEEDS = {4: 3, 8: 3, 9: 2, 16: 2, 17: 1, 32: 1, 33: 0, 64: 0, 200: 0}


def pixels(count, seed=0, size=(64, 32)):
    return 255 * torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def native(*heights):
    return torch.tensor([(h, max(1, h // 2)) for h in heights])


def cascade(**options):
    torch.manual_seed(0)
    return CascadedSRGAN(**{"blocks": 1, "width": 4, **options})


def watched(frontend):
    """How many images each generator was shown, stage by stage."""
    counts = [0] * frontend.stages
    for i, generator in enumerate(frontend.generators):

        def count(_module, inputs, _output, i=i):
            counts[i] += len(inputs[0])

        generator.register_forward_hook(count)
    return counts


def test_counts_are_srgans():
    with torch.device("meta"):
        full, small = SRGANGenerator(), SRGANGenerator(blocks=5)
        image = torch.zeros(1, 3, 24, 24)
    # One more conv and pixel shuffle makes these the known generators for an enlargement by 4.
    more = 64 * 256 * 9 + 256 + 1
    assert parameters(full) + more == 1_549_462
    assert parameters(small) + more == 734_219
    convs = [m for m in full.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 1 + 2 * 16 + 1 + 1 + 1
    assert [convs[i].kernel_size[0] for i in (0, 1, -2, -1)] == [9, 3, 3, 9]
    low = 24 * 24 * (3 * 64 * 81 + 33 * 64 * 64 * 9 + 64 * 256 * 9)
    assert gmacs(full, image) == pytest.approx((low + 48 * 48 * 64 * 3 * 81) / 1e9)


def test_the_generator_out_of_single_operations():
    torch.manual_seed(0)
    generator = SRGANGenerator(blocks=2, width=4).eval()
    image = pixels(1, size=(8, 6)) / 255
    first, *_, up, last = (m for m in generator.modules() if isinstance(m, nn.Conv2d))
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    middle = [m for m in generator.modules() if isinstance(m, nn.Conv2d)][1:-2]
    for norm in norms:
        norm.running_mean.uniform_()
        norm.running_var.uniform_(0.5, 2)

    def convolve(x, conv, norm=None):
        x = F.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)
        if norm is None:
            return x
        shift, scale = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
        return (x - shift) / (scale + norm.eps).sqrt()

    def prelu(x):
        return torch.where(x > 0, x, 0.25 * x)

    low = x = prelu(convolve(image, first))
    for k in (0, 2):
        y = prelu(convolve(x, middle[k], norms[k]))
        x = x + convolve(y, middle[k + 1], norms[k + 1])
    x = low + convolve(x, middle[4], norms[4])
    x = prelu(F.pixel_shuffle(convolve(x, up), 2))
    torch.testing.assert_close(generator(image), convolve(x, last))


def test_a_residual_generator_begins_as_bicubic_enlargement():
    torch.manual_seed(0)
    image = pixels(1, size=(8, 6)) / 255
    enlarged = F.interpolate(image, scale_factor=2, mode="bicubic")
    out = SRGANGenerator(blocks=1, width=8, residual=True)(image)
    assert 0 < (out - enlarged).abs().mean() < 0.02


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_an_image_passes_as_many_stages_as_its_native_height_asks_for(stages):
    frontend = cascade(stages=stages).eval()
    for height, needed in NEEDS.items():
        counts = watched(frontend)
        wanted = 4 if stages == 4 and height <= 4 else min(needed, stages)
        out = frontend(pixels(1), native(height))
        assert counts == [0] * (stages - wanted) + [1] * wanted, height
        assert int(out.extras["entry"][0]) == stages - wanted
        assert out.images.shape == (1, 3, 64, 32)
        assert torch.equal(out.images, pixels(1)) == (wanted == 0)
    for other in (None, native(64)):
        assert torch.equal(frontend(pixels(1), other).images, pixels(1))


def test_a_mixed_batch_costs_what_its_images_need():
    frontend = cascade().eval()
    counts = watched(frontend)
    frontend(pixels(5), native(8, 16, 32, 64, 8))
    assert counts == [2, 3, 4]
    assert gmacs(frontend, pixels(2), native(32, 64)) == gmacs(frontend, pixels(1), native(32))


def test_a_batch_gives_what_its_images_give_one_by_one():
    frontend = cascade()
    frontend(pixels(9), native(*NEEDS))  # so that batch norms have statistics
    frontend.eval()
    images, sizes = pixels(9, seed=1), native(*NEEDS)
    together = frontend(images, sizes)
    for i in range(9):
        alone = frontend(images[i : i + 1], sizes[i : i + 1])
        torch.testing.assert_close(together.images[i], alone.images[0], rtol=1e-4, atol=1e-3)
        for key in ("stage0", "stage1", "stage2"):
            torch.testing.assert_close(
                together.extras[key][i], alone.extras[key][0], rtol=1e-4, atol=1e-3
            )


def test_each_stage_eats_what_the_one_before_made():
    frontend = cascade().eval()
    images = pixels(2)
    out = frontend(images, native(8, 16))
    with torch.no_grad():
        first = frontend.generators[0](resampled(images[:1], (8, 4)) / 255)
        second = frontend.generators[1](first)
        entered = frontend.generators[1](resampled(images[1:], (16, 8)) / 255)
        last = frontend.generators[2](torch.cat([second, entered]))
    for output, wanted in (
        (out.extras["stage0"][:1], first),
        (out.extras["stage1"], torch.cat([second, entered])),
        (out.images, last),
    ):
        torch.testing.assert_close(output, 255 * wanted, rtol=1e-4, atol=1e-3)
    assert not out.extras["stage0"][1].any()


def test_an_enlarged_image_is_read_at_its_native_pixels():
    small = reduced(pixels(1, size=(64, 32)), (16, 8))
    enlarged = F.interpolate(small, size=(64, 32), mode="bicubic", antialias=True)
    back = (resampled(enlarged, (16, 8)) - small).square().mean().sqrt()
    blurred = (reduced(enlarged, (16, 8)) - small).square().mean().sqrt()
    assert back < 0.25 * blurred


@pytest.mark.parametrize("mode", ["joint", "stagewise"])
def test_the_pixel_loss_is_the_sum_over_the_stages_passed(mode):
    frontend = cascade(mode=mode)
    hr, images = pixels(4, seed=1), pixels(4)
    out = frontend(images, native(8, 16, 32, 64))
    loss = frontend.losses(out, hr)["loss_sr"]
    expected = 0.0
    for k, (size, eaten) in enumerate(
        (((16, 8), (8, 4)), ((32, 16), (16, 8)), ((64, 32), (32, 16)))
    ):
        real = reduced(hr, size) / 255
        if mode == "joint":
            passed = range(k + 1)
            made = out.extras[f"stage{k}"] / 255
        else:
            passed = range(4)
            made = frontend.generators[k](reduced(hr, eaten) / 255)
        expected += sum((made[i] - real[i]).square().mean() for i in passed) / len(passed)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not [n for n, p in frontend.named_parameters() if not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(("mode", "reaches"), [("joint", True), ("stagewise", False)])
def test_what_looks_at_the_output_reaches_the_stages_in_joint_mode_alone(mode, reaches):
    frontend = cascade(mode=mode)
    before = {k: v.clone() for k, v in frontend.state_dict().items()}
    out = frontend(pixels(4), native(8, 16, 32, 64)).images
    assert out.requires_grad is reaches
    if reaches:
        out.square().mean().backward()
        assert not [n for n, p in frontend.named_parameters() if not p.grad.abs().sum() > 0]
    else:
        # As evaluation computes it, and without a trace: batch norms saw nothing.
        assert all(torch.equal(v, before[k]) for k, v in frontend.state_dict().items())
        assert frontend.training and frontend.generators[0].training
        torch.testing.assert_close(out, frontend.eval()(pixels(4), native(8, 16, 32, 64)).images)


def test_stages_that_nothing_passes_get_a_gradient_of_nothing():
    frontend = cascade()
    for sizes, learn in ((native(64, 64), set()), (native(32, 64), {2})):
        frontend.zero_grad()
        out = frontend(pixels(2), sizes)
        (frontend.losses(out, pixels(2, seed=1))["loss_sr"] + out.images.mean()).backward()
        for k, generator in enumerate(frontend.generators):
            moved = [bool(p.grad.any()) for p in generator.parameters()]
            assert any(moved) is (k in learn)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"stages": 0}, "CASCADE.STAGES"),
        ({"stages": 5}, "CASCADE.STAGES"),
        ({"blocks": 0}, "CASCADE.BLOCKS"),
        ({"mode": "alone"}, "CASCADE.MODE"),
        ({"loss": "huber"}, "LOSS"),
    ],
)
def test_bad_options_name_their_key(options, key):
    error = ValueError if key == "LOSS" else ConfigError
    with pytest.raises(error, match=f"MODEL.SR.{key}"):
        cascade(**options)


def test_sizes_that_no_stage_divides_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        cascade()(pixels(1, size=(60, 32)), native(8))
    cfg = get_cfg()
    cfg.MODEL.SR.NAME, cfg.INPUT.SIZE_TEST = "CascadedSRGAN", [250, 128]
    with pytest.raises(ValueError, match=r"INPUT\.SIZE_TEST.*multiples of 8"):
        build_frontend(cfg)
