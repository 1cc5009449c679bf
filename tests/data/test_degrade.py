"""Degradation kernels and factor draws."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lrreid_ext.data.degrade import (
    KERNELS,
    ROUNDINGS,
    degrade,
    draw_factor,
    hash_unit,
    reduced_size,
)


def picture(height: int = 24, width: int = 12, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("factor", "size"), [(2, (12, 6)), (2.5, (10, 5)), (5, (5, 2)), (7.3, (3, 2)), (100, (1, 1))]
)
def test_size_is_the_small_one(kernel: str, factor: float, size: tuple[int, int]) -> None:
    small = degrade(picture(), factor, kernel)
    assert (small.height, small.width) == size
    assert small.mode == "RGB"


@pytest.mark.parametrize("kernel", KERNELS)
def test_factor_one_and_constant_images_are_unchanged(kernel: str) -> None:
    image = picture()
    assert degrade(image, 1, kernel) is image
    grey = Image.new("RGB", (12, 24), (10, 120, 250))
    assert set(map(tuple, np.asarray(degrade(grey, 3, kernel)).reshape(-1, 3).tolist())) == {
        (10, 120, 250)
    }


def test_rounding() -> None:
    assert ROUNDINGS == ("nearest", "floor", "ceil")
    assert reduced_size(5, 7, 2) == (2, 4)  # 2.5 and 3.5 go to the even neighbour
    assert reduced_size(5, 7, 2, "floor") == (2, 3)
    assert reduced_size(5, 7, 2, "ceil") == (3, 4)
    assert degrade(picture(5, 7), 2, "area", "ceil").size == (4, 3)
    with pytest.raises(ValueError, match="rounding 'up'"):
        reduced_size(5, 7, 2, "up")


@pytest.mark.parametrize("factor", [0.5, 0, -2, float("nan"), float("inf")])
def test_factor_below_one_is_named(factor: float) -> None:
    with pytest.raises(ValueError, match=f"factor {factor!r}"):
        degrade(picture(), factor)


def test_bad_kernel_and_mode() -> None:
    with pytest.raises(ValueError, match="Did you mean 'bicubic'"):
        degrade(picture(), 2, "bicubc")
    with pytest.raises(ValueError, match="RGB, not L"):
        degrade(picture().convert("L"), 2)


def test_area_is_the_mean_and_max_pool_the_maximum_of_blocks() -> None:
    image = picture(24, 12)
    blocks = np.asarray(image).reshape(8, 3, 4, 3, 3)
    assert np.array_equal(np.asarray(degrade(image, 3, "max-pool")), blocks.max((1, 3)))
    mean = np.asarray(degrade(image, 3, "area")).astype(float)
    # Rounded after the columns and again after the rows: half a grey level each.
    assert np.abs(mean - blocks.astype(float).mean((1, 3))).max() <= 1


def test_max_pool_of_a_factor_that_does_not_divide() -> None:
    image = picture(7, 5)
    pixels = np.asarray(image)
    small = np.asarray(degrade(image, 2.4, "max-pool"))
    assert small.shape == (3, 2, 3)
    for i in range(3):
        for j in range(2):
            rows = [y for y in range(7) if y < (i + 1) * 7 / 3 and y + 1 > i * 7 / 3]
            columns = [x for x in range(5) if x < (j + 1) * 5 / 2 and x + 1 > j * 5 / 2]
            cell = pixels[np.ix_(rows, columns)]
            assert np.array_equal(small[i, j], cell.max((0, 1)))


def test_only_cv2_linear_aliases() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 255  # mean 63.75
    image = Image.fromarray(stripes)
    for kernel in ("bicubic", "bilinear", "lanczos", "area"):
        inner = np.asarray(degrade(image, 4, kernel)).astype(float)[:, 2:-2]
        assert np.abs(inner - 63.75).max() < 12, kernel
    # Samples lie between columns 1 and 2 of each four, where all is black.
    assert np.asarray(degrade(image, 4, "cv2-linear")).max() == 0


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("factor", [2, 2.7, 4])
def test_antialiased_kernels_are_pytorchs(kernel: str, factor: float) -> None:
    # Far from black and white, where Pillow cuts off between the two directions.
    pixels = np.random.default_rng(0).integers(80, 176, (48, 24, 3), dtype=np.uint8)
    small = np.asarray(degrade(Image.fromarray(pixels), factor, kernel)).astype(float)
    images = torch.from_numpy(pixels).float().permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(images, small.shape[:2], mode=kernel, antialias=True)
    # Pillow rounds after each direction.
    assert np.abs(small - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def test_cv2_linear_weighs_the_four_nearest() -> None:
    image = picture(9, 9)
    pixels = np.asarray(image).astype(float)
    small = np.asarray(degrade(image, 3.0, "cv2-linear"))
    # Centres of a 3-fold reduction fall on pixels 1, 4, 7 exactly.
    assert np.array_equal(small, pixels[1::3, 1::3])


def test_hash_unit_is_written_down() -> None:
    digest = hashlib.sha256(b"7:0001_c1.jpg").hexdigest()
    assert hash_unit("0001_c1.jpg", 7) == (int(digest[:16], 16) // 2**11) / 2**53


def test_draws_are_of_the_name_and_seed_alone() -> None:
    names = [f"{i:04d}.png" for i in range(3000)]
    forth = [draw_factor(n, 3, [2, 3, 4]) for n in names]
    back = [draw_factor(n, 3, [2, 3, 4]) for n in reversed(names)][::-1]
    assert forth == back
    assert forth != [draw_factor(n, 4, [2, 3, 4]) for n in names]
    counts = Counter(forth)
    assert set(counts) == {2.0, 3.0, 4.0}
    assert min(counts.values()) > 900


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=20), st.integers(), st.floats(1, 9), st.floats(0, 5))
def test_span_draws_lie_inside(name: str, seed: int, low: float, width: float) -> None:
    assert low <= draw_factor(name, seed, span=(low, low + width)) <= low + width


def test_bad_draws() -> None:
    with pytest.raises(ValueError, match="either factors"):
        draw_factor("a", 0)
    with pytest.raises(ValueError, match="either factors"):
        draw_factor("a", 0, [2], (1, 2))
    with pytest.raises(ValueError, match=r"factor 0\.5"):
        draw_factor("a", 0, [2, 0.5])
    with pytest.raises(ValueError, match="span"):
        draw_factor("a", 0, span=(4, 2))
