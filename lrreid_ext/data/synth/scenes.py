"""Backgrounds: one wide picture per camera and seed, from which every shot takes its own piece."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lrreid_ext.data.synth.draws import Draws

WIDTH, HEIGHT = 1024, 320
"""Size of a scene's master picture. One shot sees 128 by 256 of it, before its own zoom."""
_FEET = 262
"""Row of the master picture at which people stand."""

RGB = tuple[int, int, int]


def _shade(colour: RGB, by: float) -> RGB:
    red, green, blue = (int(min(255, max(0, c + by))) for c in colour)
    return red, green, blue


def _floor(draw: ImageDraw.ImageDraw, horizon: int, near: RGB, far: RGB) -> None:
    for y in range(horizon, HEIGHT):
        t = (y - horizon) / (HEIGHT - horizon)
        red, green, blue = (int(f + (n - f) * t) for n, f in zip(near, far, strict=True))
        draw.line((0, y, WIDTH, y), fill=(red, green, blue))


def _tiles(
    draw: ImageDraw.ImageDraw, horizon: int, colour: RGB, first: float, growth: float, pitch: float
) -> None:
    y, step = float(horizon), first
    while y < HEIGHT:
        draw.line((0, int(y), WIDTH, int(y)), fill=colour)
        y, step = y + step, step * growth
    for i in range(-40, 41):
        bottom = WIDTH / 2 + i * pitch
        top = WIDTH / 2 + i * pitch * 0.62
        draw.line((int(top), horizon, int(bottom), HEIGHT), fill=colour)


