"""Local maximal occurrence features (LOMO; Liao, Hu, Zhu and Li, CVPR 2015, section 3).

Where the paper leaves a choice open:

- The two coarser scales are the Retinex image, and the grey one, averaged over 2x2 pixels; colours
  are binned anew on each. (The authors' program averages the bins' numbers; hue is an angle, whose
  number can't be averaged.)
- Retinex prepares the colours only. SILTP sees the original image in grey: it is blind to a change
  of illumination by itself.
- The paper's Retinex (Jobson, Rahman and Woodell 1997) has a gain and an offset that are set
  "automatically" so that it fills 0-255, and the authors' program for it is not public. Ours fills
  them with two standard deviations about the mean: a stretch from minimum to maximum hangs on two
  pixels. Colour restoration, which Jobson et al. add, is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from lrreid_ext.files import worker_context

HEIGHT, WIDTH = 128, 48
SCALES = 3
WINDOW, STEP = 10, 5
COLOUR_BINS = 8  # of hue, saturation and value each
TAU = 0.3
RADII = (3, 5)
RETINEX_SIGMAS = (5.0, 20.0)
STRETCH = 2.0  # standard deviations about the mean that become 0-255

# 24 + 11 + 5 rows of windows, each with a joint colour histogram and one of SILTP per radius.
DIMENSIONS = 40 * (COLOUR_BINS**3 + len(RADII) * 3**4)

# Images whose histograms are counted together: bounds the memory to some 40 MB.
CHUNK = 16

Tag = TypeVar("Tag")


def lomo(images: NDArray[np.uint8], retinex_colours: bool = True) -> NDArray[np.float32]:
    """LOMO features.

    At each of three scales a window of 10x10 pixels moves by 5; of the windows at one height every
    bin keeps its largest count. The counts' ``log(1 + n)`` are scaled to length 1 within each part:
    colours, SILTP of radius 3, and of radius 5.

    Args:
        images: (N, 128, 48, 3) uint8, RGB.
        retinex_colours: whether :func:`retinex` prepares the colours, as in the paper.

    Returns:
        (N, 26960) float32: colours, SILTP of radius 3, SILTP of radius 5; within each part by
        scale, then window row from the top, then bin.

    Raises:
        ValueError: images of another size or type.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (HEIGHT, WIDTH, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"LOMO takes images (N, {HEIGHT}, {WIDTH}, 3) uint8, not {images.shape} {images.dtype}"
        )
    out = np.empty((len(images), DIMENSIONS), np.float32)
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        out[rows] = _features(images[rows], retinex_colours)
    return out


def _features(images: NDArray[np.uint8], retinex_colours: bool) -> NDArray[np.float32]:
    colours = retinex(images) if retinex_colours else images.astype(np.float32)
    # The weights of ITU-R BT.601, as everywhere.
    grey = images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(1 + len(RADII))]
    for scale in range(SCALES):
        if scale:
            colours, grey = halve(colours), halve(grey)
        parts[0].append(max_histograms(colour_codes(colours), COLOUR_BINS**3))
        for part, radius in zip(parts[1:], RADII, strict=True):
            part.append(max_histograms(siltp_codes(grey, radius), 3**4))
    return np.concatenate([_unit_logs(part) for part in parts], axis=1)


