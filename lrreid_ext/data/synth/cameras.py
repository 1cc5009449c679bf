"""The six cameras: colour, noise, viewpoint, light and scene of each."""

from __future__ import annotations

from dataclasses import dataclass

from lrreid_ext.data.synth.canvas import Light


@dataclass(frozen=True)
class Camera:
    """One camera's fixed properties.

    Attributes:
        scene: background family, a key of ``scenes.SCENES``.
        gains: white balance, factor on R, G, B.
        contrast: factor around mid-grey.
        gamma: exponent on the 0-1 scale; above 1 darkens the middle tones.
        noise: standard deviation of the sensor's noise, 0-255 scale.
        blur: weight of each neighbour in a three-tap filter; 0 is sharp.
        tilt: how far it looks down, radians.
        scale: mean height of a person, as a share of the image's.
        facing: direction that most people face, radians (0 towards the camera).
        light: towards the light: right, down, towards the camera.
        ambient: brightness of what the light doesn't reach.
    """

    scene: str
    gains: tuple[float, float, float]
    contrast: float
    gamma: float
    noise: float
    blur: float
    tilt: float
    scale: float
    facing: float
    light: Light
    ambient: float


CAMERAS = (
    Camera("street", (1.03, 1.0, 0.95), 1.04, 0.96, 3.0, 0.02, 0.12, 0.88, 0.25,
           (-0.55, -0.45, 0.7), 0.62),
    Camera("pavement", (0.94, 1.0, 1.07), 0.93, 1.08, 4.5, 0.06, 0.30, 0.86, 3.0,
           (0.5, -0.6, 0.62), 0.66),
    Camera("park", (0.98, 1.04, 0.95), 1.0, 0.92, 3.5, 0.04, 0.16, 0.84, 1.0,
           (0.65, -0.45, 0.6), 0.58),
    Camera("bricks", (1.08, 0.99, 0.9), 0.96, 1.06, 5.0, 0.05, 0.08, 0.9, -0.7,
           (-0.7, -0.35, 0.62), 0.6),
    Camera("shops", (0.97, 0.98, 1.04), 1.1, 1.0, 3.0, 0.08, 0.14, 0.87, -2.5,
           (0.3, -0.55, 0.78), 0.64),
    Camera("corridor", (1.0, 1.03, 0.99), 0.9, 0.86, 6.0, 0.03, 0.22, 0.85, 0.0,
           (0.05, -0.8, 0.6), 0.7),
)  # fmt: skip
