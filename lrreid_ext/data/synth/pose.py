"""The skeleton: joints of a walking or standing person, and how a camera sees them.

Lengths are body heights. The body's frame is x to the person's left, y up from the ground, z to
where the person faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrreid_ext.data.synth.draws import Draws

Point = tuple[float, float, float]

HIP, SHOULDER = 0.505, 0.778
THIGH, SHIN, ANKLE = 0.235, 0.22, 0.045
UPPER_ARM, FOREARM, HAND = 0.15, 0.13, 0.055
HEAD, NECK_BASE = 0.928, 0.84


def _swing(origin: Point, length: float, forward: float, outward: float) -> Point:
    """End of a bone that hangs down, turned forwards and outwards (radians; outwards along x)."""
    x, y, z = origin
    drop = math.cos(forward) * length
    return (
        x + math.sin(outward) * drop,
        y - math.cos(outward) * drop,
        z + math.sin(forward) * length,
    )


def joints(draws: Draws, build: float, hips: float, carries: int = 0) -> dict[str, Point]:
    """Joints of one random pose.

    Args:
        draws: where the pose comes from.
        build: factor on widths.
        hips: further factor on the hips' width.
        carries: side (-1, 1) of an arm that holds a bag and is bent; 0 for none.

    Returns:
        ``hip``, ``knee``, ``ankle``, ``toe``, ``shoulder``, ``elbow``, ``wrist``, ``hand``, each
        with ``-1`` (right) or ``+1`` (left) appended, and ``head``.
    """
    phase = draws.uniform(0.0, 2.0 * math.pi)
    walking = draws.chance(0.8)
    stride = draws.uniform(0.28, 0.46) if walking else draws.uniform(0.02, 0.1)
    swing = draws.uniform(0.2, 0.5) if walking else draws.uniform(0.0, 0.1)
    spread = draws.uniform(0.0, 0.04)
    phone = draws.pick((-1, 1)) if draws.chance(0.1) else 0
    points: dict[str, Point] = {}
    for side in (-1, 1):
        turn = phase if side > 0 else phase + math.pi
        forward = stride * math.sin(turn) + 0.04
        bend = 0.06 + 1.5 * stride * max(0.0, math.cos(turn)) ** 1.5
        outward = side * (0.01 + spread)
        hip = (side * 0.048 * build * hips, HIP, 0.0)
        knee = _swing(hip, THIGH, forward, outward)
        ankle = _swing(knee, SHIN, forward - bend, outward * 0.3)
        # The sole stays level on the ground and points down behind a swinging leg.
        pitch = 0.1 + 0.9 * max(0.0, bend - forward - 0.25)
        toe = (
            ankle[0] + side * 0.018,
            ankle[1] - 0.028 - math.sin(pitch) * 0.075,
            ankle[2] + math.cos(pitch) * 0.076,
        )
        shoulder = (side * 0.094 * (0.4 + 0.6 * build), SHOULDER, -0.005)
        lift = -swing * math.sin(turn) + 0.02
        fold = draws.uniform(0.12, 0.3) + 0.7 * max(0.0, lift)
        away = side * draws.uniform(0.09, 0.17)
        if side == carries:
            lift, fold = 0.15, draws.uniform(0.2, 0.5)
        if side == phone:
            lift, fold, away = 0.35, draws.uniform(1.3, 1.7), side * 0.12
        elbow = _swing(shoulder, UPPER_ARM, lift, away)
        wrist = _swing(elbow, FOREARM, lift + fold, -away * 0.4)
        hand = _swing(wrist, HAND, lift + fold * 1.1, -away * 0.4)
        points |= {
            f"hip{side:+d}": hip, f"knee{side:+d}": knee, f"ankle{side:+d}": ankle,
            f"toe{side:+d}": toe, f"shoulder{side:+d}": shoulder, f"elbow{side:+d}": elbow,
            f"wrist{side:+d}": wrist, f"hand{side:+d}": hand,
        }  # fmt: skip
    points["head"] = (draws.uniform(-0.006, 0.006), HEAD, draws.uniform(0.008, 0.02))
    lowest = min(points["toe-1"][1], points["toe+1"][1])
    lowest = min(lowest, points["ankle-1"][1] - 0.028, points["ankle+1"][1] - 0.028)
    # Rounded so that a library's last bit of a sine can't reach the pixels.
    return {
        name: (round(x, 6), round(y - lowest + 0.012, 6), round(z, 6))
        for name, (x, y, z) in points.items()
    }


@dataclass(frozen=True)
class View:
    """How a person is seen: an orthographic camera that looks down a little.

    Attributes:
        facing: direction that the person faces, radians; 0 towards the camera, pi / 2 to the
            image's right.
        tilt: how far the camera looks down, radians.
        scale: canvas pixels per body height.
        x, ground: where the feet stand, canvas pixels.
    """

    facing: float
    tilt: float
    scale: float
    x: float
    ground: float

    def depth(self, point: Point) -> float:
        """How much nearer to the camera than the body's axis, body heights."""
        return round(point[2] * math.cos(self.facing) - point[0] * math.sin(self.facing), 6)

    def project(self, point: Point) -> tuple[float, float]:
        """Canvas pixels (x, y) of a point of the body."""
        sine, cosine = math.sin(self.facing), math.cos(self.facing)
        right = point[0] * cosine + point[2] * sine
        near = point[2] * cosine - point[0] * sine
        up = point[1] * math.cos(self.tilt) - near * math.sin(self.tilt)
        return round(self.x + self.scale * right, 3), round(self.ground - self.scale * up, 3)

    def across(self, wide: float, deep: float) -> float:
        """Half-width seen of an ellipse of half-axes ``wide`` (x) and ``deep`` (z)."""
        sine, cosine = math.sin(self.facing), math.cos(self.facing)
        return round(math.sqrt((wide * cosine) ** 2 + (deep * sine) ** 2), 6)
