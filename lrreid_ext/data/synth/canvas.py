"""Drawing of tapered limbs and ellipsoids with shaded, textured surfaces.

A limb is a tapered cylinder seen from the side. Every pixel knows how far it lies across the limb
(u, -1 to 1) and along it, so its surface normal and its place on the cloth are known too: shading
and texture follow the body in any pose. Only elementwise float32 arithmetic and table look-ups are
used, so that every machine draws the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lrreid_ext.data.synth.draws import unit

_PROFILE = 256
_ARC = 1024


@lru_cache(maxsize=1)
def arcsine_table() -> np.ndarray:
    """asin of -1 .. 1 in 2049 even steps, rounded so that every machine holds the same values."""
    values = [round(math.asin(i / _ARC), 5) for i in range(-_ARC, _ARC + 1)]
    return np.array(values, np.float32)


@lru_cache(maxsize=4096)
def profile(knots: tuple[float, ...]) -> np.ndarray:
    """A smooth curve (Catmull-Rom) through evenly spaced values, as 257 float32 samples."""
    k = np.array((knots[0], *knots, knots[-1]), np.float64)
    position = np.arange(_PROFILE + 1) * ((len(knots) - 1) / _PROFILE)
    i = np.minimum(position.astype(int), len(knots) - 2)
    t = position - i
    p0, p1, p2, p3 = k[i], k[i + 1], k[i + 2], k[i + 3]
    curve = 2 * p1 + t * (p2 - p0)
    curve = curve + t * t * (2 * p0 - 5 * p1 + 4 * p2 - p3)
    curve = curve + t * t * t * (3 * p1 - 3 * p2 + p3 - p0)
    return np.round(0.5 * curve, 6).astype(np.float32)


@dataclass
class Surface:
    """What a shader is told about the pixels of a part.

    Attributes:
        u: across the part, -1 to 1 (left to right of its direction; image right for one that
            points down).
        v: along it from its start, body heights (below 0 in the cap before the start).
        shape: (rows, columns) of the patch.
    """

    u: np.ndarray
    v: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape

    def angle(self, facing: float) -> np.ndarray:
        """Angle around the part from the body's front, wrapped to [-pi, pi).

        Args:
            facing: the direction that the body faces, radians; 0 is towards the camera.
        """
        raw = arcsine_table()[(self.u * _ARC + (_ARC + 0.5)).astype(np.int32)] - facing
        turns = np.floor(raw * (0.5 / math.pi) + 0.5)
        return raw - turns * (2.0 * math.pi)


Shader = Callable[[Surface], np.ndarray]
Light = tuple[float, float, float]


def fill(shape: tuple[int, int], colour: Sequence[float]) -> np.ndarray:
    """(3, rows, columns) float32 of one colour."""
    planes = np.empty((3, *shape), np.float32)
    for plane, value in zip(planes, colour, strict=True):
        plane.fill(value)
    return planes


def blend(planes: np.ndarray, mask: np.ndarray, colour: Sequence[float] | np.ndarray) -> None:
    """Lay ``colour`` (three numbers, or planes) over ``planes`` where ``mask`` (0 to 1) says."""
    for plane, value in zip(planes, colour, strict=True):
        plane += mask * (value - plane)


class Canvas:
    """A picture in the making.

    Args:
        background: (rows, columns, 3) uint8 RGB.
        light: direction towards the light in the camera's frame (right, down, towards the camera).
        ambient: brightness of a surface that faces away from the light, about 0.6 to 0.8.
    """

    def __init__(self, background: np.ndarray, light: Light, ambient: float) -> None:
        self.planes = np.ascontiguousarray(background.transpose(2, 0, 1)).astype(np.float32)
        self.rows, self.columns = background.shape[:2]
        self.light, self.ambient = light, ambient

    def _window(
        self, left: float, top: float, right: float, bottom: float
    ) -> tuple[slice, slice] | None:
        x0, x1 = max(0, math.floor(left)), min(self.columns, math.ceil(right) + 1)
        y0, y1 = max(0, math.floor(top)), min(self.rows, math.ceil(bottom) + 1)
        return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None

    def limb(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        radii: np.ndarray,
        shader: Shader,
        *,
        length: float,
        scale: float,
        caps: tuple[float, float] = (0.0, 0.0),
        bow: float = 0.0,
        shadow: float = 0.0,
        gloss: float = 1.0,
    ) -> None:
        """Draw a tapered limb.

        Args:
            start, end: centre line, canvas pixels (x, y).
            radii: 257 half-widths from start to end, body heights (see :func:`profile`).
            shader: surface -> (3, rows, columns) RGB, 0-255.
            length: true length, body heights; the projected one may be shorter.
            scale: canvas pixels per body height.
            caps: lengths of the rounded ends beyond start and end, body heights.
            bow: how far the middle of both ends is shifted along the limb (a hem seen from above).
            shadow: strength of the soft shadow around the part, 0-1.
            gloss: factor on the contrast of the shading.
        """
        (x0, y0), (x1, y1) = start, end
        span = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
        if span < 1.0:
            x1, y1, span = x0, y0 + 1.0, 1.0
        ux, uy = (x1 - x0) / span, (y1 - y0) / span
        before, after, bulge = caps[0] * scale, caps[1] * scale, bow * scale

        # Half-width at every half pixel along the limb, its caps included, negative beyond them.
        positions = np.arange(-2.0, 2.0 * (before + span + after) + 3.0, dtype=np.float32)
        positions = positions * 0.5 - before
        index = unit(positions * (1.0 / span)) * _PROFILE
        half = radii[index.astype(np.int32)] * np.float32(scale)
        widest = float(half.max())
        reach = np.maximum(
            positions * (-1.0 / max(before, 1e-3)), (positions - span) * (1.0 / max(after, 1e-3))
        )
        np.maximum(reach, 0.0, out=reach)
        half *= np.sqrt(unit(1.0 - reach * reach))
        half[reach > 1.0] = -2.0

        margin = 0.035 * scale if shadow else 0.0
        pad = widest + margin + 1.0
        ends_x = (x0 - ux * before, x1 + ux * (after + bulge))
        ends_y = (y0 - uy * before, y1 + uy * (after + bulge))
        window = self._window(
            min(ends_x) - pad * abs(uy) - abs(ux), min(ends_y) - pad * abs(ux) - abs(uy),
            max(ends_x) + pad * abs(uy) + abs(ux), max(ends_y) + pad * abs(ux) + abs(uy),
        )  # fmt: skip
        if window is None:
            return
        xs = (np.arange(window[1].start, window[1].stop) + (0.5 - x0)).astype(np.float32)
        ys = (np.arange(window[0].start, window[0].stop) + (0.5 - y0)).astype(np.float32)[:, None]
        along = xs * ux + ys * uy
        across = xs * uy - ys * ux
        if bulge:
            end_half = max(float(radii[-1]) * scale, 1.0)
            along += bulge * (np.minimum(across * across * (1.0 / end_half**2), 1.0) - 1.0)
        position = (along + before) * 2.0 + 2.5
        np.maximum(position, 0.0, out=position)
        np.minimum(position, len(half) - 1.0, out=position)
        width = half[position.astype(np.int32)]
        distance = np.abs(across)
        cover = unit(width - distance + 0.5)
        patch = self.planes[:, window[0], window[1]]
        if shadow:
            # It grows from the start on and fades at a rounded end: these are joints, and an arm
            # casts none on its own shoulder.
            inside = np.minimum(along, span - along) if caps[1] > 0.015 else along
            deep = unit((width - distance) * (1.0 / margin) + 1.0)
            patch *= 1.0 - deep * (shadow * unit(inside * (1.0 / (0.08 * scale))))
        u = across / np.maximum(width, 0.5)
        np.maximum(u, -1.0, out=u)
        np.minimum(u, 1.0, out=u)
        colour = shader(Surface(u, along * (length / span)))
        light_x, light_y, light_z = self.light
        side = light_x * uy - light_y * ux
        shade = (u * side + np.sqrt(1.0 - u * u) * light_z) * ((1.0 - self.ambient) * gloss)
        shade += 1.0 - (1.0 - self.ambient) * gloss
        for plane, tone in zip(patch, colour, strict=True):
            plane += cover * (tone * shade - plane)

    def ellipsoid(
        self,
        centre: tuple[float, float],
        half_width: float,
        half_height: float,
        shader: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
        *,
        taper: float = 0.0,
        shadow: float = 0.0,
    ) -> None:
        """Draw an ellipsoid.

        Args:
            centre: canvas pixels (x, y).
            half_width, half_height: canvas pixels.
            shader: normals (right, up, towards the camera) -> (3, rows, columns) RGB, 0-255.
            taper: share by which the width shrinks at the lower end (a chin).
            shadow: strength of the soft shadow around it, 0-1.
        """
        cx, cy = centre
        pad = 1.35 if shadow else 1.0
        window = self._window(
            cx - half_width * pad - 1, cy - half_height * pad - 1,
            cx + half_width * pad + 1, cy + half_height * pad + 1,
        )  # fmt: skip
        if window is None:
            return
        nx = (np.arange(window[1].start, window[1].stop) + (0.5 - cx)).astype(np.float32)
        ny = (np.arange(window[0].start, window[0].stop) + (0.5 - cy)).astype(np.float32)[:, None]
        up = ny * (-1.0 / half_height)
        narrow = 1.0 - taper * np.clip(-up, 0.0, 1.0) ** 2
        right = (nx * (1.0 / half_width)) / narrow
        radius = right * right + up * up
        cover = unit((1.0 - radius) * (0.5 * half_width) + 0.5)
        patch = self.planes[:, window[0], window[1]]
        if shadow:
            patch *= 1.0 - shadow * unit((1.7 - radius) * 1.2)
        towards = np.sqrt(unit(1.0 - radius))
        colour = shader(right, np.broadcast_to(up, right.shape), towards)
        light_x, light_y, light_z = self.light
        shade = (right * light_x - up * light_y + towards * light_z) * (1.0 - self.ambient)
        shade += self.ambient
        for plane, tone in zip(patch, colour, strict=True):
            plane += cover * (tone * shade - plane)

    def darken(self, centre: tuple[float, float], reach: tuple[float, float], by: float) -> None:
        """A soft elliptic shadow (canvas pixels) that takes away the share ``by`` at its centre."""
        (cx, cy), (a, b) = centre, reach
        window = self._window(cx - a, cy - b, cx + a, cy + b)
        if window is None:
            return
        x = (np.arange(window[1].start, window[1].stop) + (0.5 - cx)).astype(np.float32) * (1.0 / a)
        y = (np.arange(window[0].start, window[0].stop) + (0.5 - cy)).astype(np.float32) * (1.0 / b)
        depth = unit(1.0 - x * x - (y * y)[:, None])
        self.planes[:, window[0], window[1]] *= 1.0 - by * depth

    def image(self) -> np.ndarray:
        """(rows, columns, 3) uint8 RGB."""
        return np.clip(self.planes + 0.5, 0.0, 255.0).astype(np.uint8).transpose(1, 2, 0)