def _unit_logs(counts: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    flat = [count.reshape(len(count), -1) for count in counts]
    logs = np.log1p(np.concatenate(flat, axis=1), dtype=np.float32)
    # Every window holds a hundred pixels, so no length is zero.
    return logs / np.linalg.norm(logs, axis=1, keepdims=True)


def retinex(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Multi-scale Retinex (Jobson et al. 1997; LOMO, section 3.1).

    Of each channel, ``log I - log(G * I)`` is averaged over Gaussians G of deviation 5 and 20
    pixels. Each image, its channels together, is then stretched so that two standard deviations
    about its mean fill 0-255; what lies beyond is clipped.

    Args:
        images: (N, H, W, 3) uint8, RGB.

    Returns:
        (N, H, W, 3) float32, RGB, 0-255; 127.5 throughout for an image of a single colour.
    """
    light = images.astype(np.float32) + 1.0  # no logarithm of zero
    out = np.empty_like(light)
    for image, result in zip(light, out, strict=True):
        surrounds = [
            np.log(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))
            for sigma in RETINEX_SIGMAS
        ]
        detail = np.log(image) - sum(surrounds) / np.float32(len(surrounds))
        # Of an image without structure there is nothing but rounding to stretch.
        reach = max(STRETCH * float(detail.std()), 1e-4)
        result[:] = (detail - detail.mean()) * (127.5 / reach) + 127.5
    return out.clip(0, 255)


def colour_codes(images: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of every pixel in a joint histogram of 8 hues, 8 saturations and 8 values.

    Args:
        images: (N, H, W, 3) float32, RGB, 0-255.

    Returns:
        (N, H, W), ``hue + 8 * saturation + 64 * value``, 0 to 511.
    """
    count, height, width, _ = images.shape
    # OpenCV takes one image: stack them. Hue is in degrees, the others are 0 to 1.
    stacked = np.ascontiguousarray(images.reshape(count * height, width, 3)) / np.float32(255)
    hsv = cv2.cvtColor(stacked, cv2.COLOR_RGB2HSV)
    levels = (hsv * (np.array([1 / 360, 1, 1], np.float32) * COLOUR_BINS)).astype(np.int64)
    levels = np.clip(levels, 0, COLOUR_BINS - 1)
    codes: NDArray[np.int64] = levels @ (COLOUR_BINS ** np.arange(3))
    return codes.reshape(count, height, width)


def siltp_codes(grey: NDArray[np.float32], radius: int, tau: float = TAU) -> NDArray[np.int64]:
    """Scale-invariant local ternary patterns (Liao et al., CVPR 2010) of four neighbours.

    A neighbour counts 1 if it exceeds ``(1 + tau)`` times the centre, 2 if it is below
    ``(1 - tau)`` times the centre, else 0. Beyond the border the nearest pixel is taken.

    Args:
        grey: (N, H, W) float32, not negative.
        radius: distance of the neighbours in pixels.
        tau: how far a neighbour must differ.

    Returns:
        (N, H, W), 0 to 80: digits to base 3, the right neighbour's the lowest, then those above, to
        the left and below.
    """
    _, height, width = grey.shape
    padded = np.pad(grey, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    upper, lower = grey * np.float32(1 + tau), grey * np.float32(1 - tau)
    codes = np.zeros(grey.shape, np.int64)
    for digit, (down, right) in enumerate(((0, 1), (-1, 0), (0, -1), (1, 0))):
        top, left = radius * (1 + down), radius * (1 + right)
        neighbour = padded[:, top : top + height, left : left + width]
        codes += 3**digit * ((neighbour > upper) + 2 * (neighbour < lower))
    return codes


def halve(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average over 2x2 pixels: (N, H, W, ...) to (N, H // 2, W // 2, ...)."""
    height, width = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
    even = images[:, :height, :width]
    columns = even[:, ::2] + even[:, 1::2]
    return (columns[:, :, ::2] + columns[:, :, 1::2]) * np.float32(0.25)


def max_histograms(codes: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """The largest count of every bin among the windows at one height (LOMO, section 3.2).

    Args:
        codes: (N, H, W), 0 to ``bins - 1``, H and W at least 10.
        bins: how many there are.

    Returns:
        (N, R, bins) with R = (H - 10) // 5 + 1.
    """
    windows = np.lib.stride_tricks.sliding_window_view(codes, (WINDOW, WINDOW), axis=(1, 2))
    windows = windows[:, ::STEP, ::STEP]
    count, rows, columns = windows.shape[:3]
    # One histogram over all windows, each with bins of its own.
    offset = np.arange(count * rows * columns).reshape(count, rows, columns, 1, 1) * bins
    flat = np.bincount((windows + offset).ravel(), minlength=count * rows * columns * bins)
    largest: NDArray[np.int64] = flat.reshape(count, rows, columns, bins).max(axis=2)
    return largest


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for :func:`lomo_batches`; None for one worker, which is this process itself."""
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, worker_context(__name__), _one_thread) as pool:
        pool.submit(int).result()
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def lomo_batches(
    batches: Iterable[tuple[Tag, NDArray[np.uint8]]],
    pool: Executor | None = None,
    retinex_colours: bool = True,
    ahead: int = 8,
) -> Iterator[tuple[Tag, NDArray[np.float32]]]:
    """LOMO features of batch after batch, in several processes.

    Args:
        batches: anything that is to stay with the batch, and its images as :func:`lomo` takes them.
        pool: what computes the features; None does it here. See :func:`worker_pool`.
        retinex_colours: see :func:`lomo`.
        ahead: batches in the pool at a time, however fast they come; bounds the memory.

    Yields:
        The same with the images' features, in the same order.

    Raises:
        ValueError: images of another size or type.
    """
    extract = partial(lomo, retinex_colours=retinex_colours)
    if pool is None:
        for tag, images in batches:
            yield tag, extract(images)
        return
    waiting: deque[tuple[Tag, Future[NDArray[np.float32]]]] = deque()
    for tag, images in batches:
        waiting.append((tag, pool.submit(extract, images)))
        if len(waiting) >= ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()


def _one_thread() -> None:
    """There are as many processes as processors: OpenCV's threads would be in their way."""
    cv2.setNumThreads(1)
