"""From an identity, a camera and a shot to an image."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from lrreid_ext.data.synth.body import Figure
from lrreid_ext.data.synth.cameras import CAMERAS, Camera
from lrreid_ext.data.synth.canvas import Canvas, fill, profile
from lrreid_ext.data.synth.draws import Draws
from lrreid_ext.data.synth.identity import appearance_of
from lrreid_ext.data.synth.pose import View, joints
from lrreid_ext.data.synth.scenes import background

NUM_CAMERAS = len(CAMERAS)
MIN_HEIGHT, MIN_WIDTH = 32, 16
OCCLUSION_RATE = 0.13


def render(
    identity: int, camera: int, shot: int, *, seed: int = 0, height: int = 128, width: int = 64
) -> np.ndarray:
    """An image of a synthetic pedestrian.

    The result is a function of the arguments alone.

    Args:
        identity: who; an integer >= 0. Identities ``4 k .. 4 k + 3`` are look-alikes.
        camera: 0 to ``NUM_CAMERAS - 1``.
        shot: which of the camera's images of this person; an integer >= 0. It decides pose,
            direction, crop, background, occlusion and noise.
        seed: which world; an integer >= 0. Another seed gives other people and scenes.
        height: image height, pixels; at least 32.
        width: image width, pixels; at least 16.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: an argument out of its range; the message names it.
        TypeError: an argument that is not an integer.
    """
    _check(identity, camera, shot, seed, height, width)
    eye = CAMERAS[camera]
    draws = Draws(4, seed, identity, camera, shot)
    # Small images are drawn larger, so that fine cloth is averaged and not skipped.
    factor = min(4, max(2, -(-256 // height)))
    rows, columns = height * factor, width * factor

    looks = appearance_of(identity, seed)
    reach = min(rows, 2 * columns)
    size = reach * eye.scale * looks.stature * draws.uniform(0.95, 1.05)
    ground = (rows + size) / 2 + reach * draws.uniform(-0.03, 0.03)
    view = View(
        facing=_facing(draws, eye),
        tilt=eye.tilt * draws.uniform(0.85, 1.15),
        scale=round(size, 3),
        x=round(columns * (0.5 + draws.uniform(-0.06, 0.06)), 3),
        ground=round(ground, 3),
    )
    light_x, light_y, light_z = eye.light
    light = (light_x + draws.uniform(-0.15, 0.15), light_y, light_z)
    scenery = background(eye.scene, seed, draws, width, height, ground / rows)
    scenery = scenery.repeat(factor, axis=0).repeat(factor, axis=1)
    canvas = Canvas(scenery, light, eye.ambient)
    carries = looks.bag_side if looks.bag == "handbag" else 0
    pose = joints(draws, looks.build, looks.hips, carries)
    shadow_x = view.x - 0.1 * view.scale * light[0]
    canvas.darken((shadow_x, view.ground), (0.26 * view.scale, 0.07 * view.scale), 0.45)
    Figure(canvas, view, looks, pose, draws.uniform(0.0, 1.0)).draw()
    if draws.chance(OCCLUSION_RATE):
        _occlude(canvas, draws, view, identity, seed)
    picture = Image.fromarray(np.ascontiguousarray(canvas.image())).reduce(factor)
    return _sense(np.asarray(picture), eye, draws)


def _check(identity: int, camera: int, shot: int, seed: int, height: int, width: int) -> None:
    limits = {
        "identity": (identity, 0),
        "camera": (camera, 0),
        "shot": (shot, 0),
        "seed": (seed, 0),
        "height": (height, MIN_HEIGHT),
        "width": (width, MIN_WIDTH),
    }
    for name, (value, least) in limits.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    if camera >= NUM_CAMERAS:
        raise ValueError(f"camera must be 0 to {NUM_CAMERAS - 1}, not {camera}")


def _facing(draws: Draws, camera: Camera) -> float:
    facing = camera.facing + draws.uniform(-0.75, 0.75)
    if draws.chance(0.35):
        facing += math.pi
    return round(facing, 6)


def _occlude(canvas: Canvas, draws: Draws, view: View, identity: int, seed: int) -> None:
    """Put a pole, a bench or the edge of another person before the pedestrian."""
    rows, columns, scale = canvas.rows, canvas.columns, view.scale
    kind = draws.pick(("pole", "bench", "person", "person"))
    side = draws.pick((-1, 1))
    if kind == "pole":
        x = view.x + side * scale * draws.uniform(0.03, 0.16)
        grey = draws.uniform(60, 150)
        canvas.limb(
            (x, -5.0), (x, rows + 5.0), profile((round(draws.uniform(0.014, 0.03), 4),) * 2),
            lambda s: fill(s.shape, (grey, grey, grey + 4)), length=1.0, scale=scale, gloss=1.2,
        )  # fmt: skip
    elif kind == "bench":
        top = view.ground - scale * draws.uniform(0.16, 0.3)
        wood = draws.pick(((118, 92, 68), (96, 98, 96), (134, 116, 92)))
        left = view.x - columns * 0.5 if side < 0 else view.x - scale * draws.uniform(0.0, 0.12)
        for slat in range(3):
            y = top + slat * 0.045 * scale
            canvas.limb(
                (left, y), (left + columns, y), profile((0.016, 0.016)),
                lambda s: fill(s.shape, wood), length=0.5, scale=scale, shadow=0.2,
            )  # fmt: skip
        for leg in (0.06, 0.42):
            canvas.limb(
                (left + leg * scale, top), (left + leg * scale, view.ground + 0.05 * scale),
                profile((0.014, 0.014)), lambda s: fill(s.shape, (58, 58, 60)), length=0.3,
                scale=scale,
            )  # fmt: skip
    else:
        other = appearance_of(identity + 4 + int(draws.uniform(0, 4000)), seed)
        near = View(
            facing=round(draws.uniform(-math.pi, math.pi), 6), tilt=view.tilt,
            scale=round(scale * 1.06, 3),
            x=round(view.x + side * scale * draws.uniform(0.22, 0.3), 3),
            ground=round(view.ground + 0.04 * scale, 3),
        )  # fmt: skip
        Figure(canvas, near, other, joints(draws, other.build, other.hips), 0.3).draw()


@lru_cache(maxsize=512)
def _response(camera: Camera, step: int) -> np.ndarray:
    """The camera's tone curve as (3, 256) float32; ``step`` is a shot's exposure, in 2 % steps."""
    curve = np.empty((3, 256), np.float32)
    for channel, gain in enumerate(camera.gains):
        for value in range(256):
            light = min(1.0, max(0.0, value / 255 * gain * (1.0 + 0.02 * step)))
            tone = (light**camera.gamma - 0.47) * camera.contrast + 0.47
            curve[channel, value] = round(255 * min(1.0, max(0.0, tone)), 3)
    return curve


def _sense(picture: np.ndarray, camera: Camera, draws: Draws) -> np.ndarray:
    """What the camera's optics and sensor make of the scene; (H, W, 3) uint8 to the same."""
    exposure = int(draws.uniform(-5, 6))
    curve = _response(camera, exposure)
    image = np.stack([curve[c][picture[:, :, c]] for c in range(3)], axis=2)
    image *= np.array([draws.uniform(0.97, 1.03) for _ in range(3)], np.float32)
    side, middle = camera.blur, 1.0 - 2.0 * camera.blur
    tall = np.concatenate([image[:1], image, image[-1:]])
    image = middle * image + side * (tall[:-2] + tall[2:])
    wide = np.concatenate([image[:, :1], image, image[:, -1:]], axis=1)
    image = middle * image + side * (wide[:, :-2] + wide[:, 2:])
    grain = draws.grain(*picture.shape[:2], 3)
    # Most of the noise is common to the channels, as in a demosaiced image.
    image += (camera.noise * 0.6) * grain[:, :, :1] + (camera.noise * 0.4) * grain
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
