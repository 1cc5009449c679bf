"""The resize in exported graphs against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lrreid_ext.export.deployable import pack
from lrreid_ext.export.resize import pillow_may_begin_with_height, resize_crops

# Enlarged, reduced, both; 300x90 is where Pillow may take the height first.
SIZES = [(1, 1), (3, 2), (20, 9), (64, 32), (63, 31), (300, 90), (90, 300), (33, 65), (200, 120)]


@pytest.mark.parametrize("size", [(64, 32), (40, 50)])
def test_it_is_pillows_to_the_last_bit(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    crops = [draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SIZES]
    images, native = pack(crops)
    assert images.shape == (len(SIZES), 3, 300, 300)
    assert native.tolist() == [list(shape) for shape in SIZES]
    got = resize_crops(images, native, *size, pillow_may_begin_with_height())
    for crop, image in zip(crops, got, strict=True):
        wanted = Image.fromarray(crop).resize(size[::-1], Image.Resampling.BICUBIC)
        assert torch.equal(image, torch.tensor(np.asarray(wanted)).permute(2, 0, 1).float())


def test_what_lies_beside_a_crop_counts_for_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 30, 20), generator=draw, dtype=torch.uint8)
    native = torch.tensor([[30, 20], [11, 7]])
    noisy = images.clone()
    noisy[1, :, 11:] = 255 - noisy[1, :, 11:]
    noisy[1, :, :, 7:] = 255 - noisy[1, :, :, 7:]
    assert torch.equal(resize_crops(images, native, 16, 8), resize_crops(noisy, native, 16, 8))
    alone = resize_crops(images[1:, :, :11, :7], native[1:], 16, 8)
    assert torch.equal(resize_crops(images, native, 16, 8)[1:], alone)