def _street(draw: ImageDraw.ImageDraw, d: Draws) -> None:
    x = 0.0
    while x < WIDTH:
        wide = d.uniform(90, 190)
        wall = _shade(
            d.pick(((150, 140, 128), (126, 128, 134), (164, 156, 146), (132, 112, 98))),
            d.uniform(-12, 12),
        )
        draw.rectangle((int(x), 0, int(x + wide), 190), fill=wall)
        for row in range(3):
            for column in range(int(wide // 34)):
                left, top = int(x + 8 + column * 34), 8 + row * 52
                glass = _shade((78, 88, 100), d.uniform(-20, 34))
                draw.rectangle((left, top, left + 18, top + 32), fill=glass)
                draw.line((left, top + 33, left + 18, top + 33), fill=_shade(wall, 26))
        x += wide
    draw.rectangle((0, 176, WIDTH, 200), fill=(128, 126, 122))
    _floor(draw, 200, (116, 116, 118), (98, 98, 102))
    x = d.uniform(0, 60)
    while x < WIDTH:
        paint = d.pick(((70, 72, 78), (150, 150, 152), (86, 44, 44), (56, 66, 92), (190, 190, 188)))
        left = int(x)
        draw.rounded_rectangle((left, 160, left + 128, 204), 14, fill=paint)
        draw.rounded_rectangle((left + 24, 138, left + 104, 172), 12, fill=_shade(paint, -12))
        draw.rounded_rectangle((left + 30, 143, left + 98, 164), 7, fill=(70, 80, 90))
        for wheel in (left + 26, left + 100):
            draw.ellipse((wheel - 13, 188, wheel + 13, 214), fill=(34, 34, 36))
            draw.ellipse((wheel - 6, 195, wheel + 6, 207), fill=(130, 130, 134))
        x += d.uniform(150, 330)
    draw.rectangle((0, 228, WIDTH, 233), fill=(156, 154, 150))
    _floor(draw, 233, (150, 148, 142), (138, 136, 132))


def _pavement(draw: ImageDraw.ImageDraw, d: Draws) -> None:
    _floor(draw, 0, (160, 154, 146), (136, 132, 130))
    _tiles(draw, 60, (124, 120, 116), 9.0, 1.1, 46.0)
    draw.rectangle((0, 0, WIDTH, 44), fill=(104, 104, 108))
    draw.rectangle((0, 44, WIDTH, 60), fill=(176, 172, 164))
    for _ in range(9):
        x, y = int(d.uniform(0, WIDTH)), int(d.uniform(90, 300))
        draw.ellipse((x, y, x + 46, y + 16), fill=_shade((128, 124, 120), d.uniform(-18, 14)))
    for _ in range(5):
        x = int(d.uniform(0, WIDTH))
        draw.rectangle((x, 30, x + 9, 96), fill=(86, 88, 92))
        draw.rectangle((x, 30, x + 3, 96), fill=(118, 120, 124))


def _park(draw: ImageDraw.ImageDraw, d: Draws) -> None:
    draw.rectangle((0, 0, WIDTH, 130), fill=(176, 186, 190))
    for i in range(150):
        x, y = int(d.uniform(-20, WIDTH)), int(d.uniform(-20, 110))
        size = int(d.uniform(24, 62))
        green = _shade((84, 100, 68), d.uniform(-34, 26))
        draw.ellipse((x, y, x + size, y + int(size * 0.8)), fill=green)
        if i % 13 == 0:
            draw.rectangle(
                (x + 20, y + 30, x + 30, 150), fill=_shade((92, 78, 66), d.uniform(-14, 10))
            )
    draw.rectangle((0, 118, WIDTH, 156), fill=(78, 94, 62))
    _floor(draw, 150, (112, 124, 84), (98, 112, 76))
    draw.polygon(((0, 236), (WIDTH, 214), (WIDTH, 292), (0, 300)), fill=(164, 154, 136))
    for _ in range(900):
        x, y = int(d.uniform(0, WIDTH)), int(d.uniform(156, 232))
        draw.line((x, y, x + 2, y - 4), fill=_shade((112, 126, 80), d.uniform(-26, 26)))


def _bricks(draw: ImageDraw.ImageDraw, d: Draws) -> None:
    draw.rectangle((0, 0, WIDTH, 214), fill=(150, 138, 128))
    for row in range(18):
        for column in range(-1, WIDTH // 26 + 1):
            left, top = column * 26 + (row % 2) * 13, row * 12
            brick = _shade((136, 92, 78), d.uniform(-16, 16))
            draw.rectangle((left, top, left + 23, top + 9), fill=brick)
    for _ in range(4):
        x = int(d.uniform(0, WIDTH))
        paper = d.pick(((186, 180, 166), (90, 104, 120), (160, 140, 96)))
        draw.rectangle((x, 60, x + 44, 122), fill=paper)
        for line in range(5):
            draw.line((x + 6, 72 + line * 9, x + 36, 72 + line * 9), fill=_shade(paper, -60))
    for _ in range(2):
        x = int(d.uniform(0, WIDTH))
        draw.rectangle((x, 44, x + 66, 214), fill=(84, 82, 80))
        draw.rectangle((x + 6, 52, x + 60, 214), fill=(110, 116, 112))
    draw.rectangle((0, 208, WIDTH, 216), fill=(98, 92, 88))
    _floor(draw, 216, (158, 152, 144), (136, 132, 126))
    _tiles(draw, 216, (140, 134, 128), 14.0, 1.25, 60.0)


def _shops(draw: ImageDraw.ImageDraw, d: Draws) -> None:
    x = 0.0
    while x < WIDTH:
        wide = d.uniform(120, 200)
        left, right = int(x), int(x + wide)
        trim = d.pick(((92, 90, 92), (150, 140, 120), (70, 84, 92), (112, 78, 70)))
        draw.rectangle((left, 0, right, 214), fill=trim)
        draw.rectangle((left, 0, right, 34), fill=_shade(trim, -26))
        letter = left + 14
        while letter < right - 24:
            draw.rectangle((letter, 10, letter + int(d.uniform(4, 9)), 24), fill=(206, 200, 186))
            letter += 15
        draw.rectangle(
            (left + 8, 42, right - 8, 200), fill=_shade((112, 122, 128), d.uniform(-26, 20))
        )
        for _ in range(7):
            px, py = d.uniform(left + 10, right - 34), d.uniform(50, 168)
            thing = _shade(
                d.pick(((170, 160, 146), (120, 92, 84), (86, 98, 112), (150, 140, 96))),
                d.uniform(-20, 20),
            )
            draw.rectangle(
                (int(px), int(py), int(px + d.uniform(8, 24)), int(py + d.uniform(10, 30))),
                fill=thing,
            )
        draw.polygon(
            ((left + 30, 42), (left + 64, 42), (left + 24, 200), (left + 8, 200), (left + 8, 100)),
            fill=(142, 152, 158),
        )
        draw.rectangle((right - 8, 34, right, 214), fill=_shade(trim, 22))
        x += wide
    _floor(draw, 214, (148, 148, 150), (124, 124, 128))
    _tiles(draw, 214, (132, 132, 136), 16.0, 1.3, 74.0)


def _corridor(draw: ImageDraw.ImageDraw, d: Draws) -> None:
    draw.rectangle((0, 0, WIDTH, 200), fill=(188, 186, 176))
    draw.rectangle((0, 0, WIDTH, 18), fill=(214, 214, 208))
    x = d.uniform(0, 80)
    while x < WIDTH:
        left = int(x)
        door = d.pick(((136, 112, 88), (112, 120, 128), (150, 146, 138)))
        draw.rectangle((left - 4, 36, left + 72, 200), fill=_shade(door, -34))
        draw.rectangle((left, 40, left + 68, 200), fill=door)
        draw.rectangle((left + 10, 54, left + 26, 104), fill=(160, 170, 172))
        draw.ellipse((left + 58, 118, left + 64, 124), fill=(206, 202, 190))
        board = left + int(d.uniform(100, 130))
        draw.rectangle(
            (board, 62, board + 58, 110), fill=_shade((150, 150, 140), d.uniform(-30, 30))
        )
        x += d.uniform(190, 280)
    draw.rectangle((0, 190, WIDTH, 202), fill=(120, 116, 110))
    _floor(draw, 202, (176, 174, 168), (140, 138, 134))
    for _ in range(8):
        x0, wide = int(d.uniform(0, WIDTH)), int(d.uniform(16, 40))
        draw.polygon(
            ((x0, 204), (x0 + wide, 204), (x0 + wide + 10, 320), (x0 - 10, 320)),
            fill=(186, 184, 178),
        )


SCENES: dict[str, Callable[[ImageDraw.ImageDraw, Draws], None]] = {
    "street": _street,
    "pavement": _pavement,
    "park": _park,
    "bricks": _bricks,
    "shops": _shops,
    "corridor": _corridor,
}
"""Painter of a background family, by name."""


@lru_cache(maxsize=12)
def _scene(name: str, seed: int) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    draws = Draws(3, seed, sorted(SCENES).index(name))
    SCENES[name](ImageDraw.Draw(picture), draws)
    picture = picture.filter(ImageFilter.BoxBlur(1.6))
    # Large soft blots and a fine grain, so that no surface is flat.
    blots = (draws.array(10, 32) * 255).astype(np.uint8)
    soft = np.asarray(Image.fromarray(blots).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    pixels = np.asarray(picture).astype(np.float32)
    pixels *= (0.9 + soft * np.float32(0.2 / 255))[:, :, None]
    pixels += 4.0 * draws.grain(HEIGHT, WIDTH)[:, :, None]
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def background(
    name: str, seed: int, draws: Draws, width: int, height: int, ground: float
) -> np.ndarray:
    """A shot's piece of a scene.

    Args:
        name: background family, a key of :data:`SCENES`.
        seed: which scene of the family.
        draws: where the position and the zoom come from.
        width, height: size in pixels.
        ground: where the feet are, as a share of the height.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    tall = 256.0 * draws.uniform(0.72, 0.9)
    wide = min(tall * width / height, float(WIDTH))
    left = draws.uniform(0.0, WIDTH - wide)
    top = min(max(0.0, _FEET + draws.uniform(-12, 12) - ground * tall), HEIGHT - tall)
    right, bottom = min(left + wide, WIDTH), min(top + tall, HEIGHT)
    box = (round(left, 2), round(top, 2), round(right, 2), round(bottom, 2))
    piece = _scene(name, seed).resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(piece)
