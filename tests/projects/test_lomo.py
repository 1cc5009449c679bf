"""LOMO against loops over pixels, and its parts against other people's programs."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
from scipy import ndimage

from projects.SING.classical import DIMENSIONS, lomo, lomo_batches, worker_pool
from projects.SING.classical.lomo import colour_codes, halve, max_histograms, retinex, siltp_codes


def random_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 128, 48, 3), dtype=np.uint8)


def naive_colour(pixel: np.ndarray) -> int:
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) / 255 for c in pixel))
    bins = [min(int(8 * x), 7) for x in (hue, saturation, value)]
    return bins[0] + 8 * bins[1] + 64 * bins[2]


def naive_siltp(grey: np.ndarray, y: int, x: int, radius: int) -> int:
    height, width = grey.shape
    code = 0
    for digit, (down, right) in enumerate([(0, 1), (-1, 0), (0, -1), (1, 0)]):
        row = min(max(y + radius * down, 0), height - 1)
        column = min(max(x + radius * right, 0), width - 1)
        if grey[row, column] > 1.3 * grey[y, x]:
            code += 3**digit
        elif grey[row, column] < 0.7 * grey[y, x]:
            code += 2 * 3**digit
    return code


def naive_max_histograms(codes: np.ndarray, bins: int) -> list[list[int]]:
    height, width = codes.shape
    rows = []
    for top in range(0, height - 9, 5):
        best = [0] * bins
        for left in range(0, width - 9, 5):
            counts = [0] * bins
            for y in range(top, top + 10):
                for x in range(left, left + 10):
                    counts[codes[y, x]] += 1
            best = [max(a, b) for a, b in zip(best, counts, strict=True)]
        rows.append(best)
    return rows


def naive_lomo(image: np.ndarray) -> list[float]:
    """Without Retinex, for an image whose 4x4 blocks are of one colour each."""
    parts: list[list[float]] = [[], [], []]
    for step in (1, 2, 4):  # averaging such an image is taking every second pixel
        small = image[::step, ::step].astype(float)
        grey = small @ np.array([0.299, 0.587, 0.114])
        height, width = grey.shape
        colours = np.array([[naive_colour(p) for p in row] for row in small])
        codes = [(colours, 512)]
        for radius in (3, 5):
            places = [
                [naive_siltp(grey, y, x, radius) for x in range(width)] for y in range(height)
            ]
            codes.append((np.array(places), 81))
        for part, (code, bins) in zip(parts, codes, strict=True):
            part += [math.log(1 + n) for row in naive_max_histograms(code, bins) for n in row]
    lengths = [math.sqrt(sum(v * v for v in part)) for part in parts]
    return [v / length for part, length in zip(parts, lengths, strict=True) for v in part]


def test_equals_loops_over_pixels():
    # Colours that are near no bin's border, and greys near no threshold of SILTP's.
    palette = np.array([[200, 30, 60], [20, 120, 60], [70, 80, 230], [250, 240, 205], [12, 7, 10]])
    blocks = np.random.default_rng(1).integers(0, len(palette), (32, 12))
    image = palette[blocks].repeat(4, 0).repeat(4, 1).astype(np.uint8)
    found = lomo(image[None], retinex_colours=False)
    np.testing.assert_allclose(found[0], np.array(naive_lomo(image)), atol=1e-6)


def test_dimension_type_and_lengths():
    features = lomo(random_images(3))
    assert features.shape == (3, 26960)
    assert DIMENSIONS == 26960
    assert features.dtype == np.float32
    ends = np.cumsum([40 * 512, 40 * 81, 40 * 81])[:-1]
    for part in np.split(features, ends, axis=1):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, rtol=1e-5)


def test_images_do_not_meet_in_a_chunk():
    images = random_images(19)
    together = lomo(images)
    np.testing.assert_array_equal(together[17], lomo(images[17:18])[0])
    assert lomo(images[:0]).shape == (0, 26960)


def test_retinex_touches_the_colours_alone():
    image = random_images(1)
    with_, without = lomo(image)[0], lomo(image, retinex_colours=False)[0]
    assert np.abs(with_[: 40 * 512] - without[: 40 * 512]).max() > 0.01
    np.testing.assert_array_equal(with_[40 * 512 :], without[40 * 512 :])


def test_colour_codes_equal_colorsys():
    pixels = np.random.default_rng(2).uniform(0, 255, (2, 9, 7, 3)).astype(np.float32)
    expected = [[[naive_colour(p) for p in row] for row in image] for image in pixels]
    np.testing.assert_array_equal(colour_codes(pixels), expected)
    black_and_white = np.array([[[[0, 0, 0], [255, 255, 255]]]], np.float32)
    assert colour_codes(black_and_white).ravel().tolist() == [0, 7 * 64]


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_siltp_equals_a_loop(radius: int):
    grey = np.random.default_rng(3).uniform(0, 255, (2, 8, 6)).astype(np.float32)
    expected = [
        [[naive_siltp(g.astype(float), y, x, radius) for x in range(6)] for y in range(8)]
        for g in grey
    ]
    np.testing.assert_array_equal(siltp_codes(grey, radius), expected)


def test_siltp_does_not_see_a_change_of_scale():
    grey = np.random.default_rng(4).uniform(1, 255, (1, 20, 12)).astype(np.float32)
    np.testing.assert_array_equal(siltp_codes(grey, 3), siltp_codes(grey * 0.25, 3))


@pytest.mark.parametrize(("height", "width"), [(10, 10), (14, 15), (32, 12), (29, 23)])
def test_max_histograms_equal_a_loop(height: int, width: int):
    codes = np.random.default_rng(5).integers(0, 7, (3, height, width))
    expected = [naive_max_histograms(code, 7) for code in codes]
    np.testing.assert_array_equal(max_histograms(codes, 7), expected)


def test_halve():
    images = np.random.default_rng(6).uniform(0, 255, (2, 6, 4, 3)).astype(np.float32)
    halved = halve(images)
    assert halved.shape == (2, 3, 2, 3)
    assert halved.dtype == np.float32
    assert halved[1, 2, 1, 0] == pytest.approx(float(images[1, 4:6, 2:4, 0].mean()))
    assert halve(images[:, :5, :3, 0]).shape == (2, 2, 1)


def test_retinex_equals_scipys_gaussian():
    image = ndimage.uniform_filter(random_images(1)[0].astype(float), (9, 9, 0)).astype(np.uint8)
    light = image.astype(float) + 1
    detail = np.zeros_like(light)
    for sigma in (5, 20):
        for channel in range(3):
            blurred = ndimage.gaussian_filter(light[..., channel], sigma, mode="nearest")
            detail[..., channel] += (np.log(light[..., channel]) - np.log(blurred)) / 2
    low, high = detail.mean() - 2 * detail.std(), detail.mean() + 2 * detail.std()
    expected = ((detail - low) / (high - low) * 255).clip(0, 255)
    found = retinex(image[None])[0]
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert found.min() == 0
    assert found.max() == 255


def test_retinex_of_a_single_colour():
    flat = np.full((1, 128, 48, 3), (200, 10, 60), np.uint8)
    np.testing.assert_allclose(retinex(flat), 127.5, atol=1)
    assert np.isfinite(lomo(flat)).all()


@pytest.mark.parametrize("ahead", [1, 3, 9])
def test_several_processes_give_the_same_in_order(ahead: int):
    batches = [(f"batch {k}", random_images(2, seed=k)) for k in range(6)]
    alone = list(lomo_batches(batches))
    with worker_pool(2) as pool:
        shared = list(lomo_batches(iter(batches), pool, ahead=ahead))
    assert [tag for tag, _ in shared] == [tag for tag, _ in batches]
    for (_, a), (_, b) in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(a, b)


def test_fault_in_a_process_is_raised_here():
    wrong = np.zeros((1, 48, 128, 3), np.uint8)
    with worker_pool(2) as pool, pytest.raises(ValueError, match="LOMO takes images"):
        list(lomo_batches([(0, wrong)], pool))


def test_one_worker_is_this_process():
    with worker_pool(1) as pool:
        assert pool is None


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 48, 128, 3), np.uint8),
        np.zeros((128, 48, 3), np.uint8),
        np.zeros((1, 128, 48, 3), np.float32),
    ],
    ids=["lying", "one image", "float"],
)
def test_other_images_are_refused(images: np.ndarray):
    with pytest.raises(ValueError, match=r"\(N, 128, 48, 3\) uint8"):
        lomo(images)
