"""Front-ends: contract, counts, initial behaviour, and interpolation against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lrreid_ext.config import get_cfg
from lrreid_ext.evaluation.cost import gmacs, parameters
from lrreid_ext.modeling.frontends import (
    RCAN,
    SRCNN,
    VDSR,
    VDSRCA,
    Bicubic,
    Bilinear,
    ChannelAttention,
    Identity,
    build_frontend,
)

LEARNING = ["SRCNN", "VDSR", "VDSRCA", "RCAN", "FFSR", "FFSR code"]
FIXED = ["Identity", "Bilinear", "Bicubic"]
RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def small_cfg(name):
    cfg = get_cfg()
    cfg.MODEL.SR.NAME, _, layout = name.partition(" ")
    cfg.MODEL.SR.LAYOUT = layout or "paper"
    cfg.MODEL.SR.DEPTH, cfg.MODEL.SR.WIDTH = 5, 8
    cfg.MODEL.SR.GROUPS, cfg.MODEL.SR.BLOCKS = 2, 2
    cfg.MODEL.SR.FILTERS = [8, 6]
    node = cfg.MODEL.SR.CASCADE
    node.STAGES, node.BLOCKS, node.WIDTH = 2, 1, 4
    return cfg


def batch(seed=0, size=(24, 12), n=3):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.mark.parametrize("name", [*LEARNING, "CascadedSRGAN", *FIXED])
def test_contract(name, tmp_path):
    torch.manual_seed(0)
    frontend = build_frontend(small_cfg(name))
    images = batch()
    before = images.clone()
    native = torch.tensor([[24, 12], [12, 6], [9, 5]])
    output = frontend(images, native)
    assert torch.equal(images, before)
    assert output.images.shape == images.shape
    assert output.images.dtype == images.dtype
    assert frontend.learns == (name not in FIXED) == bool(list(frontend.parameters()))

    path = tmp_path / "frontend.pth"
    torch.save(frontend.state_dict(), path)
    cfg = small_cfg(name)
    if frontend.learns:
        cfg.MODEL.SR.WEIGHTS = str(path)
    again = build_frontend(cfg)
    torch.testing.assert_close(
        again.eval()(images, native).images, frontend.eval()(images, native).images
    )


@pytest.mark.parametrize("name", LEARNING)
def test_every_parameter_learns_and_the_first_output_is_the_input(name):
    torch.manual_seed(0)
    frontend = build_frontend(small_cfg(name))
    images = batch().requires_grad_()
    output = frontend(images)
    assert (output.images - images).abs().mean() < 4.0
    sum(frontend.losses(output, batch(1)).values()).backward()
    assert images.grad.abs().sum() > 0
    before = {k: p.detach().clone() for k, p in frontend.named_parameters()}
    assert not [k for k, p in frontend.named_parameters() if not p.grad.abs().sum() > 0]
    torch.optim.SGD(frontend.parameters(), lr=1e3).step()
    assert not [k for k, p in frontend.named_parameters() if torch.equal(p, before[k])]


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("mse", 2)])
def test_pixel_loss(kind, power):
    cfg = small_cfg("VDSR")
    cfg.MODEL.SR.LOSS = kind
    frontend = build_frontend(cfg)
    output, hr = frontend(batch()), batch(1)
    losses = frontend.losses(output, hr)
    assert list(losses) == ["loss_sr"]
    expected = np.mean(np.abs((output.images - hr).detach().numpy() / 255.0) ** power)
    assert losses["loss_sr"].item() == pytest.approx(expected, rel=1e-5)


def test_saturated_pixels_keep_their_gradient():
    frontend = VDSR(depth=3, width=4).eval()
    torch.nn.init.constant_(frontend.layers[-1].bias, 0.1)
    images = torch.full((1, 3, 8, 8), 255.0, requires_grad=True)
    output = frontend(images).images
    assert (output > 255.0).all()
    output.sum().backward()
    assert (images.grad != 0).all()


def test_counts_at_full_size():
    with torch.device("meta"):
        wide, plain = torch.zeros(1, 3, 384, 128), torch.zeros(1, 3, 256, 128)
        srcnn, vdsr, vdsrca, rcan = SRCNN(), VDSR(), VDSRCA(), RCAN()
    middle = 18 * (64 * 64 * 9 + 64)
    ends = 3 * 64 * 9 + 64 + 64 * 3 * 9 + 3
    gates = 18 * (64 * 4 + 4 + 4 * 64 + 64)
    assert parameters(vdsr) == middle + ends
    assert parameters(vdsrca) == middle + ends + gates == 678_667
    assert gmacs(vdsr, wide) == pytest.approx(32.79, abs=0.01)
    assert gmacs(vdsrca, plain) == pytest.approx(21.9, abs=0.05)
    assert parameters(srcnn) == 64 * 243 + 64 + 32 * 64 + 32 + 3 * 32 * 25 + 3
    # Zhang et al. print 15.6 M with a 4x upsampler of two 64-256 convolutions.
    assert parameters(rcan) + 2 * (64 * 256 * 9 + 256) == pytest.approx(15.6e6, rel=5e-3)


def test_vdsr_is_a_plain_stack_with_a_global_skip():
    torch.manual_seed(0)
    frontend = VDSR(depth=4, width=6)
    x = batch(size=(8, 6), n=1) / 255
    y = x
    convs = [m for m in frontend.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 4
    for i, conv in enumerate(convs):
        y = torch.nn.functional.conv2d(y, conv.weight, conv.bias, padding=1)
        y = y if i == 3 else y.clamp(min=0)
    torch.testing.assert_close(frontend(x * 255).images, (x + y) * 255)


def test_vdsrca_attends_after_each_middle_convolution():
    frontend = VDSRCA(depth=20, width=8, bottleneck=2)
    assert sum(isinstance(m, ChannelAttention) for m in frontend.modules()) == 18


def test_channel_attention_against_a_loop():
    torch.manual_seed(0)
    attention = ChannelAttention(6, 2)
    x = torch.randn(2, 6, 5, 4)
    down, up = attention.gate[1], attention.gate[3]
    for b in range(2):
        z = torch.stack([x[b, c].mean() for c in range(6)])
        hidden = (down.weight[:, :, 0, 0] @ z + down.bias).clamp(min=0)
        gate = 1 / (1 + torch.exp(-(up.weight[:, :, 0, 0] @ hidden + up.bias)))
        torch.testing.assert_close(attention(x)[b], x[b] * gate[:, None, None])


def test_signal_survives_18_gates():
    torch.manual_seed(0)
    frontend = VDSRCA()
    x = torch.rand(1, 3, 24, 12)
    start = end = None
    for layer in frontend.layers[:-1]:
        x = layer(x)
        start = x.std() if start is None else start
        end = x.std()
    assert 0.1 < end / start < 10


@pytest.mark.parametrize("kernels", [[9, 1, 5], [9, 5, 5]])
def test_srcnn_kernels_from_config(kernels):
    cfg = get_cfg()
    cfg.MODEL.SR.NAME, cfg.MODEL.SR.KERNELS = "SRCNN", kernels
    frontend = build_frontend(cfg)
    convs = [m for m in frontend.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs] == kernels
    assert [c.out_channels for c in convs] == [64, 32, 3]


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: SRCNN(kernels=(9, 2, 5)), "KERNELS"),
        (lambda: SRCNN(kernels=(9, 5)), "KERNELS"),
        (lambda: SRCNN(filters=(64, 2)), "FILTERS"),
        (lambda: VDSR(depth=2), "DEPTH"),
        (lambda: VDSRCA(bottleneck=0), "BOTTLENECK"),
        (lambda: RCAN(groups=0), "GROUPS"),
        (lambda: VDSR(loss="huber"), "LOSS"),
    ],
)
def test_bad_options_name_their_key(build, key):
    with pytest.raises(ValueError, match=f"MODEL.SR.{key}"):
        build()


def test_identity_hands_on_the_same_tensor():
    images = batch()
    assert Identity()(images, torch.ones(3, 2)).images is images


def people(seed, size):
    """A smooth picture with edges, as uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@pytest.mark.parametrize("factor", [1.25, 2, 3, 4])
@pytest.mark.parametrize(("frontend", "mode"), [(Bilinear(), "bilinear"), (Bicubic(), "bicubic")])
def test_interpolation_is_what_pillow_makes_of_the_native_pixels(frontend, mode, factor):
    size = (96, 48)
    native = [people(s, size) for s in range(2)]
    shapes = [(round(96 / factor), round(48 / factor)), (30, 20)]
    native = [im.resize(s[::-1], RESAMPLE["bicubic"]) for im, s in zip(native, shapes, strict=True)]
    loaded = torch.stack([to_tensor(im.resize(size[::-1], RESAMPLE["bicubic"])) for im in native])
    wanted = torch.stack([to_tensor(im.resize(size[::-1], RESAMPLE[mode])) for im in native])
    restored = frontend(loaded, torch.tensor(shapes)).images
    assert (
        restored - wanted
    ).square().mean().sqrt() < 0.7  # the loader rounds to whole grey levels
    if mode == "bilinear":
        assert (loaded - wanted).square().mean().sqrt() > 2 * (
            restored - wanted
        ).square().mean().sqrt()


@pytest.mark.parametrize("frontend", [Bilinear(), Bicubic()])
def test_interpolation_leaves_full_size_images_alone(frontend):
    images = batch()
    assert torch.equal(frontend(images, torch.tensor([[24, 12]] * 3)).images, images)
    assert torch.equal(frontend(images, torch.tensor([[48, 30]] * 3)).images, images)
    assert torch.equal(frontend(images, None).images, images)
    mixed = frontend(images, torch.tensor([[24, 12], [12, 12], [12, 6]])).images
    assert torch.equal(mixed[0], images[0])
    assert not torch.allclose(mixed[1], images[1])
    alone = frontend(images[2:], torch.tensor([[12, 6]])).images
    torch.testing.assert_close(mixed[2:], alone)


def test_interpolation_passes_gradients_and_refuses_bad_sizes():
    images = batch().requires_grad_()
    Bilinear()(images, torch.tensor([[12, 6]] * 3)).images.square().sum().backward()
    assert images.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="native_size"):
        Bilinear()(batch(), torch.tensor([[12, 6]]))
    with pytest.raises(ValueError, match="native_size"):
        Bilinear()(batch(), torch.tensor([[0, 6]] * 3))
